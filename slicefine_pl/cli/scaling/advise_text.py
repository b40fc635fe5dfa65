"""Text of ``slicefine advise``: a verdict in sentences, and tables.

Ideal and real training cost are always shown next to each other. No speed-up is assumed that the user has not timed.
"""

import textwrap
from functools import partial
from typing import Any

from slicefine_pl.scaling import costs
from slicefine_pl.scaling.advice import TWO_FOUR, BestSparsity, Comparison, StartAdvice
from slicefine_pl.scaling.advice_request import AdviceRequest
from slicefine_pl.scaling.extrapolation import is_far
from slicefine_pl.scaling.files import SavedLaw
from slicefine_pl.scaling.units import format_count, format_number, format_percent
from slicefine_pl.text_table import text_table

WIDTH = 110  # columns of paragraphs
LIMITS = {"": "the law", "data": "your data", "fit": "the fit"}
NOTES = {"data": "your data: all are used", "fit": "the fit: no sparser run was fitted"}
LETTERS = (
    "L(S, N, D) = (a_S (1-S)^b_S + c_S) / N^b_N + (a_D / D)^b_D + c: S is the sparsity, N the non-zero parameters, D"
    " the training data; a_S, b_S, c_S and b_N shape the term of the size, a_D and b_D that of the data; c is the loss"
    " that neither removes."
)


def verdict(
    saved: SavedLaw,
    request: AdviceRequest,
    rows: list[Comparison],
    usable: float,
    real: BestSparsity,
    start: StartAdvice,
) -> str:
    """Recommend what to do, and say why: first by hardware, then by training cost, then by the start."""
    far = is_far(saved, request, rows[0].data)
    doubt = "No law covers this case: believe what follows from the hardware, not the losses. " if far else ""
    if not request.two_four:
        return doubt + _without_pattern(rows, start)
    if start.from_dense:
        return doubt + _pruned(start)
    return doubt + _from_scratch(request, rows, usable, real)


def _without_pattern(rows: list[Comparison], start: StartAdvice) -> str:
    sparse, parent = rows[0], rows[5]
    origin = "your dense model" if start.from_dense else "scratch"
    return (
        "Train dense. Without 2:4 products your hardware multiplies zeros: a sparse model trains and runs at "
        f"the cost of its dense parent with {format_count(parent.parameters)} parameters, whose expected loss is "
        f"{parent.loss:#.4g} "
        f"against {sparse.loss:#.4g}. Sparsity pays only where stored bytes count; then start from {origin}."
    )


def _pruned(start: StartAdvice) -> str:
    if abs(start.sparsity - TWO_FOUR) < 0.01:
        pattern = "That fits 2:4, which is exactly 50 %; measure on your hardware what 2:4 gains at inference."
    else:
        pattern = "That does not fit 2:4, which is exactly 50 %: your hardware will multiply the zeros."
    return f"Prune your dense model to {format_percent(start.sparsity)}: {start.reason}. {pattern}"


def _from_scratch(request: AdviceRequest, rows: list[Comparison], usable: float, real: BestSparsity) -> str:
    timed = "as you timed it" if request.speedup else "with no speed-up, as you gave no timing (--speedup)"
    if not usable:
        return (
            f"Train dense at {format_count(request.nonzero_params)} parameters: at the real cost of training, {timed}, "
            "more data lowers the loss further than 2:4 sparsity."
        )
    return (
        f"Train {format_percent(usable)} sparse in the 2:4 pattern, from scratch, pruning as you train. "
        f"{_beyond(real)}At the real cost of training, {timed}, the "
        f"expected loss is {rows[0].loss:#.4g}; a dense model with as many non-zeros "
        f"reaches {real.dense_loss:#.4g} on the same budget and data."
    )


def _beyond(real: BestSparsity) -> str:
    if real.sparsity <= TWO_FOUR:
        return ""
    return f"{format_percent(real.sparsity)} would be better, but 2:4 can use exactly 50 %. "


def advice_text(saved: SavedLaw, request: AdviceRequest, answer: dict[str, Any]) -> str:
    """Format the whole answer for printing: advice first, then the numbers behind it, then warnings."""
    unit = saved.law.data_unit
    at_hand = f"{format_count(request.data)} {unit} available" if request.data < float("inf") else f"unlimited {unit}"
    wrapped = partial(textwrap.fill, width=WIDTH)
    lines = [
        wrapped(f"Advice. {answer['verdict']}"),
        "",
        f"{format_count(request.nonzero_params)} non-zero parameters, {format_count(request.flops)} FLOPs, {at_hand}, "
        f"{'with' if request.two_four else 'without'} 2:4 products.",
        f"Law: {saved.source}.",
        wrapped(LETTERS),
        "",
        _best_table(answer, unit),
        wrapped(_data_line(request, unit) + _budget_line(saved, answer["budget_in_dense_optima"])),
        "",
        _comparison_table(answer, unit),
        wrapped(_gain_line(answer)),
        "",
        wrapped(_start_line(request, answer["start"], unit)),
        "",
        *(wrapped(f"Warning. {line}") for line in answer["warnings"]),
    ]
    return "\n".join(lines)


