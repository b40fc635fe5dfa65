"""Which part of a block this process holds: all of it, or its shard of a parameter that FSDP2 spreads over processes.

Answers: where are live lines read from, and written to, when nobody holds the whole matrix?  Every function here that
meets a sharded tensor talks to the other processes, so all of them have to call it, in the same order.

Lines are never assigned to a DTensor by index: ``w[a:b] = part`` writes wrong numbers there without an error.

Shapes:  O outputs · I inputs · R rank of the slice · L numbers of a line of ``live``
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from slicefine_pl.slicing.schedule import Axis


@dataclass(frozen=True)
class MatrixLayout:
    """The matrix, within a parameter of a module, in which a slice lies.

    Attributes:
        parameter: Name of the parameter in its module.
        part: Name of the block where a parameter holds several, such as ``"q"`` of a fused ``in_proj_weight``.
        first_row: First row of the block along the parameter's first dimension.
        num_rows: Rows of the block; ``None`` takes all.
        transposed: Whether the parameter, or each matrix of a stack, is stored as ``(I, O)``.
        stack: How many leading dimensions count matrices, such as the experts of a mixture ``(E, O, I)``; in the block
            they come last, ``(O, I, E)``, so that a line is the same line of every matrix.
    """

    parameter: str = "weight"
    part: str = ""
    first_row: int = 0
    num_rows: int | None = None
    transposed: bool = False
    stack: int = 0

    def view(self, stored: Tensor) -> Tensor:
        """The block as a view of the stored parameter, which is whole here, shape ``(O, I, ...)``."""
        return self._arranged(stored if self.num_rows is None else stored.narrow(0, self.first_row, self.num_rows))

    def local_shard(self, stored: Tensor) -> "LocalShard":
        """What this process holds of the block, as a view outside autograd."""
        if not isinstance(stored, DTensor):
            return LocalShard(self.view(stored.data))
        sharding = _Sharding.of(stored)
        values, offset = to_local(stored), sharding.offset
        if self.num_rows is not None and sharding.dim == 0:
            start, stop = max(offset, self.first_row), min(offset + len(values), self.first_row + self.num_rows)
            values = values.narrow(0, min(start - offset, len(values)), max(stop - start, 0))
            offset = start - self.first_row
        elif self.num_rows is not None:
            values = values.narrow(0, self.first_row, self.num_rows)
        return LocalShard(self._arranged(values), self._order(values.ndim).index(sharding.dim), offset, sharding)

    def _arranged(self, values: Tensor) -> Tensor:
        return values.permute(self._order(values.ndim)) if self.stack or self.transposed else values

    def _order(self, ndim: int) -> list[int]:
        """Which dimension of the parameter each dimension of the block is."""
        first, second, *kernel = range(self.stack, ndim)
        matrix = [second, first] if self.transposed else [first, second]
        return [*matrix, *kernel, *range(self.stack)]


class LocalShard(NamedTuple):
    """What a process holds of a block ``(O, I, ...)``.

    Attributes:
        values: A view, of the block's shape but for ``dim``.
        dim: The dimension of the block that is cut between processes.
        offset: Where along it ``values`` begin.
        sharding: How the parameter is cut; ``None`` if this process holds all of it.
    """

    values: Tensor
    dim: int = 0
    offset: int = 0
    sharding: "_Sharding | None" = None

    def scatter(self, lines: Tensor, axis: Axis, index: Tensor) -> None:
        """Store whole lines, shape ``(R, ...)``, at the places ``index``, shape ``(R,)``."""
        own, index = lines_along(self.values, axis), index.to(self.values.device)
        lines, dim = lines.to(own), _dim_along(self.dim, axis)
        if self.sharding is None:
            own.index_copy_(0, index, lines)
        elif own.numel() and dim == 0:
            here = self._holds(index, len(own))
            own.index_copy_(0, index[here] - self.offset, lines[here])
        elif own.numel():
            own.index_copy_(0, index, lines.narrow(dim, self.offset, own.shape[dim]))

    def gather(self, axis: Axis, index: Tensor, shape: Sequence[int]) -> Tensor:
        """The whole lines at ``index``, shape ``(R, ...)``.

        Args:
            axis: Columns or rows.
            index: Which, shape ``(R,)``.
            shape: Of the block, ``(O, I, ...)``.
        """
        own, index = lines_along(self.values, axis), index.to(self.values.device)
        if self.sharding is None:
            return own.index_select(0, index)
        outputs, inputs, *kernel = shape
        lines = own.new_zeros(len(index), outputs if axis == "column" else inputs, *kernel)
        dim = _dim_along(self.dim, axis)
        if own.numel() and dim == 0:
            here = self._holds(index, len(own))
            lines[here] = own.index_select(0, index[here] - self.offset)
        elif own.numel():
            lines.narrow(dim, self.offset, own.shape[dim]).copy_(own.index_select(0, index))
        lines = lines.to(self.sharding.device)
        dist.all_reduce(
            lines, group=self.sharding.group
        )  # each number comes from one process, and zeros from the others
        return lines

    def _holds(self, index: Tensor, lines: int) -> Tensor:
        return (index >= self.offset) & (index < self.offset + lines)


class _Sharding(NamedTuple):
    """How a DTensor is sharding.

    Attributes:
        dim: Along which dimension.
        offset: Where this process's share begins.
        group: The processes that hold it together.
        device: On which their exchanges run; the shares themselves may be kept on the CPU.
    """

    dim: int
    offset: int
    group: dist.ProcessGroup
    device: str

    @classmethod
    def of(cls, stored: DTensor) -> "_Sharding":
        mesh, placements = stored.device_mesh, stored.placements
        shardings = [(mesh_dim, place.dim) for mesh_dim, place in enumerate(placements) if type(place) is Shard]
        if len(shardings) != 1 or sum(place.is_replicate() for place in placements) != len(placements) - 1:
            raise ValueError(
                f"A sliced weight of shape {tuple(stored.shape)} is placed as {placements}; slices know weights that"
                " are cut along one dimension (FSDP2, also with replicas), not tensor parallelism."
            )
        [(mesh_dim, dim)] = shardings
        size, share = stored.shape[dim], -(-stored.shape[dim] // mesh.size(mesh_dim))
        offset = min(share * mesh.get_local_rank(mesh_dim), size)
        return cls(dim, offset, mesh.get_group(mesh_dim), mesh.device_type)


def is_sharded(tensor: Tensor | None) -> TypeGuard[DTensor]:
    """Whether processes share a tensor out among them."""
    return isinstance(tensor, DTensor)


def reshard(net: nn.Module) -> None:
    """Have FSDP2 put its shares in their places: after a forward pass whole copies may stand there, as they were."""
    if getattr(net, "_is_fsdp_managed_module", False):
        for module in net.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def num_shards(tensor: DTensor) -> int:
    """How many processes share a tensor out among them, not counting replicas."""
    return dist.get_world_size(_Sharding.of(tensor).group)


def to_local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor, outside autograd; the tensor itself where it is whole."""
    return tensor.to_local().data if isinstance(tensor, DTensor) else tensor.data


