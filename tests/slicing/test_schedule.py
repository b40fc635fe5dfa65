"""Positions of slices, against closed forms."""

from collections import Counter

import pytest

from slicefine_pl.slicing.schedule import axis_at, slice_indices, visiting_order, visits_before


@pytest.mark.parametrize(
    ("visits", "lines"),
    [(0, [0, 1, 2]), (1, [3, 4, 5]), (2, [6, 7, 0]), (3, [1, 2, 3])],  # 8 lines, rank 3: the third slice wraps
)
def test_a_sweep_wraps_at_the_end(visits, lines):
    assert slice_indices(visits, 3, list(range(8))) == lines


@pytest.mark.parametrize("order", ["sweep", "random"])
@pytest.mark.parametrize(("size", "rank"), [(8, 3), (7, 7), (10, 1), (12, 5)])
def test_all_lines_are_visited_equally_often(order, size, rank):
    lines = visiting_order(size, order, "any key")
    visits = Counter(axis for k in range(size) for axis in slice_indices(k, rank, lines))
    assert visits == dict.fromkeys(range(size), rank)


@pytest.mark.parametrize("order", ["sweep", "random"])
def test_a_slice_never_contains_a_line_twice(order):
    lines = visiting_order(11, order, "key")
    assert all(len(set(slice_indices(k, 4, lines))) == 4 for k in range(30))


def test_an_order_depends_only_on_its_key():
    assert visiting_order(50, "random", "0/a") == visiting_order(50, "random", "0/a")
    assert visiting_order(50, "random", "0/a") != visiting_order(50, "random", "0/b")
    assert visiting_order(50, "sweep", "0/a")[0] != visiting_order(50, "sweep", "1/a")[0]


def test_alternation_visits_all_columns_and_all_rows():
    assert [axis_at(k, "alternate") for k in range(4)] == ["column", "row", "column", "row"]
    assert [visits_before(k, "alternate") for k in range(5)] == [0, 0, 1, 1, 2]
    assert [visits_before(k, "row") for k in range(3)] == [0, 1, 2]


def test_a_slice_wider_than_the_axis_is_refused():
    with pytest.raises(ValueError, match=r"rank=9 .* 8 lines"):
        slice_indices(0, 9, list(range(8)))
