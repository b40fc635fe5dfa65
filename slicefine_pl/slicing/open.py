"""Open slices in a network, move them, and close them.

    handle = slice_model(net, rank=32)
    optimizer = torch.optim.AdamW((p for p in net.parameters() if p.requires_grad), lr=1e-4)
    for step, (x, y) in enumerate(batches, start=1):
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()
        if step % 100 == 0:
            for moved in handle.move():
                optimizer.state.pop(moved.parameter, None)
    handle.close()

Source:  Kowsher et al., SliceFine, arXiv:2510.08513.
"""

import warnings

import torch
from torch import nn

from slicefine_pl.arguments import check_choice
from slicefine_pl.network.names import NamePatterns
from slicefine_pl.slicing.cursor import SliceSettings, slice_type
from slicefine_pl.slicing.directions import Basis
from slicefine_pl.slicing.handle import SliceHandle
from slicefine_pl.slicing.layers.registry import Backend
from slicefine_pl.slicing.lr_scale import LRScale, checked_lr_scale
from slicefine_pl.slicing.obstacles import TargetSettings
from slicefine_pl.slicing.schedule import AxisSchedule, Order
from slicefine_pl.slicing.targets import find_targets


def slice_model(
    net: nn.Module,
    rank: int = 32,
    axis: AxisSchedule = "column",
    order: Order = "random",
    targets: NamePatterns | None = None,
    exclude: NamePatterns | None = None,
    also_train: NamePatterns | None = None,
    seed: int = 0,
    slice_dtype: torch.dtype | str | None = None,
    backend: Backend = "auto",
    lr_scale: LRScale = "auto",
    basis: Basis = "standard",
) -> SliceHandle:
    r"""Freeze a network, and open one trainable slice in each target matrix, in place.

    Call it before building the optimizer. The trained values reach the stored weights at the layer's next forward
    pass, or at once by ``handle.write()``. The defaults are ours, because the paper does not state its own.

    Args:
        net: Any network. Its layers are changed in place, and restored by ``handle.close()``.
        rank: Rows or columns per slice (R).
        axis: ``"column"`` trains columns (inputs), ``"row"`` trains rows (outputs), ``"alternate"`` changes at each
            move.
        order: ``"random"`` visits the lines of an axis in a random order, ``"sweep"`` one after the other from a
            random line on, ``"importance"`` takes those with the largest score since the last move.
        targets: Regular expressions, searched in the names of matrices, e.g. ``r"layer\.\d+\.attention"``. ``None``
            takes every linear layer, convolution and attention, except output heads, tied weights, weights that are
            frozen already, and weights with fewer lines than ``rank``. Embeddings and raw parameters are sliced only
            if a pattern names them. A raw parameter of three dimensions is a stack of matrices, such as experts
            ``(E, O, I)``, of which the same lines are trained.
        exclude: Regular expressions, searched in the names of matrices, of those that are not sliced, such as layers
            that the network does not use.
        also_train: Regular expressions, searched in parameter names, for parameters that are trained in full. ``None``
            takes the new output head of a transformers, timm, torchvision or pytorchvideo model. Patterns replace it.
        seed: Determines the visiting orders. Equal seeds give equal positions in every process.
        slice_dtype: Type of the trainable values, e.g. ``torch.float32`` or ``"float32"`` in a bfloat16 network, whose
            precision would round small updates to nothing. ``None`` takes the type of the weight.
        backend: ``"compact"`` computes the gradient of the slice only, and does not slice layers for which that is not
            implemented. ``"mask"`` computes the dense gradient of the weight and takes the slice's part. ``"auto"``
            is compact where possible.
        lr_scale: Factor of each slice's learning rate. ``"auto"`` takes min(I, O) / R, and √(I / R) or √(O / R) for
            convolutions, so that the learning rate of full fine-tuning suits every rank
            (docs/concepts/learning-rates.md). The slice then trains the change of its lines, and weight decay pulls
            towards their values at the start of the visit. ``1`` trains the lines themselves, at the optimizer's own
            rate.
        basis: ``"standard"`` trains single columns or rows. ``"random"``, ``"gradient"`` and ``"pca"`` train along R
            orthonormal directions of the input instead, which change every column a little: random ones, the leading
            directions of the weight's gradient, or the principal axes of the inputs. The last two are found from the
            batches since the last move, and the first position is random. The input of a convolution is its channels.
            Other matrices than those of linear maps and convolutions stay frozen.

    Returns:
        The handle that moves and closes the slices.

    Raises:
        ValueError: A setting is out of range, or a pattern matches nothing or a matrix that cannot be sliced. The
            network is unchanged then.
    """
    settings = SliceSettings(rank, axis, order, seed, slice_type(slice_dtype), checked_lr_scale(lr_scale), basis)
    check_choice("backend", backend, Backend)
    selection = find_targets(net, TargetSettings(targets, also_train, backend, rank, settings.axes, basis, exclude))
    if selection.notice:
        warnings.warn(selection.notice, stacklevel=2)
    return SliceHandle(net, selection, settings)
