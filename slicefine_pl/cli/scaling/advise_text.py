"""The advice in words and tables.

Answers one question: how is it told?  Ideal and real cost always stand side by side; no speed is promised that was not
timed.
"""

import textwrap
from functools import partial
from typing import Any

from slicefine_pl.scaling import costs
from slicefine_pl.scaling.advice import FAR, TWO_FOUR, Best, Question, Row, Start, strayed
from slicefine_pl.scaling.files import KnownLaw
from slicefine_pl.scaling.units import percent, plain, readable
from slicefine_pl.text_table import text_table

WIDTH = 110  # columns of paragraphs
LIMITS = {"": "the law", "data": "your data", "fit": "the fit"}
NOTES = {"data": "your data: all of them are used", "fit": "the fit: no sparser run was fitted"}
LETTERS = (
    "L(S, N, D) = (a_S (1-S)^b_S + c_S) / N^b_N + (a_D / D)^b_D + c: S is the sparsity, N the non-zero parameters, D"
    " the training data; a_S, b_S, c_S and b_N shape the term of the size, a_D and b_D that of the data; c is the loss"
    " that neither removes."
)


def verdict(known: KnownLaw, question: Question, rows: list[Row], usable: float, real: Best, told: Start) -> str:
    """What to do and why, in a few sentences: hardware first, then the cost of training, then the start."""
    sizes = strayed(question.nonzero_params, known.ranges.nonzero_params)
    far = max(sizes, strayed(rows[0].data, known.ranges.data)) > FAR
    doubt = "No law covers this case: believe what follows from the hardware, not the losses. " if far else ""
    if not question.two_four:
        return doubt + _without_pattern(rows, told)
    if told.from_dense:
        return doubt + _pruned(told)
    return doubt + _from_scratch(question, rows, usable, real)


def _without_pattern(rows: list[Row], told: Start) -> str:
    sparse, parent = rows[0], rows[5]
    start = "the dense model at hand" if told.from_dense else "scratch"
    return (
        "Train dense. Without 2:4 products your hardware multiplies zeros: a sparse model trains and serves at "
        f"the cost of its dense parent of {readable(parent.parameters)} parameters, whose expected loss is "
        f"{parent.loss:#.4g} "
        f"against {sparse.loss:#.4g}. Sparsity pays only where stored bytes count; then start from {start}."
    )


def _pruned(told: Start) -> str:
    if abs(told.sparsity - TWO_FOUR) < 0.01:
        pattern = "That fits 2:4, which is exactly 50 %; what 2:4 gains at inference is to be timed on your hardware."
    else:
        pattern = "That does not fit 2:4, which is exactly 50 %: your hardware will multiply the zeros."
    return f"Prune the dense model at hand to {percent(told.sparsity)}: {told.reason}. {pattern}"


def _from_scratch(question: Question, rows: list[Row], usable: float, real: Best) -> str:
    timed = "as you timed it" if question.speedup else "with no speed-up, as you gave no timing (--speedup)"
    if not usable:
        return (
            f"Train dense at {readable(question.nonzero_params)} parameters: at the real cost of training, {timed}, "
            "the budget is worth more as data than as 2:4 sparsity."
        )
    return (
        f"Train {percent(usable)} sparse in the 2:4 pattern, from scratch, pruning as you train. "
        f"{_beyond(real)}At the real cost of training, {timed}, the "
        f"expected loss is {rows[0].loss:#.4g}; a dense model of as many non-zeros "
        f"reaches {real.dense_loss:#.4g} on the same budget and data."
    )


def _beyond(real: Best) -> str:
    if real.sparsity <= TWO_FOUR:
        return ""
    return f"{percent(real.sparsity)} would be better, but 2:4 makes use of 50 % and no more. "


