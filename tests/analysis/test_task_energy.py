"""Task energy in one pass over batches is checked against numpy's SVD of all features."""

import numpy as np
import pytest
import torch
from torch import nn

from slicefine_pl.analysis.task_energy import (
    Moments,
    explained_variance,
    participation_ratio,
    task_directions,
    task_energy,
)

N, T, D = 23, 6, 5


def singular_values(rows):
    rows = np.asarray(rows, np.float64)
    return np.linalg.svd(rows - rows.mean(0), compute_uv=False)


def taken_in(rows, sizes):
    moments = Moments(rows.shape[1])
    for part in rows.split(sizes):
        moments.add(part)
    return moments


@pytest.mark.parametrize("sizes", [23, 1, 7, [1, 0, 10, 12]])
def test_moments_do_not_depend_on_the_batches(sizes):
    """The mean is far from zero, where sums of squares would lose digits."""
    rows = torch.randn(N, D) * torch.arange(1.0, D + 1) + 1000
    found = taken_in(rows, sizes)
    assert found.count == N
    np.testing.assert_allclose(found.mean, rows.double().mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.energies(), singular_values(rows) ** 2, rtol=1e-9)


def test_directions_agree_with_numpy():
    rows = torch.randn(N, D, dtype=torch.float64) * torch.tensor([9.0, 5, 3, 1, 0.5])
    energies = taken_in(rows, 4).energies()
    values = singular_values(rows) ** 2
    curve = np.cumsum(values) / values.sum()
    np.testing.assert_allclose(explained_variance(energies), curve)
    for share in (0.1, 0.5, 0.9, 0.99, 1.0):
        assert task_directions(energies, share) == int(np.argmax(curve >= share - 1e-12)) + 1
    assert participation_ratio(energies) == pytest.approx(values.sum() ** 2 / (values**2).sum())


@pytest.mark.parametrize("rank", [1, 3])
def test_features_of_known_rank(rank):
    """A constant vector is not a direction, so the mean does not matter."""
    basis = torch.linalg.qr(torch.randn(8, rank, dtype=torch.float64))[0]
    rows = torch.randn(50, rank, dtype=torch.float64) @ basis.T + torch.randn(8, dtype=torch.float64)
    energies = taken_in(rows, 9).energies()
    assert task_directions(energies, 1.0) == rank
    assert task_directions(energies, 1 - 1e-9) == rank


def test_equal_energies():
    assert [task_directions(torch.ones(10), share) for share in (0.05, 0.5, 0.51, 1)] == [1, 5, 6, 10]
    assert participation_ratio(torch.ones(10)) == pytest.approx(10)


@pytest.mark.parametrize("share", [0, 1.1])
def test_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=f"share={share} is out of range"):
        task_directions(torch.ones(3), share)


def test_constant_and_nonfinite_samples_are_refused():
    with pytest.raises(ValueError, match="all equal"):
        explained_variance(taken_in(torch.ones(4, D), 2).energies())
    with pytest.raises(ValueError, match="infinite values or NaN"):
        Moments(1).add(torch.tensor([[float("nan")]]))


