"""The text of the report of ``slicefine diagnose``: conclusions and captions.

The numbers choose every sentence. The network without pretraining is the control: what holds for it as well does not
come from pretraining. Each paragraph begins with what the finding means for the reader.
"""

import math
from collections.abc import Mapping
from typing import Any

ALIKE = 1.5  # two numbers within this factor are called similar
MOST = 0.5  # share of the slices from which "most" of them help
Numbers = Mapping[str, Any]


def conclusions(own: Numbers, control: Numbers | None, setup: Numbers) -> dict[str, str]:
    """Return one paragraph per question of the reader.

    Args:
        own: Numbers of the network, from ``to_json_values``.
        control: Numbers of the network without pretraining, if it was measured.
        setup: What was measured, and how.
    """
    return {
        "Which rank?": _rank(own, control, setup),
        "Which layers?": _layers(own),
        "How much to expect?": _expect(own, setup),
        "Is every slice a winner?": _hypothesis(own, control),
    }


def _rank(own: Numbers, control: Numbers | None, setup: Numbers) -> str:
    samples, energy = _energies(own)
    tasks = energy["k_task"]
    text = _rank_in_short(setup["rank"], _whole(tasks["0.9"])) + (
        "The theory asks for a rank of at least k_task(τ), and does not say which τ. The median over the layers, with "
        f"{samples} as samples, is {_whole(tasks['0.5'])} at τ = 0.5, {_whole(tasks['0.8'])} at 0.8 and "
        f"{_whole(tasks['0.9'])} at 0.9. At 0.9 it ranges from {tasks['0.9']['least']} to {tasks['0.9']['most']}. "
        f"We read this as a suggestion of rank {_whole(tasks['0.9'])}, at τ = 0.9. A slice of rank {setup['rank']} has "
        f"as many directions as contain {energy['cev_at_rank']:.0%} of the variance. "
    )
    if control is not None and (other := control["task_energy"]["summary"][samples]) is not None:
        ratio = other["k_task"]["0.9"]["median"] / tasks["0.9"]["median"]
        text += f"Without pretraining it is {_whole(other['k_task']['0.9'])}"
        if 1 / ALIKE < ratio < ALIKE:
            text += ", about the same: here k_task describes the data and the architecture, not the pretraining. "
        else:
            text += ". "
    return text + (
        "To choose a rank, compare two short runs on validation data. The cost of a step hardly depends on the rank."
    )


def _rank_in_short(rank: int, suggested: int) -> str:
    if rank >= suggested:
        return f"In short: your rank of {rank} covers the suggested {suggested}; you do not need a larger one. "
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
        f"The quarter of the layers with the densest gradient has {energy:.0%} of the gradient's energy and {size:.0%} "
        f"of the parameters. The densest layer is {first} ({high:.3g} times its share), the least dense {last} "
        f"({low:.3g} times). This is one gradient at the start of training: it shows where the first steps change the "
        "loss most, not where they end."
    )


def _layers_in_short(density: float, densest: str) -> str:
    if density < ALIKE:
        return "In short: slice all layers; none of them stand out. "
    return f"In short: if you slice only some layers, take the densest quarter, which includes {densest}. "


def _expect(own: Numbers, setup: Numbers) -> str:
    together, dense = (own["slice_gradients"][step] for step in ("together", "everything"))
    text = _expect_in_short(together["decrease"], dense["decrease"]) + (
        f"The head alone, which {setup['head']}, reaches {setup['metric']} {setup['scores']['held out']:.3f} on "
        "held-out examples. Fine-tuning has to exceed that. "
    )
    if dense["decrease"] <= 0:
        text += "No step of all weights along the gradient lowered the loss, even the smallest: check the data. "
    else:
        ratio = together["decrease"] / dense["decrease"]
        text += (
            f"One step on {setup['slices_together']} slices of rank {setup['rank']}, {together['parameters']:.2%} of "
            f"the parameters, lowers the loss by {together['decrease']:.2e}. The dense step of the same size lowers it "
            f"by {dense['decrease']:.2e}, so the slices achieve {ratio:.1%} of it. "
        )
        text += "Plain gradient steps on slices need a larger step size to move as far. " if ratio < 0.5 else ""
    return text + "None of these numbers predicts the accuracy after training."


def _expect_in_short(slices: float, dense: float) -> str:
    if dense <= 0:
        return "In short: check your data and labels before you train. "
    if slices < 0.5 * dense:
        return "In short: give slices a larger learning rate than full fine-tuning. "
    return "In short: the learning rate of full fine-tuning is a good start for slices. "


def _hypothesis(own: Numbers, control: Numbers | None) -> str:
    text = _hypothesis_in_short(own["slice_gradients"]["winning_full"])
    text += "".join(_winning(each, name) for each, name in ((own, "Here"), (control, "Without pretraining")) if each)
    text += (
        "A small step on any slice lowers the loss that its gradient was computed on: that is calculus, and holds "
        "for every network. What can fail are held-out examples and full steps. The candidates are not independent, "
        "because they share their examples. "
    )
    controls = own["spectral_balance"]["controls"]
    if "row" not in controls.get("pretrained", {}):
        return text
    mine, random = (controls[name]["row"]["median"]["spread_of_means"] for name in ("pretrained", "Gaussian"))
    balanced = mine < ALIKE * random
    return text + (
        f"Spectral balance: the median spread of the row groups' means is {mine:.3g}, and {random:.3g} for a random "
        f"matrix. The weights are {'as balanced as' if balanced else 'less balanced than'} chance."
    )


