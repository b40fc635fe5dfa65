"""Share a network out among processes, frozen weights and slices alike: PyTorch's FSDP2, block by block.

Answers: in which groups do weights travel, and what does a process have to keep?  Slices are opened before.

    handle = slice_model(net, rank=8)
    handle.write_manually()
    shard_model(net)
    optimizer = torch.optim.AdamW((p for p in net.parameters() if p.requires_grad), lr=3e-3)
    ...
        optimizer.step()
        handle.write()
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from slicefine_pl.network.names import NamePatterns, match_names
from slicefine_pl.slicing.distributed.shards import is_sharded, num_shards, to_local
from slicefine_pl.slicing.slice import Slice


@dataclass(frozen=True)
class ShardedBytes:
    """What the parameters of a sharded network take in one process, in bytes.

    Attributes:
        processes: Number of processes that share the network.
        whole: Of all parameters, were they in one place.
        frozen: Of the frozen parameters that this process keeps.
        trained: Of the slices and the parameters trained whole that it keeps.
        optimizer: Of their gradients and the two moments of Adam.
        passing: Of the largest group of whole parameters that is there for the moment in which it computes.
        resident: Of the whole parameters outside the blocks, which stay from the forward to the backward pass.
    """

    processes: int
    whole: int
    frozen: int
    trained: int
    optimizer: int
    passing: int
    resident: int

    @property
    def kept(self) -> int:
        """What stays between steps."""
        return self.frozen + self.trained + self.optimizer

    @property
    def peak(self) -> int:
        """Most of it at a time: what stays, the blocks of two layers (one computes, one arrives), and the rest."""
        return self.kept + 2 * self.passing + self.resident

    def __str__(self) -> str:
        def mb(count: int) -> str:
            return f"{count / 1e6:,.1f} MB"

        return (
            f"{self.processes} processes share {mb(self.whole)} of parameters; this one keeps {mb(self.frozen)} frozen,"
            f" {mb(self.trained)} in training and {mb(self.optimizer)} of gradients and moments: {mb(self.kept)}, and"
            f" at most {mb(self.peak)} while blocks of {mb(self.passing)} pass through"
        )


def find_blocks(net: nn.Module, blocks: NamePatterns | None = None) -> list[str]:
    """Names of the modules whose parameters travel together, outermost first.

    Args:
        net: The network.
        blocks: Regular expressions that match whole names of modules.  ``None`` finds the layers of a deep network: the
            members of a list or sequence in which one class with modules of its own occurs at least twice.

    Raises:
        ValueError: A pattern matches no module.
    """
    if blocks is not None:
        named = {name: module for name, module in net.named_modules() if name}
        return list(match_names("blocks", blocks, named, "module", whole=True))
    return list(_repeated(net, ""))


def _repeated(module: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        alike = [other for other in module.children() if type(other) is type(child)]
        deep = any(True for _ in child.children()) and any(True for _ in child.parameters())
        if isinstance(module, nn.ModuleList | nn.Sequential) and deep and len(alike) > 1:
            yield path
        else:
            yield from _repeated(child, f"{path}.")


def shard_model(
    net: nn.Module,
    mesh: DeviceMesh | None = None,
    blocks: NamePatterns | None = None,
    offload: bool = False,
) -> list[str]:
    """Share all parameters of a network out among processes, in place; its slices must be open.

    Every process calls it, after ``torch.distributed`` was initialised and before the optimizer is built.  Parameters
    become DTensors; a block is whole only while it computes.  Values and buffers are those of the first process.  The
    module called in the training loop must be ``net``.

    Args:
        net: The network.
        mesh: Processes to share among: one dimension, or two of which the first replicates; ``None`` takes all.
        blocks: See :func:`find_blocks`.
        offload: Whether shares, gradients and the optimizer's state stay in the CPU's memory.

    Returns:
        Names of the blocks.

    Raises:
        ValueError: The network is sharded already, a pattern matches nothing, a scalar is to be trained, parameters of
            several types are, in one block, one parameter is, in several, or parameters have no values yet.
    """
    if any(is_sharded(parameter) for parameter in net.parameters()):
        raise ValueError("The network is sharded already; shard_model comes once, after slice_model.")
    scalars = {parameter for parameter in net.parameters() if parameter.ndim == 0}  # which FSDP2 does not take
    if trained := [name for name, p in net.named_parameters() if p.ndim == 0 and p.requires_grad]:
        raise ValueError(
            f"{trained} are scalars, which cannot be shared out; leave them frozen, or give them shape (1,)."
        )
    if empty := [name for name, p in net.named_parameters() if p.is_meta]:
        raise ValueError(f"{empty[:3]} have no values yet (device 'meta'); build the network on the CPU.")
    names = find_blocks(net, blocks)
    _check_ties(net, names)
    if mesh is None:
        mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),))
    _agree(net, mesh)
    policy = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if offload else OffloadPolicy()
    for name in [*reversed(names), ""]:  # inner blocks before those that hold them, and what is left in the end
        _check_types(net, name)
        fully_shard(net.get_submodule(name), mesh=mesh, offload_policy=policy, ignored_params=scalars)
    device = next(parameter.device_mesh.device_type for parameter in net.parameters() if is_sharded(parameter))
    for slice_ in (module for module in net.modules() if isinstance(module, Slice)):
        slice_.move_tensors_to(device)
    return names


def _check_ties(net: nn.Module, blocks: Sequence[str]) -> None:
    """Refuse a parameter in training that two groups share: each would train a copy of its own."""
    owners: dict[int, dict[str, str]] = {}
    for path, parameter in net.named_parameters(remove_duplicate=False):
        inside = [name for name in blocks if path.startswith(f"{name}.")]
        if parameter.requires_grad:
            owners.setdefault(id(parameter), {})[max(inside, key=len, default="")] = path
    if tied := [list(paths.values()) for paths in owners.values() if len(paths) > 1]:
        raise ValueError(
            f"{' and '.join(tied[0])} are one parameter, and in different blocks; name blocks that hold both."
        )


def _agree(net: nn.Module, mesh: DeviceMesh) -> None:
    """Take all values from the first process, as DDP does: a new head may start from other random numbers elsewhere."""
    for tensor in [*net.parameters(), *net.buffers()]:
        tensor.data = tensor.data.contiguous()  # which FSDP2 asks for
        there = tensor.data.to(mesh.device_type)
        dist.broadcast(there, 0)
        tensor.data.copy_(there)


def _check_types(net: nn.Module, name: str) -> None:
    """Refuse parameters of several types in training, which FSDP2 would refuse in the first step."""
    group = net.get_submodule(name).named_parameters(prefix=name)
    types = {p.dtype: path for path, p in group if p.requires_grad and not is_sharded(p)}
    if len(types) > 1:
        told = " and ".join(f"{path} is {str(dtype).removeprefix('torch.')}" for dtype, path in types.items())
        raise ValueError(
            f"What is trained and travels together has to be of one type, but {told}; leave slice_dtype=None, or name"
            " blocks that keep them apart."
        )


def sharded_bytes(net: nn.Module, blocks: Sequence[str]) -> ShardedBytes:
    """Count what this process keeps of a sharded network.

    Args:
        net: After :func:`shard_model`.
        blocks: What that returned.
    """
    parameters = list(net.parameters())
    local = {id(p): to_local(p).numel() * p.element_size() for p in parameters}
    trained = sum(local[id(p)] for p in parameters if p.requires_grad)
    groups = [sum(p.numel() * p.element_size() for p in net.get_submodule(name).parameters()) for name in blocks]
    whole = sum(p.numel() * p.element_size() for p in parameters)
    sharded = [p for p in parameters if is_sharded(p)]
    return ShardedBytes(
        processes=num_shards(sharded[0]) if sharded else 1,
        whole=whole,
        frozen=sum(local.values()) - trained,
        trained=trained,
        optimizer=3 * trained,
        passing=max(groups, default=0),
        resident=whole - sum(groups),
    )