class Encoder(nn.Module):
    """Three layers with one input, as in attention, dropout, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(D, D) for _ in range(3))
        self.out = nn.Linear(D, 4)
        self.idle = nn.Linear(D, 2)
        self.head = nn.Linear(4, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, batch):
        x = batch["x"]
        mixed = self.drop(torch.tanh(self.query(x) + self.key(x)) * self.value(x))
        states = self.out(mixed)
        return self.head(states[:, 0])


@pytest.fixture
def batches():
    found = []
    for size in (4, 3):
        mask = torch.ones(size, T, dtype=torch.int64)
        mask[0, 2:] = 0
        mask[1, 5:] = 0
        x = torch.randn(size, T, D)
        x[mask == 0] = 1e6  # counted padding would change the result
        found.append({"x": x, "mask": mask})
    return found


def layers_of(net):
    return {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}


def test_moments_over_tokens_and_over_examples(batches):
    net = Encoder()
    found = task_energy(net, net, batches, layers_of(net), lambda batch: batch["mask"])
    assert [entry.names for entry in found.layers] == [["query", "key", "value"], ["out"], ["head"]]
    assert found.skipped == {"idle": "the network does not call it"}
    first, out, head = found.layers
    tokens = np.concatenate([batch["x"][batch["mask"] == 1] for batch in batches])
    np.testing.assert_allclose(first.tokens.energies(), singular_values(tokens) ** 2, rtol=1e-6)
    means = [x[mask == 1].mean(0) for batch in batches for x, mask in zip(batch["x"], batch["mask"], strict=True)]
    np.testing.assert_allclose(first.examples.energies(), singular_values(torch.stack(means)) ** 2, rtol=1e-5)
    assert (first.tokens.count, first.examples.count) == (len(tokens), 7)
    assert (head.tokens.count, head.examples.count) == (7, 7)
    net.eval()
    with torch.no_grad():
        mixed = [torch.tanh(net.query(b["x"]) + net.key(b["x"])) * net.value(b["x"]) for b in batches]
    rows = np.concatenate([each[b["mask"] == 1] for each, b in zip(mixed, batches, strict=True)])
    np.testing.assert_allclose(out.tokens.energies(), singular_values(rows) ** 2, rtol=1e-5, atol=1e-9)


def test_result_does_not_depend_on_the_batches(batches):
    net = Encoder()
    singles = [{name: value[i : i + 1] for name, value in b.items()} for b in batches for i in range(len(b["x"]))]
    given = [task_energy(net, net, cut, layers_of(net), lambda batch: batch["mask"]) for cut in (batches, singles)]
    for one, other in zip(*(each.layers for each in given), strict=True):
        torch.testing.assert_close(one.tokens.scatter, other.tokens.scatter, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.examples.mean, other.examples.mean, rtol=1e-5, atol=1e-6)


def test_convolution_has_channels_as_inputs_and_pixels_as_samples():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    images = torch.randn(5, 3, 6, 7)
    found = task_energy(net, net, [images[:2], images[2:]], {"0": net[0], "2": net[2]})
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3)
    np.testing.assert_allclose(found.layers[0].tokens.energies(), singular_values(pixels) ** 2, rtol=1e-6)
    means = images.mean((2, 3))
    np.testing.assert_allclose(found.layers[0].examples.energies(), singular_values(means) ** 2, rtol=1e-4)
    assert found.layers[1].tokens.count == 5 * 4 * 5


class Cut(nn.Module):
    """A layer whose inputs have another shape."""

    def __init__(self, how) -> None:
        super().__init__()
        self.how, self.map = how, nn.Linear(D, 2)

    def forward(self, batch):
        return self.map(self.how(batch["x"]))


def energy_of_cut(how, batches, **known):
    net = Cut(how)
    found = task_energy(net, net, batches, {"map": net.map}, **known).layers[0]
    return found.tokens, found.examples


@pytest.mark.parametrize(
    "how",
    [
        lambda x: x.reshape(-1, D),
        lambda x: x.reshape(-1, 2, D),
        lambda x: x.reshape(-1, 3, 2, D)[:, :, None],
    ],
    ids=["tokens in a row", "windows", "windows of several axes"],
)
def test_windows_of_an_example_count_as_one(how):
    """As in Swin, whose layers see ``(B · windows, tokens, d)``."""
    batches = [{"x": torch.randn(size, T, D)} for size in (4, 3)]
    tokens, examples = energy_of_cut(how, batches, examples=lambda batch: len(batch["x"]))
    x = torch.cat([batch["x"] for batch in batches])
    assert (tokens.count, examples.count) == (7 * T, 7)
    np.testing.assert_allclose(examples.energies(), singular_values(x.mean(1)) ** 2, rtol=1e-5)
    np.testing.assert_allclose(tokens.energies(), singular_values(x.reshape(-1, D)) ** 2, rtol=1e-6)


def test_padding_is_left_out_of_flattened_tokens(batches):
    mask = lambda batch: batch["mask"]
    for one, other in zip(energy_of_cut(lambda x: x, batches, mask=mask),
                          energy_of_cut(lambda x: x.reshape(-1, D), batches, mask=mask), strict=True):  # fmt: skip
        assert one.count == other.count
        torch.testing.assert_close(one.scatter, other.scatter)


@pytest.mark.parametrize("how", [lambda x: x.transpose(0, 1), lambda x: x[:, :5].reshape(-1, 5, D)[1:]])
def test_unknown_shapes_do_not_count_as_examples(how, batches):
    """Shape (T, B, d), and a number of windows that is not a multiple of the examples."""
    tokens, examples = energy_of_cut(how, batches[:1], examples=lambda batch: len(batch["x"]))
    assert tokens.count > 0
    assert examples.count == 0


def test_network_state_is_restored(batches):
    net = Encoder().train()
    generator = torch.get_rng_state()
    task_energy(net, net, batches, layers_of(net))
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert torch.equal(torch.get_rng_state(), generator)


def test_attention_is_skipped_with_a_reason():
    net = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    layers = {"self_attn.q": net.self_attn, "linear1": net.linear1}
    found = task_energy(net, lambda x: net(x), [torch.randn(2, 3, 8)], layers)
    assert "several inputs" in found.skipped["self_attn.q"]
    with pytest.raises(ValueError, match="No inputs were seen"):
        task_energy(net, lambda x: net(x), [torch.randn(2, 3, 8)], {"self_attn.q": net.self_attn})
