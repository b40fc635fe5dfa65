"""Shard a network with open slices over processes by FSDP2, block by block.

Frozen weights and slices are sharded alike. Open the slices first:

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
    """Memory that the parameters of a sharded network take in one process, in bytes.

    Attributes:
        processes: Number of processes over which the network is sharded.
        full: All parameters, unsharded.
        frozen: This process's shards of frozen parameters.
        trained: This process's shards of slices and of parameters that are trained in full.
        optimizer: Gradients and the two moments of Adam for these.
        largest_block: The largest block, gathered. Blocks are gathered only while they compute.
        outside_blocks: Parameters outside all blocks, gathered. They stay from the forward to the backward pass.
    """

    processes: int
    full: int
    frozen: int
    trained: int
    optimizer: int
    largest_block: int
    outside_blocks: int

    @property
    def kept(self) -> int:
        """Memory between steps, in bytes."""
        return self.frozen + self.trained + self.optimizer

    @property
    def peak(self) -> int:
        """Peak memory in bytes: what is kept, two gathered blocks (one computes, one is prefetched), and the rest."""
        return self.kept + 2 * self.largest_block + self.outside_blocks

    def __str__(self) -> str:
        def mb(count: int) -> str:
            return f"{count / 1e6:,.1f} MB"

        return (
            f"{mb(self.full)} of parameters are sharded over {self.processes} processes; this one keeps"
            f" {mb(self.frozen)} frozen, {mb(self.trained)} trained and {mb(self.optimizer)} of gradients and moments:"
            f" {mb(self.kept)}, and at most {mb(self.peak)} while blocks of {mb(self.largest_block)} are gathered"
        )


def find_blocks(net: nn.Module, blocks: NamePatterns | None = None) -> list[str]:
    """Names of the blocks: modules whose parameters are gathered together, outermost first.

    Args:
        net: The network.
        blocks: Regular expressions that match whole module names. ``None`` finds the layers of a deep network: the
            members of a ``ModuleList`` or ``Sequential`` in which a class with submodules occurs at least twice.

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
    """Shard all parameters of a network over processes, in place.

    Call it in every process, after ``torch.distributed`` was initialized and the slices were opened, and before the
    optimizer is built. Parameters become DTensors. A block is gathered only while it computes. All processes take
    the parameters and buffers of the first one. The training loop must call ``net`` itself, not one of its submodules.

    Args:
        net: The network.
        mesh: The processes: a mesh of one dimension, or of two, of which the first replicates. ``None`` takes all.
        blocks: Regular expressions for module names, see :func:`find_blocks`.
        offload: Whether shards, gradients and the optimizer's state stay in CPU memory.

    Returns:
        Names of the blocks.

    Raises:
        ValueError: The network is already sharded; a pattern matches nothing; a trained parameter is a scalar, or is in
            several blocks; the trained parameters of one block have several types; or parameters have no values yet.
    """
    _check_parameters(net)
    names = find_blocks(net, blocks)
    _check_ties(net, names)
    if mesh is None:
        mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),))
    _broadcast(net, mesh)
    scalars = {parameter for parameter in net.parameters() if parameter.ndim == 0}  # FSDP2 does not accept these
    policy = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if offload else OffloadPolicy()
    for name in [*reversed(names), ""]:  # inner blocks before outer ones, and at last what is outside all blocks
        _check_types(net, name)
        fully_shard(net.get_submodule(name), mesh=mesh, offload_policy=policy, ignored_params=scalars)
    device = next(parameter.device_mesh.device_type for parameter in net.parameters() if is_sharded(parameter))
    for slice_ in (module for module in net.modules() if isinstance(module, Slice)):
        slice_.move_tensors_to(device)
    return names


def _check_parameters(net: nn.Module) -> None:
    if any(is_sharded(parameter) for parameter in net.parameters()):
        raise ValueError("The network is already sharded; call shard_model once, after slice_model.")
    if trained := [name for name, p in net.named_parameters() if p.ndim == 0 and p.requires_grad]:
        raise ValueError(f"{trained} are scalars, which cannot be sharded; freeze them, or give them shape (1,).")
    if empty := [name for name, p in net.named_parameters() if p.is_meta]:
        raise ValueError(f"{empty[:3]} have no values yet (device 'meta'); build the network on the CPU.")


def _check_ties(net: nn.Module, blocks: Sequence[str]) -> None:
    """Refuse a trained parameter that two blocks share: each block would train its own copy."""
    owners: dict[int, dict[str, str]] = {}
    for path, parameter in net.named_parameters(remove_duplicate=False):
        inside = [name for name in blocks if path.startswith(f"{name}.")]
        if parameter.requires_grad:
            owners.setdefault(id(parameter), {})[max(inside, key=len, default="")] = path
    if tied := [list(paths.values()) for paths in owners.values() if len(paths) > 1]:
        raise ValueError(
            f"{' and '.join(tied[0])} are one parameter in different blocks; choose blocks that contain both."
        )


def _broadcast(net: nn.Module, mesh: DeviceMesh) -> None:
    """Copy all values from the first process, as DDP does: a new head may have other random values in each process."""
    for tensor in [*net.parameters(), *net.buffers()]:
        tensor.data = tensor.data.contiguous()  # FSDP2 requires it
        values = tensor.data.to(mesh.device_type)
        dist.broadcast(values, 0)
        tensor.data.copy_(values)


def _check_types(net: nn.Module, name: str) -> None:
    """Refuse trained parameters of several types in one block. FSDP2 would fail in the first step."""
    group = net.get_submodule(name).named_parameters(prefix=name)
    types = {p.dtype: path for path, p in group if p.requires_grad and not is_sharded(p)}
    if len(types) > 1:
        listed = " and ".join(f"{path} is {str(dtype).removeprefix('torch.')}" for dtype, path in types.items())
        raise ValueError(
            f"The trained parameters of one block must have one type, but {listed}; leave slice_dtype=None, or choose"
            " blocks that separate them."
        )


def sharded_bytes(net: nn.Module, blocks: Sequence[str]) -> ShardedBytes:
    """Count the memory that the parameters of a sharded network take in this process.

    Args:
        net: A network that :func:`shard_model` has sharded.
        blocks: The names that it returned.
    """
    parameters = list(net.parameters())
    local = {id(p): to_local(p).numel() * p.element_size() for p in parameters}
    trained = sum(local[id(p)] for p in parameters if p.requires_grad)
    groups = [sum(p.numel() * p.element_size() for p in net.get_submodule(name).parameters()) for name in blocks]
    full = sum(p.numel() * p.element_size() for p in parameters)
    sharded = [p for p in parameters if is_sharded(p)]
    return ShardedBytes(
        processes=num_shards(sharded[0]) if sharded else 1,
        full=full,
        frozen=sum(local.values()) - trained,
        trained=trained,
        optimizer=3 * trained,
        largest_block=max(groups, default=0),
        outside_blocks=full - sum(groups),
    )
