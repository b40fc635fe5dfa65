"""The parameters and buffers of a network by name, also some rows of one."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

Tensors = nn.Module | Mapping[str, Tensor]
ROWS = re.compile(r"\[(\d+):(\d+)\]$")  # after the name of a parameter, the rows that are meant


def stored_tensors(net: Tensors) -> Mapping[str, Tensor]:
    """All parameters of a network, also those that share another one's storage, and its buffers, by name.

    The names are those without ``torch.compile``.
    """
    if not isinstance(net, nn.Module):
        return net
    tensors = *net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)
    return {plain_name(name): tensor for name, tensor in tensors}


def plain_name(name: str) -> str:
    """The name that a tensor has in the network without ``torch.compile``."""
    return name.replace("_orig_mod.", "")


def tensor_name(name: str) -> str:
    """The name of a tensor, without the rows that are meant."""
    return ROWS.sub("", name)


def name_of_rows(parameter: str, rows: tuple[int, int] | None) -> str:
    """The name of some rows of a parameter.

    Args:
        parameter: Name of the parameter.
        rows: First row and number of rows; ``None`` means all.
    """
    return parameter if rows is None else f"{parameter}[{rows[0]}:{sum(rows)}]"


def named_part(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor of a name: a parameter, a buffer, or some rows of one, ``parameter[first:stop]``."""
    rows = ROWS.search(name)
    return tensors[name] if rows is None else tensors[name[: rows.start()]][int(rows[1]) : int(rows[2])]
