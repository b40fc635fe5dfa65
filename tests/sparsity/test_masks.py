"""Masks of a network: exact counts, orientation, unchanged kept weights, saved state."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from slicefine_pl.sparsity import NetworkMasks, parse_pattern


class Net(nn.Module):
    """A network with every kind of weight."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 128)
        self.position_embeddings = nn.Embedding(64, 128)
        self.norm = nn.LayerNorm(128)
        self.linear = nn.Linear(128, 64)
        self.hugging = Conv1D(96, 64)  # stored as (inputs 64, outputs 96)
        self.attention = nn.MultiheadAttention(96, 2, batch_first=True)
        self.convolution = nn.Conv1d(96, 64, 3, padding=1, groups=2)
        self.stem = nn.Conv2d(3, 160, 3)  # 3 inputs are not divisible by 4
        self.head = nn.Linear(64, 10)  # 640 weights: too small
        self.decoder = nn.Linear(128, 50)
        self.decoder.weight = self.words.weight

    def forward(self, tokens):
        x = self.norm(self.words(tokens) + self.position_embeddings(torch.arange(tokens.shape[1])))
        x = self.hugging(self.linear(x))
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.convolution(x.transpose(1, 2)).mean(-1))


def untied() -> Net:
    net = Net()
    net.decoder.weight = nn.Parameter(torch.randn(50, 128))
    return net


def test_default_targets_and_reasons():
    masks = NetworkMasks(Net(), parse_pattern("2:4"))
    assert {each.name for each in masks} == {
        "linear.weight",
        "hugging.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "convolution.weight",
    }
    assert masks.skipped == {
        "words.weight": "tied to another layer",
        "decoder.weight": "tied to another layer",
        "position_embeddings.weight": "an embedding, which is looked up row by row",
        "stem.weight": "its 3 inputs are not divisible by 4",
        "head.weight": "fewer than 4096 weights",
    }
    assert NetworkMasks(untied(), parse_pattern("unstructured")).skipped == {
        "position_embeddings.weight": "position embeddings",
        "head.weight": "fewer than 4096 weights",
    }


@pytest.mark.parametrize("target", [0.3, 0.5, 0.777])
def test_exact_share_of_smallest_magnitudes_is_pruned(target):
    net = untied()
    before = copy.deepcopy(net.state_dict())
    masks = NetworkMasks(net, parse_pattern("unstructured"))
    masks.prune(target)
    for each in masks:
        share = 1 - (1 - target) ** 0.5 if each.name == "words.weight" else target
        weight, then = net.get_parameter(each.name), before[each.name]
        assert (weight == 0).sum() == each.weights - each.kept == int(each.weights * share + 0.5)
        assert then[weight == 0].abs().max() <= then[weight != 0].abs().min()
        assert torch.equal(weight[weight != 0], then[weight != 0])
    for name, value in net.state_dict().items():
        if name not in masks:
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("pattern", ["2:4", "block(4,4)", "row", "column"])
def test_patterns_lie_along_the_inputs_of_every_layer_type(pattern):
    net = untied()
    masks = NetworkMasks(net, parse_pattern(pattern), targets="linear|hugging|convolution")
    masks.prune(0.5)
    views = {
        "linear": net.linear.weight.detach(),
        "hugging": net.hugging.weight.detach().T,
        "convolution": net.convolution.weight.detach(),
    }
    for weight in views.values():
        if pattern == "2:4":
            groups = weight.movedim(1, -1).reshape(-1, 4)
            assert ((groups != 0).sum(1) == 2).all()
        zero = (weight == 0).flatten(2).all(-1) if weight.ndim > 2 else weight == 0
        if pattern == "row":
            assert zero.all(1).sum() == len(zero) // 2
        if pattern == "column":
            assert zero.all(0).sum() == zero.shape[1] // 2
        assert (weight == 0).float().mean() == 0.5


