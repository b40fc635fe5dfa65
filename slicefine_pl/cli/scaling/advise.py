"""``slicefine advise``: the best sparsity for a size, data, a budget and hardware, from a scaling law.

This module turns the flags into an ``AdviceRequest`` and collects the answer. The numbers come from
``slicefine_pl.scaling``; ``advise_text`` formats them.
"""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slicefine_pl.cli.scaling.advise_text import advice_text, verdict
from slicefine_pl.cli.scaling.arguments import quantity
from slicefine_pl.files.atomic import write_atomic
from slicefine_pl.scaling import costs, gains
from slicefine_pl.scaling.advice import advise_start, best_sparsity, compare_with_dense, usable_sparsity
from slicefine_pl.scaling.advice_request import AdviceRequest, DenseModel
from slicefine_pl.scaling.devices import DEVICES, device_flops
from slicefine_pl.scaling.extrapolation import advice_warnings
from slicefine_pl.scaling.files import SavedLaw, read_law

TOKENS_PER_IMAGE = 196  # a 224-pixel image in patches of 16
TOKENS_PER_STEP, IMAGES_PER_STEP = 128 * 512, 1024  # the T5 runs of the paper; a usual batch of images

EXAMPLE = """example:
  slicefine advise --law t5 --parameters 62M --data 10B --hours 72 --device a100 --devices 8 --plot advice.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``slicefine advise``."""
    parser.description = (
        "The best sparsity for a size, data, a budget and hardware, with what it costs and what it buys."
    )
    parser.epilog = EXAMPLE
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--law", required=True, help="'vit' (images), 't5' (tokens), or a JSON file of slicefine fit-law")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--parameters", type=quantity, help="non-zero parameters to be served, without embeddings: 62M")
    size.add_argument("--model", help="take the size of this model: hub name, folder, timm/<name>, torchvision/<name>")
    add("--data", type=quantity, help="images or tokens available; without a budget, it is one dense pass over them")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--compute", type=quantity, help="training budget in FLOPs")
    budget.add_argument("--hours", type=quantity, help="training budget in hours on --device")
    add("--device", help=f"one of {', '.join(DEVICES)}")
    add("--devices", type=int, default=1, help="how many of them (default: 1)")
    add(
        "--utilization",
        type=float,
        default=0.4,
        help="share of the device's peak that training reaches; 0.4 is assumed",
    )
    add("--two-four", action=argparse.BooleanOptionalAction, help="hardware with 2:4 products (default: the device's)")
    add("--speedup", type=quantity, help="your own timing of a 2:4 step: dense time over sparse time")
    add("--dense-model", metavar="SIZE", help="a trained dense model: its parameters without embeddings, or its name")
    add("--dense-data", type=quantity, help="images or tokens that it was trained on")
    add(
        "--sunk-cost", action=argparse.BooleanOptionalAction, default=True, help="its training is paid, do not count it"
    )
    add("--tokens-per-image", type=quantity, default=TOKENS_PER_IMAGE, help="for laws of images (default: 196)")
    add("--items-per-step", type=quantity, help="images or tokens in a step (default: 1,024 images, 65,536 tokens)")
    add("--json", type=Path, help="write all numbers here")
    add("--plot", type=Path, help="write a picture of the contours of equal best sparsity here")


def run(arguments: argparse.Namespace) -> int:
    """Print the advice; returns the exit code."""
    saved = read_law(arguments.law)
    request = request_of(arguments, saved)
    answer = answer_to(saved, request)
    print(advice_text(saved, request, answer))
    if arguments.json:
        write_atomic(arguments.json, json.dumps(_plain(answer), indent=1, allow_nan=False) + "\n")
    if arguments.plot:
        from slicefine_pl.analysis.plots import save_figure
        from slicefine_pl.cli.scaling.plots import plot_advice

        sparsities = {found["cost"]: found["sparsity"] for found in answer["best"]}
        picture = plot_advice(saved, request.tokens_per_item, request.nonzero_params, request.flops, sparsities)
        save_figure(picture, arguments.plot, dpi=150)
    return 0


