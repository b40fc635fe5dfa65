"""``slicefine advise``: how sparse, at what cost, and against which dense model, before the run.

Answers one question: what did the user ask, and what are they told?  The numbers come from ``advice``.
"""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slicefine_pl.cli.scaling.advise_text import advice_text, verdict
from slicefine_pl.files.atomic import write_atomic
from slicefine_pl.scaling import costs, gains
from slicefine_pl.scaling.advice import Dense, Question, best, comparisons, start, usable_sparsity, warnings
from slicefine_pl.scaling.devices import DEVICES, flops_of
from slicefine_pl.scaling.files import KnownLaw, read_law
from slicefine_pl.scaling.units import quantity

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
    add("--data", type=quantity, help="images or tokens at hand; alone, the budget is one dense pass over them")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--compute", type=quantity, help="training budget in FLOPs")
    budget.add_argument("--hours", type=quantity, help="training budget in hours on --device")
    add("--device", help=f"one of {', '.join(DEVICES)}")
    add("--devices", type=int, default=1, help="how many of them (default: 1)")
    add(
        "--utilisation",
        type=float,
        default=0.4,
        help="share of the device's peak that training reaches; 0.4 is assumed",
    )
    add("--two-four", action=argparse.BooleanOptionalAction, help="hardware with 2:4 products (default: the device's)")
    add("--speedup", type=quantity, help="your own timing of a 2:4 step: dense time over sparse time")
    add("--dense-at-hand", metavar="SIZE", help="a trained dense model: its parameters without embeddings, or its name")
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
    known = read_law(arguments.law)
    question = asked(arguments, known)
    answer = answered(known, question)
    print(advice_text(known, question, answer))
    if arguments.json:
        write_atomic(arguments.json, json.dumps(_plain(answer), indent=1, allow_nan=False) + "\n")
    if arguments.plot:
        from slicefine_pl.analysis.plots import save_figure
        from slicefine_pl.cli.scaling.plots import plot_advice

        sparsities = {found["cost"]: found["sparsity"] for found in answer["best"]}
        picture = plot_advice(known, question.per_item, question.nonzero_params, question.flops, sparsities)
        save_figure(picture, arguments.plot, dpi=150)
    return 0


def asked(arguments: argparse.Namespace, known: KnownLaw) -> Question:
    """What the flags mean in numbers.

    Raises:
        ValueError: Flags that contradict each other, or a budget that is not possible.
    """
    images = known.law.data_unit == "images"
    per_item = arguments.tokens_per_image if images else 1.0
    size = arguments.parameters or _parameters_of(arguments.model)
    device = DEVICES.get(arguments.device)
    if arguments.hours and not arguments.device:
        raise ValueError(f"hours={arguments.hours:g} need a device; add --device, one of {', '.join(DEVICES)}.")
    if arguments.device and not device:
        raise ValueError(
            f"device={arguments.device!r} is unknown; choose one of {', '.join(DEVICES)}, or give --compute."
        )
    if arguments.hours:
        flops = flops_of(arguments.hours, arguments.device, arguments.devices, arguments.utilisation)
    elif arguments.compute or arguments.data:
        flops = arguments.compute or 6 * size * arguments.data * per_item
    else:
        raise ValueError("no budget is given; add --data, --compute in FLOPs, or --hours with --device.")
    two_four = bool(device and device.two_four) if arguments.two_four is None else arguments.two_four
    if arguments.speedup and not two_four:
        raise ValueError(f"speedup={arguments.speedup:g} is that of 2:4 products; add --two-four, or leave it out.")
    return Question(
        nonzero_params=size,
        flops=flops,
        data=arguments.data or math.inf,
        per_item=per_item,
        items_per_step=arguments.items_per_step or (IMAGES_PER_STEP if images else TOKENS_PER_STEP),
        two_four=two_four,
        speedup=arguments.speedup,
        dense=_dense(arguments),
    )


def _dense(arguments: argparse.Namespace) -> Dense | None:
    if arguments.dense_at_hand is None:
        if arguments.dense_data is not None or not arguments.sunk_cost:
            raise ValueError("--dense-data and --no-sunk-cost speak of a dense model; name it with --dense-at-hand.")
        return None
    if arguments.dense_data is None:
        raise ValueError(
            f"dense-at-hand={arguments.dense_at_hand} needs what it was trained on; add --dense-data, e.g. 2T."
        )
    try:
        parameters = quantity(arguments.dense_at_hand)
    except argparse.ArgumentTypeError:
        parameters = _parameters_of(arguments.dense_at_hand)
    return Dense(parameters, arguments.dense_data, arguments.sunk_cost)


def _parameters_of(model: str) -> float:
    from slicefine_pl.cli.scaling.model_size import parameters_of  # imports torch

    return parameters_of(model)


def answered(known: KnownLaw, question: Question) -> dict[str, Any]:
    """All numbers and words of the answer."""
    priced: list[costs.Cost] = [costs.ideal, costs.masked_dense]
    if question.real_cost is not costs.masked_dense:
        priced.append(question.real_cost)
    found = [best(known, question, cost) for cost in priced]
    usable = usable_sparsity(known, question)
    shown = usable or found[-1].sparsity or found[0].sparsity or 0.5
    rows = comparisons(known, question, shown)
    beginning = start(known, question)
    return {
        "law": known.source,
        "question": asdict(question),
        "best": [asdict(each) for each in found],
        "usable_sparsity": usable,
        "compared_sparsity": shown,
        "comparisons": [asdict(row) for row in rows],
        "gains": {name: float(value) for name, value in asdict(gains(known.law, shown)).items()},
        "budget_in_dense_optima": question.budget / float(known.law.chinchilla_compute(question.nonzero_params)),
        "start": asdict(beginning),
        "verdict": verdict(known, question, rows, usable, found[-1], beginning),
        "warnings": warnings(known, question, shown, beginning),
    }


def _plain(value: Any) -> Any:
    """JSON knows no infinity: data without a limit are null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