def _hypothesis_in_short(steps: Numbers) -> str:
    if not steps["clear"]:
        return "In short: the steps are too small to distinguish good slices from bad ones. "
    helped = f"{steps['held_out_lower']:.0%} of the slices help on unseen examples after one full step"
    if steps["held_out_lower"] >= MOST:
        return f"In short: {helped}, so the position of a slice matters little. "
    return f"In short: {helped}, so the position of a slice matters, or the steps are too large. "


def _winning(numbers: Numbers, name: str) -> str:
    found = numbers["slice_gradients"]
    count = len(found["slices"])
    text = f"{name}, of {count} candidate slices, "
    parts = []
    for kind, key in (("small", "winning"), ("full", "winning_full")):
        steps = found[key]
        if steps["clear"]:
            parts.append(
                f"with a {kind} step {steps['own']:.0%} lower the loss on their own examples (median: "
                f"{steps['over_promise']:.0%} of what the gradient predicts); on held-out examples "
                f"{steps['held_out_lower']:.0%} lower it and {steps['held_out_higher']:.0%} raise it "
                "by more than two standard errors"
            )
        if (lost := count - steps["clear"]) and kind == "small":
            parts.append(f"{lost} predict less than rounding error ({found['resolution']:.0e}) and are left out there")
    return text + "; ".join(parts) + ". "


def captions(own: Numbers, control: Numbers | None, setup: Numbers) -> dict[str, dict[str, str]]:
    """Return the caption of each plot: what it means, which part is theory, and what was measured.

    Args:
        own: Numbers of the network, from ``to_json_values``.
        control: Numbers of the network without pretraining, if it was measured.
        setup: What was measured, and how.
    """
    kernel = own["kernel"]
    compared = "" if control is None else _control_kernel(control["kernel"])
    return {
        "spectra": {
            "meaning": "If a pretrained weight were balanced, its groups would be as far left as the random controls. "
            "'sorted by norm' and 'collapsed' are unbalanced by construction, and show that the measure can fail.",
            "theory": "SliceFine expects the eigenvalues of W_g W_gᵀ to be similar in all groups. A random matrix has "
            "that property by chance (Marchenko and Pastur), so balance alone proves nothing about pretraining.",
            "measured": "Both spreads for every matrix. 'random groups' are groups as order='random' takes slices.",
        },
        "energy": {
            "meaning": "Curves that rise early mean inputs in few directions. Where the dashed line meets a curve is "
            "what a slice of your rank can reach, if one line of a slice counts as one direction.",
            "theory": "A slice of rank ≥ k_task(τ) reaches all task directions. Which features and which τ are meant "
            "is our interpretation.",
            "measured": "The variance of each layer's inputs on your data, for the frozen network, without padding.",
        },
        "kernel": {
            "meaning": f"How much of the network's tangent kernel {setup['rank']} random columns of each layer keep. "
            f"They contain {kernel['parameters']:.2%} of the weights and {kernel['trace']:.2%} of the trace. The "
            f"cosine of their kernel with that of all weights is {kernel['alignment']:.3f} (1: equal up to scale); "
            f"the effective rank of the latter is {kernel['dense']['effective_rank']:.1f}{compared}.",
            "theory": "In the lazy regime, training follows the kernel: with the same kernel, slices learn what full "
            "fine-tuning learns, at a rate reduced by the trace. But a kernel of one direction (effective rank 1) is "
            "the same for any slice.",
            "measured": f"K = J Jᵀ on {setup['kernel_samples']} training examples, before training. Whether it stays "
            "constant is shown by the kernel drift during a run.",
        },
        "winners": {
            "meaning": "Points on the dashed line do what the gradient predicts; below zero a step raised the loss. "
            "The lower right plot shows what is left of the prediction when one slice does the work of all weights.",
            "theory": "The dashed line: to first order a step lowers the loss by lr · ||g||², for every network.",
            "measured": "The loss before and after one gradient step on one slice alone. Small steps all have the same "
            "size. Full steps are so large that the slice is predicted to lower the loss as much as the dense step.",
        },
    }


def _control_kernel(kernel: Numbers) -> str:
    return f"; without pretraining {kernel['alignment']:.3f} at effective rank {kernel['dense']['effective_rank']:.1f}"


def _whole(counts: Mapping[str, float]) -> int:
    """The median, rounded up; with an even number of layers it may lie between two ranks."""
    return math.ceil(counts["median"])


def _energies(own: Numbers) -> tuple[str, Any]:
    """Summary over tokens, or over examples if there are too few tokens."""
    found = own["task_energy"]["summary"]
    samples = "tokens" if found["tokens"] is not None else "examples"
    return samples, found[samples]
