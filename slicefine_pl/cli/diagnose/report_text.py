"""The report of ``slicefine diagnose`` in plain words.

Answers one question: what do the numbers support, and what not?  Every sentence is chosen by the numbers, and those of
the network without pretraining stand beside: what holds there as well says nothing of pretraining.  Each paragraph
begins with what the finding means for the reader.
"""

import math
from collections.abc import Mapping
from typing import Any

ALIKE = 1.5  # two numbers within this factor are called alike
MOST = 0.5  # share of the slices from which on "most" of them help
Numbers = Mapping[str, Any]


def summary(own: Numbers, control: Numbers | None, setup: Numbers) -> dict[str, str]:
    """Which rank, which layers, how much to expect: a paragraph each, its meaning for the reader first."""
    return {
        "Which rank?": _rank(own, control, setup),
        "Which layers?": _layers(own),
        "How much to expect?": _expect(own, setup),
        "Is every slice a winner?": _hypothesis(own, control),
    }


def _rank(own: Numbers, control: Numbers | None, setup: Numbers) -> str:
    samples, energy = _energies(own)
    tasks = energy["k_task"]
    told = _rank_in_short(setup["rank"], _whole(tasks["0.9"])) + (
        f"The theory asks for a rank of at least k_task(τ), and leaves τ open. Over the layers (median, {samples} as "
        f"samples) it is {_whole(tasks['0.5'])} at τ = 0.5, {_whole(tasks['0.8'])} at 0.8 and "
        f"{_whole(tasks['0.9'])} at 0.9; for 0.9 it runs from {tasks['0.9']['least']} to {tasks['0.9']['most']}. "
        f"Read so (our reading), the suggestion is rank {_whole(tasks['0.9'])} at τ = 0.9. A slice of rank "
        f"{setup['rank']} is as many directions as hold {energy['cev_at_rank']:.0%} of the variance. "
    )
    if control is not None and (other := control["task_energy"]["summary"][samples]) is not None:
        ratio = other["k_task"]["0.9"]["median"] / tasks["0.9"]["median"]
        if 1 / ALIKE < ratio < ALIKE:
            told += (
                f"Without pretraining it is {_whole(other['k_task']['0.9'])}, about the same: here k_task speaks of "
                "the data and the architecture, not of pretraining. "
            )
        else:
            told += f"Without pretraining it is {_whole(other['k_task']['0.9'])}. "
    return told + "A rank is chosen best by two short runs on validation data; the cost of a step hardly depends on it."


def _rank_in_short(rank: int, suggested: int) -> str:
    if rank >= suggested:
        return f"In short: your rank of {rank} covers the suggested {suggested}; you need no larger one. "
    return f"In short: your rank of {rank} is below the suggested {suggested}; train with both and keep the better. "


