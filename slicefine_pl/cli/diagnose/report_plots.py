"""The plots of ``slicefine diagnose``, as PNG files."""

from collections.abc import Sequence

from torch import Tensor

from slicefine_pl.analysis import plots
from slicefine_pl.cli.diagnose.measurements import InputEnergies, Measurements

SHARE = 0.9  # τ of the plots; report.json has others


def draw(measured: Measurements, control: Measurements | None, rank: int) -> dict[str, bytes]:
    """Draw the plots of the report.

    Args:
        measured: Measurements of the network.
        control: Measurements of the network without pretraining, if there are any.
        rank: Rank of a slice.

    Returns:
        PNG files by section of the report.
    """
    drawn = {}
    if measured.balances:
        drawn["spectra"] = plots.png_bytes(plots.plot_spectra(measured.balances))
    samples = "tokens" if any("tokens" in each.energies for each in measured.input_energies) else "examples"
    own = _curves(measured.input_energies, samples)
    others = [] if control is None else _curves(control.input_energies, samples)
    drawn["energy"] = plots.png_bytes(plots.plot_task_energy(own, others, rank, SHARE))
    kernels = {"all target weights": measured.kernels.dense, f"slices of rank {rank}": measured.kernels.slices}
    if control is not None:
        kernels["all, no pretraining"] = control.kernels.dense
    drawn["kernel"] = plots.png_bytes(plots.plot_kernels(kernels))
    drawn["winners"] = plots.png_bytes(plots.plot_winners(measured.winners, control.winners if control else None))
    return drawn


def _curves(layers: Sequence[InputEnergies], samples: str) -> list[tuple[str, Tensor]]:
    return [(each.names[0], each.energies[samples]) for each in layers if samples in each.energies]
