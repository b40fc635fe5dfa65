"""Weights of 2:4 sparsity: trained by slices, and as torch's semi-structured tensors."""

import copy

import torch
from torch import nn

from benchmarks.gpu.checks import NotHereError
from benchmarks.gpu.right.lightning_run import SETTINGS, loader, module, trainer
from benchmarks.gpu.right.measured import Measured, line_error, needs_cuda, rounding_bound
from benchmarks.harness.results import Row
from slicefine_pl import SliceFineCallback, SparsityCallback
from slicefine_pl.sparsity import NetworkMasks, export_semi_structured, parse_pattern

WIDTH = 256


def pruned_slices(device: str) -> Row:
    """Slices that are trained and moved in a network of 2:4 sparsity leave two zeros in every four weights."""
    measured = Measured()
    slices = SliceFineCallback(**SETTINGS, interval=2)
    pruning = SparsityCallback(pattern="2:4", schedule="constant", targets=r"body\.(0|6)\.weight")
    pruned = module()
    start = {name: value.to(device, copy=True) for name, value in pruned.state_dict().items()}
    trainer(device, slices, pruning).fit(pruned, loader())
    for name in ("body.0.weight", "body.6.weight"):
        weight = pruned.get_parameter(name).detach().to(device)
        groups = (weight == 0).view(len(weight), -1, 4).sum(2)
        measured.at_most("groups of four without two zeros", int((groups != 2).sum()), 0, name)
        trained = (weight != 0) & (weight != start[name])
        measured.at_most("matrices without change", not trained.any(), 0, name)
    return measured.result()


def semi_structured_tensors(device: str) -> Row:
    """The 2:4 layers of an exported network hold the pruned weights exactly, and compute what these compute."""
    needs_cuda(device, "A 2:4 tensor")
    if torch.cuda.get_device_capability() < (8, 0):
        raise NotHereError(f"2:4 tensors need compute capability 8.0; {torch.cuda.get_device_name()} has less.")
    if not torch.backends.cusparselt.is_available():
        raise NotHereError("2:4 tensors need cuSPARSELt, which this build of torch lacks.")
    return compare_export(device)


def compare_export(device: str) -> Row:
    """The check itself, on a device that has these tensors."""
    measured = Measured()
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        net = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH)).to(device, dtype)
        NetworkMasks(net, parse_pattern("2:4")).prune(0.5)
        x = torch.randn(32, 7, WIDTH, device=device, dtype=dtype)
        sparse, report = export_semi_structured(net, x, rounds=1)
        measured.at_most(f"{name}: layers that stay dense", len(report.kept), 0, ", ".join(report.kept))
        for layer in report.converted:
            weight = sparse.get_submodule(layer).get_parameter("weight").to_dense()
            wrong = int((weight != net.get_submodule(layer).get_parameter("weight")).sum())
            measured.at_most(f"{name}: wrong weights", wrong, 0, layer)
        exact = copy.deepcopy(net).double()(x.double())
        # Stored are the result of each layer, and that of the activation, which rounds nothing.
        bound = rounding_bound(2, 2 * WIDTH, dtype)
        with torch.no_grad():
            measured.at_most(f"{name}: error of the output", line_error(sparse(x), exact), bound)
    return measured.result()