def test_global_scope_ranks_all_weights_and_keeps_the_best_of_each_matrix():
    net = nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 80))
    with torch.no_grad():
        net[1].weight.mul_(1e-3)
    before = [layer.weight.detach().clone() for layer in net]
    masks = NetworkMasks(net, parse_pattern("unstructured"), scope="global")
    masks.prune(0.75)
    kept = [int((layer.weight != 0).sum()) for layer in net]
    assert kept == [3199, 1]
    assert before[1].abs().argmax() == net[1].weight.abs().argmax()
    with pytest.raises(ValueError, match=r"scope='global' ranks single weights and cannot keep pattern='2:4'"):
        NetworkMasks(net, parse_pattern("2:4"), scope="global")


def test_pruned_weights_stay_pruned():
    net = nn.Sequential(nn.Linear(80, 80))
    masks = NetworkMasks(net, parse_pattern("2:4"))
    zeros = torch.zeros(80, 80, dtype=torch.bool)
    for target in (0.1, 0.3, 0.45, 0.5):
        masks.prune(target)
        now = net[0].weight == 0
        assert now.sum() == int(6400 * target + 0.5)
        assert (now | ~zeros).all()
        zeros = now
        with torch.no_grad():
            net[0].weight.copy_(torch.randn(80, 80))  # changes the zeros too, as an unmasked optimizer step would
        masks.mask_trained_weights()
    masks.verify()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    with pytest.raises(ValueError, match=r"0\.weight has pruned weights that are not zero"):
        masks.verify()


def test_diverged_weights_have_their_own_error():
    net = nn.Linear(4, 4)
    masks = NetworkMasks(net, parse_pattern("unstructured"), targets="weight")
    masks.prune(0.5)
    net.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"weight has pruned weights that are not finite: .* diverged"):
        masks.verify()


def test_wanda_is_magnitude_times_the_norm_of_the_input():
    net = untied().double()
    masks = NetworkMasks(net, parse_pattern("unstructured"), "wanda", targets=["^linear", "hugging", "convolution"])
    masks.collect_inputs()
    seen = {}
    for name in ("linear", "hugging", "convolution"):
        hook = lambda module, given, name=name: seen.setdefault(name, []).append(given[0].detach())
        getattr(net, name).register_forward_pre_hook(hook)
    before = copy.deepcopy(net.state_dict())
    for _ in range(3):
        net(torch.randint(50, (2, 7)))
    net.eval()(torch.randint(50, (2, 7)))  # validation does not count
    for inputs in seen.values():
        inputs.pop()
    masks.prune(0.5)
    linear = torch.cat(seen["linear"]).flatten(0, 1).norm(dim=0)
    hugging = torch.cat(seen["hugging"]).flatten(0, 1).norm(dim=0)
    grouped = torch.cat(seen["convolution"]).transpose(0, 1).flatten(1).norm(dim=1).view(2, -1).norm(dim=0)
    expected = {
        "linear.weight": before["linear.weight"].abs() * linear,
        "hugging.weight": before["hugging.weight"].abs() * hugging[:, None],
        "convolution.weight": before["convolution.weight"].abs() * grouped[:, None],
    }
    for name, scores in expected.items():
        mask = net.get_parameter(name) != 0
        assert scores[~mask].max() <= scores[mask].min() * (1 + 1e-5), name
    assert (
        "in torch's attention" in NetworkMasks(Net(), parse_pattern("2:4"), "wanda").skipped["attention.in_proj_weight"]
    )
    with pytest.raises(ValueError, match=r"criterion='wanda' needs inputs of linear\.weight"):
        NetworkMasks(net, parse_pattern("2:4"), "wanda", targets="linear").prune(0.5)


def test_gradient_is_the_first_order_change_of_the_loss():
    net = nn.Sequential(nn.Linear(80, 80))
    masks = NetworkMasks(net, parse_pattern("unstructured"), "gradient")
    with pytest.raises(ValueError, match="criterion='gradient' needs a gradient"):
        masks.prune(0.5)
    total = torch.zeros(80, 80)
    for _ in range(2):
        net.zero_grad()
        net(torch.randn(5, 80)).square().sum().backward()
        masks.collect_gradients()
        total += net[0].weight.detach() * net[0].weight.grad
    net[0].weight.grad[0, 0] = float("inf")  # an overflow, whose step a loss scaler skips
    masks.collect_gradients()
    masks.prune(0.5)
    mask = net[0].weight != 0
    assert total[~mask].abs().max() <= total[mask].abs().min()