def request_of(arguments: argparse.Namespace, saved: SavedLaw) -> AdviceRequest:
    """Convert the flags to numbers.

    Raises:
        ValueError: Flags contradict each other, or the budget does not suffice.
    """
    images = saved.law.data_unit == "images"
    tokens_per_item = arguments.tokens_per_image if images else 1.0
    size = arguments.parameters or _parameters_of(arguments.model)
    device = DEVICES.get(arguments.device)
    if arguments.hours and not arguments.device:
        raise ValueError(f"hours={arguments.hours:g} needs a device; add --device, one of {', '.join(DEVICES)}.")
    if arguments.device and not device:
        raise ValueError(
            f"device={arguments.device!r} is unknown; choose one of {', '.join(DEVICES)}, or give --compute."
        )
    if arguments.hours:
        flops = device_flops(arguments.hours, arguments.device, arguments.devices, arguments.utilization)
    elif arguments.compute or arguments.data:
        flops = arguments.compute or 6 * size * arguments.data * tokens_per_item
    else:
        raise ValueError("no budget is given; add --data, --compute in FLOPs, or --hours with --device.")
    two_four = bool(device and device.two_four) if arguments.two_four is None else arguments.two_four
    if arguments.speedup and not two_four:
        raise ValueError(f"speedup={arguments.speedup:g} is the timing of a 2:4 step; add --two-four, or leave it out.")
    return AdviceRequest(
        nonzero_params=size,
        flops=flops,
        data=arguments.data or math.inf,
        tokens_per_item=tokens_per_item,
        items_per_step=arguments.items_per_step or (IMAGES_PER_STEP if images else TOKENS_PER_STEP),
        two_four=two_four,
        speedup=arguments.speedup,
        dense=_dense(arguments),
    )


def _dense(arguments: argparse.Namespace) -> DenseModel | None:
    if arguments.dense_model is None:
        if arguments.dense_data is not None or not arguments.sunk_cost:
            raise ValueError("--dense-data and --no-sunk-cost describe a dense model; name it with --dense-model.")
        return None
    if arguments.dense_data is None:
        raise ValueError(
            f"dense-model={arguments.dense_model} needs what it was trained on; add --dense-data, e.g. 2T."
        )
    try:
        parameters = quantity(arguments.dense_model)
    except argparse.ArgumentTypeError:
        parameters = _parameters_of(arguments.dense_model)
    return DenseModel(parameters, arguments.dense_data, arguments.sunk_cost)


def _parameters_of(model: str) -> float:
    from slicefine_pl.cli.scaling.model_size import count_parameters  # imports torch

    return count_parameters(model)


def answer_to(saved: SavedLaw, request: AdviceRequest) -> dict[str, Any]:
    """Compute every number and sentence of the answer."""
    priced: list[costs.Cost] = [costs.ideal, costs.masked_dense]
    if request.real_cost is not costs.masked_dense:
        priced.append(request.real_cost)
    found = [best_sparsity(saved, request, cost) for cost in priced]
    usable = usable_sparsity(saved, request)
    shown = usable or found[-1].sparsity or found[0].sparsity or 0.5
    rows = compare_with_dense(saved, request, shown)
    start = advise_start(saved, request)
    return {
        "law": saved.source,
        "request": asdict(request),
        "best": [asdict(each) for each in found],
        "usable_sparsity": usable,
        "compared_sparsity": shown,
        "comparisons": [asdict(row) for row in rows],
        "gains": {name: float(value) for name, value in asdict(gains(saved.law, shown)).items()},
        "budget_in_dense_optima": request.budget / float(saved.law.chinchilla_compute(request.nonzero_params)),
        "start": asdict(start),
        "verdict": verdict(saved, request, rows, usable, found[-1], start),
        "warnings": advice_warnings(saved, request, shown, start),
    }


def _plain(value: Any) -> Any:
    """Replace infinity, which JSON does not have, with ``None``."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
