"""Read and write slices of weights that FSDP2 shards over processes.

Everything else in ``slicing`` treats a weight as if it were whole. The functions here also work on whole tensors. On
a sharded tensor they communicate: every process has to call them, in the same order.

Lines are never assigned to a DTensor by index, because ``dtensor[a:b] = values`` writes wrong numbers without an error.

Shapes:  O outputs · I inputs · K entries of a convolution's kernel · R lines of a slice · L numbers of a line
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeGuard, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from slicefine_pl.slicing.layout import MatrixLayout, flatten_kernel, lines_along, unflatten_kernel
from slicefine_pl.slicing.schedule import Axis


class Sharding(NamedTuple):
    """How a DTensor is split over processes.

    Attributes:
        dim: Dimension along which it is split.
        offset: Index along ``dim`` at which the shard of this process begins.
        group: The processes that hold the shards of one copy.
        device: Device type for collectives. The shards may be on the CPU (offloading) while this is ``"cuda"``.
    """

    dim: int
    offset: int
    group: dist.ProcessGroup
    device: str

    @classmethod
    def of(cls, tensor: DTensor) -> "Sharding":
        """Read the placements of a DTensor.

        Raises:
            ValueError: It is not split along exactly one dimension, for example by tensor parallelism.
        """
        mesh, placements = tensor.device_mesh, tensor.placements
        splits = [(mesh_dim, place.dim) for mesh_dim, place in enumerate(placements) if type(place) is Shard]
        if len(splits) != 1 or sum(place.is_replicate() for place in placements) != len(placements) - 1:
            raise ValueError(
                f"A sliced weight of shape {tuple(tensor.shape)} is placed as {placements}. Slices support weights that"
                " are sharded along one dimension (FSDP2, also with replicas), not tensor parallelism."
            )
        [(mesh_dim, dim)] = splits
        size, rows = tensor.shape[dim], -(-tensor.shape[dim] // mesh.size(mesh_dim))
        offset = min(rows * mesh.get_local_rank(mesh_dim), size)
        return cls(dim, offset, mesh.get_group(mesh_dim), mesh.device_type)


class LocalShard(NamedTuple):
    """The part of a matrix ``(O, I, ...)`` that this process stores, as a view outside autograd.

    Attributes:
        values: The stored numbers: the shape of the matrix, except along ``dim``.
        dim: Dimension of the matrix that is split over processes.
        offset: Index along ``dim`` at which ``values`` begins.
        sharding: How the parameter is split; ``None`` if this process stores all of it.
    """

    values: Tensor
    dim: int = 0
    offset: int = 0
    sharding: Sharding | None = None

    @classmethod
    def of(cls, layout: MatrixLayout, stored: Tensor) -> "LocalShard":
        """The local part of the matrix that ``layout`` describes, in a stored parameter."""
        if not isinstance(stored, DTensor):
            return cls(layout.view(stored.data))
        sharding = Sharding.of(stored)
        values, offset = to_local(stored), sharding.offset
        if layout.num_rows is not None and sharding.dim == 0:
            start = max(offset, layout.first_row)
            stop = min(offset + len(values), layout.first_row + layout.num_rows)
            values = values.narrow(0, min(start - offset, len(values)), max(stop - start, 0))
            offset = start - layout.first_row
        elif layout.num_rows is not None:
            values = values.narrow(0, layout.first_row, layout.num_rows)
        return cls(layout.arrange(values), layout.order(values.ndim).index(sharding.dim), offset, sharding)

    def scatter(self, lines: Tensor, axis: Axis, index: Tensor) -> None:
        """Store whole lines; every process keeps its own part of them.

        Args:
            lines: The lines, shape ``(R, ...)``, equal on all processes.
            axis: Columns or rows.
            index: Their indices, shape ``(R,)``.
        """
        own, index = lines_along(self.values, axis), index.to(self.values.device)
        lines, dim = lines.to(own), _dim_along(self.dim, axis)
        if self.sharding is None:
            own.index_copy_(0, index, lines)
        elif own.numel() and dim == 0:
            here = self._stores(index, len(own))
            own.index_copy_(0, index[here] - self.offset, lines[here])
        elif own.numel():
            own.index_copy_(0, index, lines.narrow(dim, self.offset, own.shape[dim]))

    def add_product(self, change: Tensor, directions: Tensor) -> None:
        """Add ``changeᵀ directionsᵀ`` to the matrix ``(O, I, ...)``; every process adds its own part.

        Args:
            change: Shape ``(R, O · K)``, equal on all processes.
            directions: Shape ``(I, R)``, equal on all processes.
        """
        left, right = self._factors(change, directions)
        if left.dtype == self.values.dtype and self.kernel_size == 1:
            flatten_kernel(self.values).addmm_(left, right)
        elif left.dtype == self.values.dtype:  # (I, O · K): on CPU faster to add than (O · K, I)
            outputs, inputs, *kernel = self.values.shape
            self.values.add_((right.t() @ left.t()).view(inputs, outputs, *kernel).transpose(0, 1))
        else:  # rounded once
            added = torch.addmm(flatten_kernel(self.values).to(left.dtype), left, right)
            self.values.copy_(unflatten_kernel(added, self.values.shape))

    def product(self, change: Tensor, directions: Tensor) -> Tensor:
        """What :meth:`add_product` adds to the rows of :func:`flatten_kernel`, at least in float32."""
        left, right = self._factors(change, directions)
        return left @ right

    @property
    def kernel_size(self) -> int:
        """Entries of a convolution's kernel (K); 1 for other matrices."""
        return math.prod(self.values.shape[2:])

    def _factors(self, change: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of this process's part of the product, at least in float32."""
        dtype = torch.promote_types(self.values.dtype, torch.float32)
        left, right = (each.t().to(self.values.device, dtype) for each in (change, directions))
        if self.sharding is not None and self.dim == 0:
            kernel_size = self.kernel_size
            left = left.narrow(0, min(self.offset * kernel_size, len(left)), len(self.values) * kernel_size)
        elif self.sharding is not None:
            right = right.narrow(1, min(self.offset, right.shape[1]), self.values.shape[1])
        return left, right

    def gather(self, axis: Axis, index: Tensor, shape: Sequence[int]) -> Tensor:
        """Collect whole lines from all processes.

        Args:
            axis: Columns or rows.
            index: Their indices, shape ``(R,)``.
            shape: Shape of the whole matrix, ``(O, I, ...)``.

        Returns:
            The lines, shape ``(R, ...)``, on every process.
        """
        own, index = lines_along(self.values, axis), index.to(self.values.device)
        if self.sharding is None:
            return own.index_select(0, index)
        outputs, inputs, *kernel = shape
        length = outputs if axis == "column" else inputs
        lines = own.new_full((len(index), length, *kernel), -0.0)  # adding it keeps the sign of a zero
        dim = _dim_along(self.dim, axis)
        if own.numel() and dim == 0:
            here = self._stores(index, len(own))
            lines[here] = own.index_select(0, index[here] - self.offset)
        elif own.numel():
            lines.narrow(dim, self.offset, own.shape[dim]).copy_(own.index_select(0, index))
        lines = lines.to(self.sharding.device)
        dist.all_reduce(lines, group=self.sharding.group)  # one process has each number
        return lines

    def _stores(self, index: Tensor, count: int) -> Tensor:
        """Which of the lines ``index`` this process stores, bool, shape ``(R,)``."""
        return (index >= self.offset) & (index < self.offset + count)


def is_sharded(tensor: Tensor | None) -> TypeGuard[DTensor]:
    """Whether the tensor is a DTensor, split over processes."""
    return isinstance(tensor, DTensor)


def num_shards(tensor: DTensor) -> int:
    """The number of processes that hold one copy of a DTensor together; replicas do not count."""
    return dist.get_world_size(Sharding.of(tensor).group)


def reshard(net: nn.Module) -> None:
    """Free the full parameters that FSDP2 may keep after a forward pass, so that reads and writes use the shards."""
    if getattr(net, "_is_fsdp_managed_module", False):
        for module in net.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def to_local(tensor: Tensor) -> Tensor:
    """The local shard of a DTensor, or the tensor itself; both outside autograd."""
    return tensor.to_local().data if isinstance(tensor, DTensor) else tensor.data


def local_slice_of(full: Tensor, like: Tensor) -> Tensor:
    """The part of a full tensor that this process would store, were it split like ``like``."""
    if not isinstance(like, DTensor):
        return full
    sharding, local = Sharding.of(like), to_local(like)
    return full.narrow(sharding.dim, sharding.offset, local.shape[sharding.dim]) if local.numel() else local


def full_tensor(tensor: Tensor) -> Tensor:
    """The full values of a tensor of any shape, outside autograd; a collective if it is sharded."""
    if not isinstance(tensor, DTensor):
        return tensor.data
    return cast("DTensor", tensor.to(Sharding.of(tensor).device)).full_tensor().data


def full_tensors(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The full values of tensors ``(R, L)``, outside autograd.

    Sharded tensors of one type, split along R over the same processes, take one collective together.
    """
    sharded = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
    if not sharded:
        return [tensor.data for tensor in tensors]
    gathered = iter(_all_gather(sharded))
    return [next(gathered) if is_sharded(tensor) else tensor.data for tensor in tensors]


def _all_gather(sharded: Sequence[DTensor]) -> list[Tensor]:
    shardings = [Sharding.of(tensor) for tensor in sharded]
    dim, _, group, device = shardings[0]
    alike = {(each.dim, each.group, tensor.dtype) for each, tensor in zip(shardings, sharded, strict=True)}
    if len(alike) > 1 or dim != 0:
        return [full_tensor(tensor) for tensor in sharded]
    size = dist.get_world_size(group)
    rows = [-(-tensor.shape[0] // size) for tensor in sharded]  # of each process but the last ones
    padded = [F.pad(to_local(t), (0, 0, 0, count - len(to_local(t)))) for t, count in zip(sharded, rows, strict=True)]
    own = torch.cat([values.flatten() for values in padded]).to(device)
    gathered = own.new_empty(size * len(own))
    dist.all_gather_into_tensor(gathered, own, group=group)
    parts = torch.split(gathered.view(size, -1), [values.numel() for values in padded], dim=1)
    return [part.reshape(-1, tensor.shape[1])[: tensor.shape[0]] for part, tensor in zip(parts, sharded, strict=True)]


def _dim_along(dim: int, axis: Axis) -> int:
    """Dimension ``dim`` of a matrix, in the order of :func:`lines_along`."""
    return {0: 1, 1: 0}.get(dim, dim) if axis == "column" else dim
