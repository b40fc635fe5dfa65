"""Spectral balance is checked against numpy's eigenvalues and on controls of known balance."""

import numpy as np
import pytest
import torch

from slicefine_pl.analysis.spectra import CONTROLS, MUST_FAIL, balance, collapsed, gaussian, half_pruned, lines_matrix

K, M, L = 4, 5, 12


def generator():
    return torch.Generator().manual_seed(3)


@pytest.fixture
def lines():
    return torch.randn(K * M + 3, L, dtype=torch.float64) * torch.rand(K * M + 3, 1)


def test_measures_follow_their_definitions(lines):
    """Reference: numpy's eigenvalues of W_g W_gᵀ, with three lines left over, and both spreads written out."""
    found = balance(lines, K)
    groups = [lines[g * M : (g + 1) * M].numpy() for g in range(K)]
    values = np.array([np.sort(np.linalg.eigvalsh(group @ group.T))[::-1] for group in groups])
    np.testing.assert_allclose(found.eigenvalues, values, rtol=1e-9)
    means = values.mean(1)
    assert found.spread_of_means == pytest.approx(means.std() / means.mean())
    curves = values / values.sum(1, keepdims=True)
    distances = [np.abs(curve - curves.mean(0)).sum() / 2 for curve in curves]
    assert found.spread_of_decay == pytest.approx(np.mean(distances))
    np.testing.assert_allclose(found.decay, curves)


def test_number_of_eigenvalues():
    """Groups of 9 lines with 4 entries have the 4 non-zero eigenvalues of W_g W_gᵀ, which is 9 x 9."""
    lines = torch.randn(18, 4, dtype=torch.float64)
    large = np.linalg.eigvalsh((lines[:9] @ lines[:9].T).numpy())[::-1]
    found = balance(lines, 2).eigenvalues
    assert found.shape == (2, 4)
    np.testing.assert_allclose(found[0], large[:4])
    np.testing.assert_allclose(large[4:], 0, atol=1e-12)


def test_scaled_groups_differ_in_their_means_only():
    group = torch.randn(M, L, dtype=torch.float64)
    same = balance(torch.cat([group] * K), K)
    assert (same.spread_of_means, same.spread_of_decay) == pytest.approx((0, 0), abs=1e-12)
    scaled = balance(torch.cat([scale * group for scale in (1, 2, 3, 4)]), K)
    squares = np.array([1, 4, 9, 16])
    assert scaled.spread_of_means == pytest.approx(squares.std() / squares.mean())
    assert scaled.spread_of_decay == pytest.approx(0, abs=1e-12)


def test_spread_of_means_of_a_gaussian_matrix():
    """||W_g||² is chi-squared with m·L degrees of freedom: relative deviation sqrt(2 / (m L))."""
    lines = torch.randn(400 * 8, 50, generator=generator(), dtype=torch.float64)
    assert balance(lines, 400).spread_of_means == pytest.approx((2 / (8 * 50)) ** 0.5, rel=0.1)


def test_unbalanced_controls_are_detected():
    """A control that is unbalanced in one measure is far above a random matrix in this measure only."""
    lines = torch.randn(8 * 40, 100, generator=generator(), dtype=torch.float64)
    lines *= torch.linspace(0.7, 1.3, 100)
    chance = balance(gaussian(lines, 8, generator()), 8)
    for name, measure in MUST_FAIL.items():
        made = balance(CONTROLS[name](lines, 8, generator()), 8)
        other = ({"spread_of_means", "spread_of_decay"} - {measure}).pop()
        assert getattr(made, measure) > 5 * getattr(chance, measure), name
        assert getattr(made, other) < 3 * getattr(chance, other), name


def test_controls_preserve_their_statistics(lines):
    made = {name: control(lines, K, generator()) for name, control in CONTROLS.items()}
    assert all(each.shape == lines.shape for each in made.values())
    assert torch.equal(made["pretrained"], lines)
    for name in ("random groups", "sorted by norm"):
        assert sorted(map(tuple, made[name].tolist())) == sorted(map(tuple, lines.tolist()))
        assert not torch.equal(made[name], lines)
    norms = made["sorted by norm"].norm(dim=1)
    assert torch.equal(norms, norms.sort().values)
    assert made["Gaussian"].std() == pytest.approx(float(lines.std()), rel=0.2)
    assert made["reinitialized"].abs().max() <= 1


def test_half_pruned_zeroes_the_smaller_half(lines):
    pruned = half_pruned(lines, K, generator())
    stays = pruned != 0
    assert int(stays.sum()) == lines.numel() // 2
    assert lines[stays].abs().min() > lines[~stays].abs().max()
    assert torch.equal(pruned[stays], lines[stays])


def test_collapsed_groups_keep_their_norm_and_lose_directions(lines):
    made = collapsed(lines, K, generator())
    groups = [each[: K * M].unflatten(0, (K, M)) for each in (lines, made)]
    torch.testing.assert_close(groups[1].norm(dim=(1, 2)), groups[0].norm(dim=(1, 2)))
    assert torch.linalg.matrix_rank(groups[1]).tolist() == [2, M, 2, M]  # a quarter of 5, rounded up
    assert torch.equal(groups[1][1], groups[0][1])


def test_equal_seeds_make_equal_controls(lines):
    for control in CONTROLS.values():
        assert torch.equal(control(lines, K, generator()), control(lines, K, generator()))


def test_lines_of_a_convolution_are_channels():
    weight = torch.randn(6, 4, 3, 2)
    columns = lines_matrix(weight, "column")
    assert columns.shape == (4, 36)
    torch.testing.assert_close(columns[1], weight[:, 1].flatten().double())
    torch.testing.assert_close(lines_matrix(weight, "row")[5], weight[5].flatten().double())


@pytest.mark.parametrize("groups", [1, 24])
def test_groups_that_do_not_fit_are_refused(lines, groups):
    with pytest.raises(ValueError, match=f"groups={groups} do not fit 23 lines"):
        balance(lines, groups)


def test_a_group_of_zeros_is_refused(lines):
    lines[:M] = 0
    with pytest.raises(ValueError, match="1 of 4 groups contain only zeros"):
        balance(lines, K)
