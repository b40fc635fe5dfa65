"""The slice map's bins, colors and names, against loops and the input."""

import numpy as np
import pytest
import torch

from slicefine_pl.analysis.plots import short_names
from slicefine_pl.callbacks.support.slice_map_plot import GRAY, bin_lines, plot_map, relative_changes, write_updates
from slicefine_pl.slicing import LineUpdates


def changes(name, change, before=1.0, axis="column"):
    """Return the changes of lines of four numbers by their RMS; NaN for lines that were never visited."""
    squares = 4 * torch.tensor(change, dtype=torch.float64).square()
    return LineUpdates(name, axis, 4, squares, 4 * torch.where(squares.isnan(), torch.nan, before**2))


@pytest.mark.parametrize("size", [3, 7, 8, 9, 23])
def test_bins_show_every_visited_line_and_nothing_else(size):
    values = np.random.default_rng(0).random(size)
    values[::3] = np.nan
    found = bin_lines(values, 8)
    for number in range(8):
        inside = [values[line] for line in range(size) if line * 8 // size == number]
        if size < 8:
            inside = [values[int((number + 0.5) * size / 8)]]
        seen = [value for value in inside if not np.isnan(value)]
        expected = np.sqrt(np.mean(np.square(seen))) if seen else np.nan
        np.testing.assert_allclose(found[number], expected)


def test_changes_are_relative_to_the_matrix_not_to_the_line():
    each = changes("m", [0.1, float("nan"), 0.3, 0.0], before=torch.tensor([1.0, 9.0, 7.0, 1.0]))
    np.testing.assert_allclose(relative_changes(each) * np.sqrt((1 + 49 + 1) / 3), [0.1, np.nan, 0.3, 0])


def test_a_matrix_of_zeros_is_drawn():
    each = changes("m", [0.1, float("nan"), 0.0], before=0.0)
    np.testing.assert_array_equal(relative_changes(each), [np.inf, np.nan, 0])
    plot_map([each], "").canvas.draw()


def test_only_lines_that_were_never_visited_are_gray():
    """Checked on the drawn pixels."""
    from matplotlib.colors import to_rgb

    figure = plot_map([changes("a", [float("nan"), 0.0, 1e-9, 0.5]), changes("b", [0.1] * 4)], "")
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255
    field = figure.axes[0]
    colors = []
    for place in (0.125, 0.375, 0.625, 0.875):
        x, y = field.transData.transform((place, 0.5))
        colors.append(image[len(image) - int(y), int(x)])
    np.testing.assert_allclose(colors[0], to_rgb(GRAY), atol=0.01)
    for color in colors[1:]:
        assert np.abs(color - colors[0]).max() > 0.3
        assert np.ptp(color) > 0.2  # not gray
    np.testing.assert_allclose(colors[1], colors[2], atol=0.01)
    assert np.abs(colors[3] - colors[2]).max() > 0.3


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([0.014, 0.023], (1, 5)),
        ([0.02, 0.02], (2, 5)),
        ([0.5, 1e-9], (1, 100)),
        ([0.5] + [1e-9] * 9, (0.05, 100)),
        ([0.0, 0.0], (0.1, 1)),
    ],
)
def test_the_scale_has_round_ends_with_labels(values, ends):
    figure = plot_map([changes("a", values)], "")
    scale = figure.axes[0].images[0].norm
    assert (scale.vmin, scale.vmax) == pytest.approx(ends)
    labels = [float(label.get_text()) for label in figure.axes[-1].get_yticklabels()]
    assert (labels[0], labels[-1]) == pytest.approx(ends)
    assert len(labels) >= 2


def test_columns_and_rows_have_separate_panels():
    rows = changes("net.a", [float("nan")] * 3, axis="row")
    figure = plot_map([changes("net.a", [0.1, 0.2]), changes("net.b", [0.1, 0.2]), rows], "8 optimizer steps")
    fields = [axes for axes in figure.axes if axes.images]
    assert [len(axes.images[0].get_array()) for axes in fields] == [2, 1]
    assert [axes.get_title(loc="left") for axes in fields] == [
        "4 of 4 columns were visited (100%); gray: never", "0 of 3 rows were visited (0%); gray: never",
    ]  # fmt: skip
    assert [label.get_text() for label in fields[0].get_yticklabels()] == ["a", "b"]
    assert figure.get_suptitle() == "What the slices of net have learned in 8 optimizer steps"


def test_the_height_for_many_matrices_is_limited():
    figure = plot_map([changes(f"net.{number}", [0.1, 0.2]) for number in range(500)], "")
    assert figure.get_figheight() < 26
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels[:2]] == ["0", "3"]


@pytest.mark.parametrize(
    ("names", "short", "prefix"),
    [
        (["m.a.x", "m.a.y", "m.a.x.q"], ["x", "y", "x.q"], "m.a"),
        (["m.a", "n.a"], ["m.a", "n.a"], ""),
        (["m.a.b"], ["b"], "m.a"),
    ],
)
def test_names_omit_their_common_prefix(names, short, prefix):
    assert short_names(names) == (short, prefix)


def test_the_file_contains_every_visited_line(tmp_path):
    write_updates(tmp_path / "changes.csv", [changes("a", [0.25, float("nan"), 0.0], before=0.5)])
    assert (tmp_path / "changes.csv").read_text().split() == [
        "matrix,axis,index,rms_change,rms_before", "a,column,0,0.25,0.5", "a,column,2,0,0.5",
    ]  # fmt: skip