def _layers(own: Numbers) -> str:
    shares = own["slice_gradients"]["shares"]
    ranked = sorted(shares, key=lambda name: -shares[name]["energy"] / shares[name]["parameters"])
    top = ranked[: max(1, len(ranked) // 4)]
    energy = sum(shares[name]["energy"] for name in top)
    size = sum(shares[name]["parameters"] for name in top)
    first, last = ranked[0], ranked[-1]
    high, low = (shares[name]["energy"] / shares[name]["parameters"] for name in (first, last))
    return _layers_in_short(energy / size, first) + (
        f"The quarter of the layers with the densest gradient holds {energy:.0%} of its energy in {size:.0%} of the "
        f"parameters. Densest is {first} ({high:.3g} times its share), thinnest {last} ({low:.3g} times). This is one "
        "gradient at the start of training: it tells where the first steps move the loss most, not where they end."
    )


def _layers_in_short(density: float, densest: str) -> str:
    if density < ALIKE:
        return "In short: slice all layers; no group of them stands out. "
    return f"In short: if you slice some layers only, take the densest quarter, {densest} among them. "


def _expect(own: Numbers, setup: Numbers) -> str:
    together, dense = (own["slice_gradients"][step] for step in ("together", "everything"))
    told = _expect_in_short(together["decrease"], dense["decrease"]) + (
        f"The head alone, {setup['head']}, reaches {setup['metric']} {setup['scores']['held out']:.3f} on held-out "
        "examples: what fine-tuning has to beat. "
    )
    if dense["decrease"] <= 0:
        told += "No step of all weights along the gradient lowered the loss, however small: look at the data. "
    else:
        ratio = together["decrease"] / dense["decrease"]
        told += (
            f"One step on {setup['slices_together']} slices of rank {setup['rank']}, {together['parameters']:.2%} of "
            f"the parameters, lowers the loss by {together['decrease']:.2e}, the dense step of the same size by "
            f"{dense['decrease']:.2e}: {ratio:.1%} of it. "
        )
        told += "So plain gradient steps on slices need a larger step size to move as far. " if ratio < 0.5 else ""
    return told + "No number here predicts the accuracy after training."


def _expect_in_short(slices: float, dense: float) -> str:
    if dense <= 0:
        return "In short: check your data and labels before you train. "
    if slices < 0.5 * dense:
        return "In short: give slices a larger learning rate than full fine-tuning. "
    return "In short: the learning rate of full fine-tuning is a good start for slices. "


def _hypothesis(own: Numbers, control: Numbers | None) -> str:
    told = _hypothesis_in_short(own["slice_gradients"]["winning_full"])
    told += "".join(_winning(each, words) for each, words in ((own, "Here"), (control, "Without pretraining")) if each)
    told += (
        "That a small step on any slice lowers the loss it was computed on is calculus, and holds for every network "
        "with a gradient; what can fail are held-out examples and full steps. Candidates are no independent trials: "
        "they share their examples. "
    )
    controls = own["spectral_balance"]["controls"]
    if "row" not in controls.get("pretrained", {}):
        return told
    mine, random = (controls[name]["row"]["median"]["spread_of_means"] for name in ("pretrained", "Gaussian"))
    balanced = mine < ALIKE * random
    return told + (
        f"Spectral balance: the spread of the row groups' means is {mine:.3g} (median), that of a random matrix "
        f"{random:.3g}: the weights are {'as balanced as' if balanced else 'less balanced than'} chance."
    )


def _hypothesis_in_short(steps: Numbers) -> str:
    if not steps["clear"]:
        return "In short: the steps are too small to tell good slices from bad ones. "
    helped = f"{steps['held_out_lower']:.0%} of the slices help on unseen examples after one full step"
    if steps["held_out_lower"] >= MOST:
        return f"In short: {helped}, so it matters little where a slice stands. "
    return f"In short: {helped}, so it matters where a slice stands, or the steps are too large. "


def _winning(numbers: Numbers, words: str) -> str:
    found = numbers["slice_gradients"]
    told = f"{words}, of {len(found['slices'])} candidate slices, "
    parts = []
    for kind, name in (("small", "winning"), ("full", "winning_full")):
        steps = found[name]
        if steps["clear"]:
            parts.append(
                f"with a {kind} step {steps['own']:.0%} lower the loss on their own examples (median: "
                f"{steps['over_promise']:.0%} of what the gradient says); on held-out ones "
                f"{steps['held_out_lower']:.0%} lower it and {steps['held_out_higher']:.0%} raise it "
                "by more than two standard errors"
            )
        if (lost := len(found["slices"]) - steps["clear"]) and kind == "small":
            parts.append(f"{lost} promise less than rounding ({found['resolution']:.0e}) and are left out there")
    return told + "; ".join(parts) + ". "


def captions(own: Numbers, control: Numbers | None, setup: Numbers) -> dict[str, dict[str, str]]:
    """For each picture one sentence on what it means, what of it is theory, and what is measured."""
    kernel = own["kernel"]
    beside = "" if control is None else _control_kernel(control["kernel"])
    return {
        "spectra": {
            "meaning": "If a pretrained weight were balanced, its groups would lie as far left as the random controls; "
            "'sorted by norm' and 'collapsed' are unbalanced by construction and show that the numbers can fail.",
            "theory": "SliceFine expects eigenvalues of W_g W_gᵀ to be alike in all groups; a random matrix has that "
            "by chance (Marchenko and Pastur), so balance alone proves nothing about pretraining.",
            "measured": "Both spreads for every matrix; 'random groups' are groups as order='random' takes slices.",
        },
        "energy": {
            "meaning": "Curves that rise early mean inputs in few directions; where the dashed line meets a curve is "
            "what a slice of your rank can touch, if one line of a slice stands for one direction.",
            "theory": "A slice of rank ≥ k_task(τ) touches all task directions; which features and which τ are meant "
            "is our reading.",
            "measured": "The variance of each layer's inputs on your data, frozen network, padding left out.",
        },
        "kernel": {
            "meaning": f"How much of the network's tangent kernel {setup['rank']} random columns of each layer keep: "
            f"they hold {kernel['parameters']:.2%} of the numbers and {kernel['trace']:.2%} of the trace, and their "
            f"kernel has cosine {kernel['alignment']:.3f} with that of all weights, whose effective rank is "
            f"{kernel['dense']['effective_rank']:.1f}{beside} (1: the same but for size).",
            "theory": "In the lazy regime, training follows the kernel: with the same kernel, slices learn what full "
            "fine-tuning learns, at a rate smaller by the trace. But a kernel of one direction (effective rank 1) is "
            "the same for any slice.",
            "measured": f"K = J Jᵀ on {setup['kernel_samples']} training examples, before training; whether it stays "
            "is for the drift over a run to tell.",
        },
        "winners": {
            "meaning": "Points on the dashed line do what the gradient promises, below zero a step raised the loss; "
            "the lower right shows what is left of the promise when one slice has to do the work of all weights.",
            "theory": "The dashed line: to first order a step lowers the loss by lr · ||g||², whatever the network.",
            "measured": "The loss before and after one gradient step on one slice alone: small steps, all of one size, "
            "and full ones, each so large that the slice should lower the loss as much as the dense step should.",
        },
    }


def _control_kernel(kernel: Numbers) -> str:
    return f"; without pretraining {kernel['alignment']:.3f} at effective rank {kernel['dense']['effective_rank']:.1f}"


def _whole(counts: Mapping[str, float]) -> int:
    """The median, rounded up: of an even number of layers it may lie between two ranks."""
    return math.ceil(counts["median"])


def _energies(own: Numbers) -> tuple[str, Any]:
    """Over tokens, or, where there are too few, over examples."""
    found = own["task_energy"]["summary"]
    samples = "tokens" if found["tokens"] is not None else "examples"
    return samples, found[samples]
