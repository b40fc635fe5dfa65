"""Plots show the given numbers and are PNG files."""

import dataclasses

import numpy as np
import pytest
import torch

from slicefine_pl.analysis.plots import plot_kernels, plot_spectra, plot_task_energy, plot_winners, png_bytes
from slicefine_pl.analysis.spectra import CONTROLS, balance
from slicefine_pl.analysis.task_energy import task_directions
from slicefine_pl.analysis.winners import GradientStep, Winners


def points(axes):
    """Return every plotted point, rounded."""
    return {(f"{x:.6g}", f"{y:.6g}") for line in axes.lines for x, y in zip(*line.get_data(), strict=True)}


def drawn_x(axes):
    return {x for x, _ in points(axes)}


@pytest.fixture
def balances():
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(16, 12, dtype=torch.float64) for name in ("a.0", "a.1", "a.2")}
    return {
        control: {
            line: {name: balance(make(weight, 4, generator), 4) for name, weight in weights.items()}
            for line in ("row", "column")
        }
        for control, make in CONTROLS.items()
    }


def test_spectra_show_both_spreads_of_every_matrix_and_control(balances):
    figure = plot_spectra(balances)
    means, decay, curves = figure.axes
    for by_line in balances.values():
        for own in by_line.values():
            assert {f"{each.spread_of_means:.6g}" for each in own.values()} <= drawn_x(means)
            assert {f"{each.spread_of_decay:.6g}" for each in own.values()} <= drawn_x(decay)
    assert [label.get_text() for label in means.get_yticklabels()] == list(CONTROLS)
    assert len(curves.lines) == 2 * 4  # groups of the matrix, and of a random one
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_spectra_of_columns_only(balances):
    """A network may have too few rows in every layer."""
    only = {control: {"column": by_line["column"]} for control, by_line in balances.items()}
    assert png_bytes(plot_spectra(only)).startswith(b"\x89PNG")


def test_task_energy_shows_curve_and_count_of_every_layer():
    layers = [(f"net.{i}.dense", torch.rand(20, dtype=torch.float64).sort(descending=True).values) for i in range(3)]
    others = [(name, energies.square()) for name, energies in layers]
    figure = plot_task_energy(layers, others, rank=4, share=0.9)
    left, right = figure.axes
    for place, (_, energies) in enumerate(layers):
        curve = (energies.cumsum(0) / energies.sum()).numpy()
        assert {(f"{k + 1:.6g}", f"{value:.6g}") for k, value in enumerate(curve)} <= points(left)
        assert (f"{place:.6g}", f"{task_directions(energies, 0.9):.6g}") in points(right)
        assert (f"{place:.6g}", f"{task_directions(others[place][1], 0.9):.6g}") in points(right)
    assert [label.get_text() for label in right.get_xticklabels()] == ["0.dense", "1.dense", "2.dense"]
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_kernels_are_normalized_and_shown_with_their_spectra():
    rows = torch.randn(4, 9, dtype=torch.float64)
    kernels = {"all": rows @ rows.T, "slices": 3 * torch.eye(4, dtype=torch.float64)}
    figure = plot_kernels(kernels)
    values = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(values, (kernels["all"] / kernels["all"].diagonal().mean()).numpy())
    eigenvalues = np.linalg.eigvalsh(kernels["all"].numpy())[::-1]
    spectra = next(axes for axes in figure.axes if axes.get_title().startswith("Spectra"))
    np.testing.assert_allclose(spectra.lines[0].get_ydata(), eigenvalues / eigenvalues.sum())
    np.testing.assert_allclose(spectra.lines[1].get_ydata(), [0.25] * 4)
    assert png_bytes(figure).startswith(b"\x89PNG")


@pytest.fixture
def steps():
    made = GradientStep(
        name="a.0",
        kind="row",
        indices=(1, 2),
        lr=0.1,
        predicted=1e-3,
        decrease=9e-4,
        held_out_predicted=5e-4,
        held_out=-2e-4,
        held_out_error=1e-4,
        energy=0.01,
        parameters=0.02,
    )
    column = dataclasses.replace(made, kind="column", predicted=2e-3, decrease=1.7e-3, energy=0.04)
    dense = dataclasses.replace(made, kind="dense", indices=(), predicted=0.1, decrease=0.06, held_out=0.05, energy=1.0)
    full = dataclasses.replace(made, predicted=0.1, decrease=-0.3, held_out=-0.4)
    return Winners(0.1, 1.0, 1.1, [made, column], [full], [dense], made, dense, {"a.0": (1.0, 1.0)}, 1e-8)


def test_winners_show_every_step(steps):
    figure = plot_winners(steps, dataclasses.replace(steps, full=[]))
    own, held_out, energy, full = figure.axes
    assert {("0.001", "0.0009"), ("0.002", "0.0017"), ("0.1", "0.06")} <= points(own)
    assert {("0.001", "-0.0002"), ("0.1", "0.05")} <= points(held_out)
    assert {"0.5", "2"} <= drawn_x(energy)
    assert {"-3", "-4"} <= drawn_x(full)
    assert own.get_ylim()[1] > 0.1
    assert held_out.get_ylim()[0] < -2e-4
    assert png_bytes(figure).startswith(b"\x89PNG")
    assert png_bytes(plot_winners(steps, None)).startswith(b"\x89PNG")