def advice_text(known: KnownLaw, question: Question, answer: dict[str, Any]) -> str:
    """The whole answer, ready to be printed."""
    unit = known.law.data_unit
    at_hand = f"{readable(question.data)} {unit} at hand" if question.data < float("inf") else f"{unit} without limit"
    wrapped = partial(textwrap.fill, width=WIDTH)
    lines = [
        f"{readable(question.nonzero_params)} non-zero parameters, {readable(question.flops)} FLOPs, {at_hand}, "
        f"{'with' if question.two_four else 'without'} 2:4 products.",
        f"Law: {known.source}.",
        wrapped(LETTERS),
        "",
        _best_table(answer, unit),
        wrapped(_data_line(question, unit) + _budget_line(known, answer["budget_in_dense_optima"])),
        "",
        _comparison_table(answer, unit),
        wrapped(_gain_line(answer)),
        "",
        wrapped(_start_line(question, answer["start"], unit)),
        "",
        wrapped(f"Advice. {answer['verdict']}"),
        *(wrapped(f"Mind. {line}") for line in answer["warnings"]),
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
                LIMITS[found["held_by"]],
                percent(found["sparsity"]),
                _span(found["interval"]) if drawn else "no bootstrap",
                _span(found["near_best"]),
                readable(found["data"]),
                f"{found['loss']:#.4g}" + (f", {drawn[0]:#.4g} … {drawn[1]:#.4g}" if drawn else ""),
                f"{found['dense_loss']:#.4g}",
            )
        )
    limits = {found["held_by"] for found in answer["best"]}
    caption = "; ".join(words for kind, words in NOTES.items() if kind in limits)
    return text_table(headings, [rows], numbers_from=2, title="Best sparsity for this budget", caption=caption)


def _data_line(question: Question, unit: str) -> str:
    if question.data == float("inf"):
        return ""
    passes = question.budget / (6 * question.nonzero_params * question.data)
    short = "data are short, and sparsity is what compute can still buy" if passes > 1 else "compute is short, not data"
    return f"The budget is {plain(passes)} dense passes over your {unit}: {short}. "


def _budget_line(known: KnownLaw, multiple: float) -> str:
    ideal, real = (float(known.law.contour(0.5, cost)) for cost in (costs.ideal, costs.masked_dense))
    return (
        f"It is {plain(multiple)} times the dense-optimal budget for this size; with unlimited data, 50 % is best at "
        f"{plain(ideal)} times (ideal) and at {plain(real)} times (masked dense)."
    )


def _comparison_table(answer: dict[str, Any], unit: str) -> str:
    own = answer["comparisons"][0]["loss"]
    rows = []
    for row in answer["comparisons"]:
        data = readable(row["data"]) + ("" if row["enough_data"] else " *")
        gap = row["loss"] - own
        word = "-" if abs(gap) < 5e-6 else f"{abs(gap):.2g} {'better' if gap > 0 else 'worse'}"
        rows.append((row["against"], readable(row["parameters"]), data, f"{row['loss']:#.4g}", word))
    enough = all(row["enough_data"] for row in answer["comparisons"])
    return text_table(
        ("what is equal", "non-zero parameters", unit, "expected loss", "sparse is"),
        [rows],
        numbers_from=1,
        title=f"{percent(answer['compared_sparsity'])} sparse, as your hardware pays for it, against dense models",
        caption="" if enough else "* more data than you have: repeated data are worth less",
    )


def _gain_line(answer: dict[str, Any]) -> str:
    told = answer["gains"]
    return (
        f"On equal data it is worth a dense model of {told['equal_inference']:.2f} times its non-zeros (Frantar et "
        f"al.), of {told['average_parameters']:.2f} times in Jin et al.'s view of average parameters. Against a dense "
        f"model of equal ideal cost that is {told['equal_ideal_cost']:.2f} times, of equal real cost "
        f"{told['equal_real_cost']:.2f} times."
    )


def _start_line(question: Question, told: dict[str, Any], unit: str) -> str:
    if question.dense is None or told["optimistic"] is None:
        return f"From dense or from scratch: from scratch (expected loss {told['scratch']:#.4g}), as {told['reason']}."
    return (
        f"From dense or from scratch: pruned to {percent(told['sparsity'])} and retrained on "
        f"{readable(told['data'])} {unit}, the dense model ends between {told['optimistic']:#.4g} "
        f"(all it has seen counts) and {told['pessimistic']:#.4g} (none counts); "
        f"from scratch at the same real cost {told['scratch']:#.4g}. "
        "The bracket is ours: no coefficients for pretrained starts are known."
    )


def _span(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.0f} … {100 * interval[1]:.0f} %"
