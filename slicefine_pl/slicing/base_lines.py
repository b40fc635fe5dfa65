"""The base's values of what slices overwrite, so that a trained network can be turned back into its base."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from slicefine_pl.slicing.fingerprint import persistent_tensors
from slicefine_pl.slicing.named_tensors import plain_name
from slicefine_pl.slicing.saved_lines import AXES, SavedLines

ATTRIBUTE = "slicefine_base_lines"  # of the network: what its base had


class BaseLines:
    """The base's values of all lines at which slices have been, and of its buffers, in CPU memory.

    Args:
        net: The base.
    """

    def __init__(self, net: nn.Module) -> None:
        parameters = {name for name, _ in net.named_parameters()}
        buffers = ((plain_name(name), tensor) for name, tensor in persistent_tensors(net) if name not in parameters)
        self._buffers = {name: tensor.detach().cpu().clone() for name, tensor in buffers}
        self._lines: list[SavedLines] = []
        self._known: dict[tuple[str, str], set[int]] = {}

    @classmethod
    def of(cls, net: nn.Module) -> "BaseLines | None":
        """What is known of a network's base; ``None`` if the network is its base, as far as we know."""
        found: BaseLines | None = net.__dict__.get(ATTRIBUTE)
        return found

    @classmethod
    def attach(cls, net: nn.Module) -> "BaseLines":
        """Take a network as the base from now on."""
        net.__dict__[ATTRIBUTE] = base = cls(net)
        return base

    def add(self, lines: Iterable[SavedLines]) -> None:
        """Keep lines that are about to be overwritten, unless they are known already."""
        for each in lines:
            known = self._known.setdefault((each.name, each.axis), set())
            new = torch.tensor([number for number, line in enumerate(each.index.tolist()) if line not in known])
            if len(new):
                values = each.values.index_select(AXES[each.axis], new)
                self._lines.append(replace(each, index=each.index[new], values=values))
                known.update(each.index[new].tolist())

    @torch.no_grad()
    def restored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The base of a trained network.

        Args:
            tensors: The whole tensors of the network, by name. They are not changed.

        Returns:
            The tensors of the base: those of the network, and copies where these were overwritten.
        """
        base = dict(tensors)
        for name in dict.fromkeys(each.parameter for each in self._lines):
            base[name] = tensors[name].clone()
        for each in reversed(self._lines):  # where lines cross, those that came first have the base's values
            each.write(base[each.parameter], each.values.to(base[each.parameter].dtype))
        for name, values in self._buffers.items():
            if name in base:
                base[name] = values
        return base