def local_slice_of(whole: Tensor, like: Tensor) -> Tensor:
    """The share of a whole tensor that this process would hold, were it cut as ``like`` is."""
    if not isinstance(like, DTensor):
        return whole
    sharding = _Sharding.of(like)
    return (
        whole.narrow(sharding.dim, sharding.offset, to_local(like).shape[sharding.dim])
        if to_local(like).numel()
        else to_local(like)
    )


def full_tensors(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors ``(R, L)`` as whole ones; those that are sharded, alike and along R, come by one exchange."""
    sharded = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
    if not sharded:
        return [tensor.data for tensor in tensors]
    found = iter(_all_gather(sharded))
    return [next(found) if is_sharded(tensor) else tensor.data for tensor in tensors]


def _all_gather(sharded: Sequence[DTensor]) -> list[Tensor]:
    shardings = [_Sharding.of(tensor) for tensor in sharded]
    if (
        len({(sharding.dim, sharding.group, tensor.dtype) for sharding, tensor in zip(shardings, sharded, strict=True)})
        > 1
        or shardings[0].dim
    ):
        return [cast("DTensor", tensor.to(shardings[0].device)).full_tensor().data for tensor in sharded]
    group = shardings[0].group
    size = dist.get_world_size(group)
    rows = [-(-tensor.shape[0] // size) for tensor in sharded]  # of each process but the last ones
    padded = [F.pad(to_local(t), (0, 0, 0, count - len(to_local(t)))) for t, count in zip(sharded, rows, strict=True)]
    own = torch.cat([values.flatten() for values in padded]).to(shardings[0].device)
    gathered = own.new_empty(size * len(own))
    dist.all_gather_into_tensor(gathered, own, group=group)
    parts = torch.split(gathered.view(size, -1), [values.numel() for values in padded], dim=1)
    return [part.reshape(-1, tensor.shape[1])[: tensor.shape[0]] for part, tensor in zip(parts, sharded, strict=True)]


def lines_along(matrix: Tensor, axis: Axis) -> Tensor:
    """A matrix ``(O, I, ...)`` as a view of shape ``(size, ...)``, one line after the other."""
    return matrix.transpose(0, 1) if axis == "column" else matrix


def _dim_along(dim: int, axis: Axis) -> int:
    """The dimension of a block, counted as in :func:`lines_along`."""
    return {0: 1, 1: 0}.get(dim, dim) if axis == "column" else dim