def test_random_scores_depend_on_seed_and_name_only():
    made = []
    for _ in range(2):
        net = nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 80))
        masks = NetworkMasks(net, parse_pattern("unstructured"), "random", seed=3)
        torch.rand(7)
        masks.prune(0.5)
        made.append([masks["0.weight"], masks["1.weight"]])
    assert torch.equal(made[0][0], made[1][0])
    assert not torch.equal(made[0][0], made[0][1])


def test_scores_that_are_not_finite_change_nothing():
    net = nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 80))
    masks = NetworkMasks(net, parse_pattern("unstructured"))
    with torch.no_grad():
        net[1].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"1\.weight has 1 scores that are not finite"):
        masks.prune(0.5)
    assert masks.sparsity == 0
    assert (net[0].weight != 0).all()


def test_of_equal_scores_the_first_is_kept():
    net = nn.Sequential(nn.Linear(80, 80))
    nn.init.ones_(net[0].weight)
    NetworkMasks(net, parse_pattern("unstructured")).prune(0.25)
    assert net[0].weight.flatten().nonzero().flatten().tolist() == list(range(4800))


def test_zeros_of_a_pruned_network_become_masks():
    net = nn.Sequential(nn.Linear(80, 80))
    with pytest.raises(ValueError, match="no weight is zero"):
        NetworkMasks(net, parse_pattern("2:4")).keep_zeros()
    NetworkMasks(net, parse_pattern("unstructured")).prune(0.5)
    with pytest.raises(ValueError, match=r"0\.weight is not in the pattern '2:4'"):
        NetworkMasks(net, parse_pattern("2:4")).keep_zeros()
    masks = NetworkMasks(net, parse_pattern("unstructured"))
    masks.keep_zeros()
    assert masks.sparsity == 0.5
    nn.init.zeros_(net[0].weight)
    with pytest.raises(ValueError, match=r"0\.weight contains only zeros and would never train"):
        masks.keep_zeros()


def test_masks_of_another_network_are_refused():
    net, other = nn.Sequential(nn.Linear(80, 80)), nn.Sequential(nn.Linear(80, 84))
    masks, saved = (NetworkMasks(each, parse_pattern("2:4")) for each in (net, other))
    saved.prune(0.5)
    with pytest.raises(ValueError, match=r"masks belong to another network or to other targets: 0\.weight differ"):
        masks.load_state_dict(saved.state_dict())
    assert masks.sparsity == 0
    again = NetworkMasks(other, parse_pattern("2:4"))
    again.load_state_dict(saved.state_dict())
    assert torch.equal(again["0.weight"], saved["0.weight"])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("nothing", "targets='nothing' does not match any prunable weight name; the last names .* head.weight"),
        ("[", r"targets='\[' is not a regular expression"),
        (["linear", "stem"], r"matches stem\.weight \(its 3 inputs are not divisible by 4\); narrow the pattern"),
    ],
)
def test_targets_that_do_not_fit(targets, message):
    with pytest.raises(ValueError, match=message):
        NetworkMasks(Net(), parse_pattern("2:4"), targets=targets)


def test_a_network_without_weights_to_prune():
    with pytest.raises(ValueError, match=r"nothing can be pruned.*0\.weight \(fewer than 4096 weights\)"):
        NetworkMasks(nn.Sequential(nn.Linear(5, 5)), parse_pattern("unstructured"))


def test_attention_uses_pruned_weights():
    """The forward pass of torch's attention uses the pruned weights."""
    net = untied().eval()
    NetworkMasks(net, parse_pattern("2:4"), targets="attention").prune(0.5)
    x = torch.randn(2, 5, 96)
    attention = net.attention
    packed_map = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    q, k, v = (x @ part.T + bias for part, bias in packed_map)
    heads = [part.view(2, 5, 2, 48).transpose(1, 2) for part in (q, k, v)]
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(2, 5, 96)
    torch.testing.assert_close(net.attention(x, x, x)[0], net.attention.out_proj(mixed))