def _best_table(answer: dict[str, Any], unit: str) -> str:
    headings = ("cost", "set by", "best", "90 % interval", "loss within 0.5 %", unit, "loss, 90 % interval", "dense")
    rows = []
    for found in answer["best"]:
        drawn = found["loss_interval"]
        rows.append(
            (
                found["cost"],
                LIMITS[found["limited_by"]],
                format_percent(found["sparsity"]),
                _span(found["interval"]) if drawn else "no bootstrap",
                _span(found["near_best"]),
                format_count(found["data"]),
                f"{found['loss']:#.4g}" + (f", {drawn[0]:#.4g} … {drawn[1]:#.4g}" if drawn else ""),
                f"{found['dense_loss']:#.4g}",
            )
        )
    limits = {found["limited_by"] for found in answer["best"]}
    caption = "; ".join(words for kind, words in NOTES.items() if kind in limits)
    return text_table(headings, [rows], numbers_from=2, title="Best sparsity for this budget", caption=caption)


def _data_line(request: AdviceRequest, unit: str) -> str:
    if request.data == float("inf"):
        return ""
    passes = request.budget / (6 * request.nonzero_params * request.data)
    short = (
        "data are scarce, so compute is better spent on sparsity" if passes > 1 else "compute is scarce, data are not"
    )
    return f"The budget is {format_number(passes)} dense passes over your {unit}: {short}. "


def _budget_line(saved: SavedLaw, multiple: float) -> str:
    ideal, real = (float(saved.law.contour(0.5, cost)) for cost in (costs.ideal, costs.masked_dense))
    return (
        f"It is {format_number(multiple)} times the dense-optimal budget for this size; with unlimited data, 50 % is "
        f"best at {format_number(ideal)} times (ideal) and at {format_number(real)} times (masked dense)."
    )


def _comparison_table(answer: dict[str, Any], unit: str) -> str:
    own = answer["comparisons"][0]["loss"]
    rows = []
    for row in answer["comparisons"]:
        data = format_count(row["data"]) + ("" if row["enough_data"] else " *")
        gap = row["loss"] - own
        word = "-" if abs(gap) < 5e-6 else f"{abs(gap):.2g} {'better' if gap > 0 else 'worse'}"
        rows.append((row["against"], format_count(row["parameters"]), data, f"{row['loss']:#.4g}", word))
    sparsity = format_percent(answer["compared_sparsity"])
    enough = all(row["enough_data"] for row in answer["comparisons"])
    return text_table(
        ("what is equal", "non-zero parameters", unit, "expected loss", "sparse is"),
        [rows],
        numbers_from=1,
        title=f"{sparsity} sparse at your hardware's cost, compared with dense models",
        caption="" if enough else "* more data than available; repeated data are worth less",
    )


def _gain_line(answer: dict[str, Any]) -> str:
    ratios = answer["gains"]
    return (
        f"On equal data it is worth a dense model of {ratios['equal_inference']:.2f} times its non-zeros (Frantar et "
        f"al.), of {ratios['average_parameters']:.2f} times by the average parameters of Jin et al. Compared with a "
        f"dense model of equal ideal cost, that is {ratios['equal_ideal_cost']:.2f} times; of equal real cost, "
        f"{ratios['equal_real_cost']:.2f} times."
    )


def _start_line(request: AdviceRequest, start: dict[str, Any], unit: str) -> str:
    if request.dense is None or start["optimistic"] is None:
        loss = f"{start['scratch']:#.4g}"
        return f"From dense or from scratch: from scratch (expected loss {loss}), because {start['reason']}."
    return (
        f"From dense or from scratch: pruned to {format_percent(start['sparsity'])} and retrained on "
        f"{format_count(start['data'])} {unit}, the dense model reaches between {start['optimistic']:#.4g} "
        f"(all of its training data count) and {start['pessimistic']:#.4g} (none count); "
        f"from scratch at the same real cost {start['scratch']:#.4g}. "
        "This range is ours: no coefficients are known for pretrained starts."
    )


def _span(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.0f} … {100 * interval[1]:.0f} %"
