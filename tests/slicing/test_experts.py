"""Mixture-of-experts weights that are one parameter: a line of the slice is the same line of every expert."""

import copy
import re

import pytest
import torch
import transformers
from torch import nn

from slicefine_pl.slicing import slice_model

E, WIDTH, INNER, RANK = 4, 16, 24, 3
BASE = {
    "vocab_size": 32,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
EXPERTS = r"experts\.(gate_up|down)_proj$"


def language_model(name: str, **settings) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(**BASE, **settings, attn_implementation="eager")
    return getattr(transformers, f"{name}ForCausalLM")(config)


# How to build it, and whether its experts are stored as (E, O, I), outputs first, or (E, I, O).
MODELS = {
    "Mixtral": (lambda: language_model("Mixtral", num_local_experts=E), True),
    "Qwen3-MoE": (
        lambda: language_model(
            "Qwen3Moe", num_experts=E, num_experts_per_tok=2, moe_intermediate_size=INNER, head_dim=8
        ), True,
    ),
    "OLMoE": (lambda: language_model("Olmoe", num_experts=E, num_experts_per_tok=2), True),
    "gpt-oss": (lambda: language_model("GptOss", num_local_experts=E, head_dim=8), False),
    "Llama 4": (
        lambda: transformers.Llama4ForCausalLM(
            transformers.Llama4TextConfig(
                **BASE, num_local_experts=E, intermediate_size_mlp=INNER, head_dim=8, attn_implementation="eager"
            )
        ), False,
    ),
}  # fmt: skip


def build(name: str) -> nn.Module:
    net = MODELS[name][0]().double().eval()
    if name != "Llama 4":
        net.set_experts_implementation("eager")  # the others do not support float64
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    return net


def loss(net: nn.Module, seed: int = 0) -> torch.Tensor:
    tokens = torch.randint(1, 32, (2, 9), generator=torch.Generator().manual_seed(seed))
    return net(input_ids=tokens, use_cache=False).logits.square().mean()


def lines(stored: torch.Tensor, axis: str, outputs_first: bool) -> torch.Tensor:
    """The lines of all experts, shape ``(size, E, length)``, by a loop over experts."""
    matrices = [matrix if outputs_first else matrix.t() for matrix in stored]  # each (O, I)
    return torch.stack([matrix if axis == "row" else matrix.t() for matrix in matrices], dim=1)


@pytest.mark.parametrize("axis", ["row", "column"])
@pytest.mark.parametrize("name", MODELS)
def test_the_slice_gets_the_dense_gradient_of_the_same_lines_of_every_expert(name, axis):
    net = build(name)
    dense = copy.deepcopy(net)
    handle = slice_model(net, RANK, axis, targets=EXPERTS)
    loss(net).backward()
    loss(dense).backward()
    assert len(handle) == 2
    for view in handle:
        gradient = lines(dense.get_parameter(view.name).grad, axis, MODELS[name][1])[view.indices]  # (R, E, length)
        found = view.parameter.grad.view(RANK, -1, E).transpose(1, 2)
        torch.testing.assert_close(found, gradient)
        assert (gradient.abs().amax((0, 2)) > 0).sum() > 1  # several experts were used


@pytest.mark.parametrize("axis", ["row", "column", "alternate"])
def test_training_changes_only_visited_lines_and_visits_all(axis):
    """AdamW with weight decay. The moves reach every entry, and the counts agree."""
    net = build("Mixtral")
    dense = copy.deepcopy(net)
    handle = slice_model(net, 4, axis, targets=EXPERTS, also_train="lm_head")
    visited = {view.name: torch.zeros_like(view.stored, dtype=torch.bool) for view in handle}
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    for step in range(24):
        for view in handle:
            for matrix in visited[view.name]:
                (matrix if view.axis == "row" else matrix.t())[view.indices] = True
        handle.write()
        counts = handle.counts()
        assert counts.visited == sum(int(mask.sum()) for mask in visited.values())
        assert counts.total == sum(parameter.numel() for parameter in dense.parameters())
        if step < 3:
            optimizer.zero_grad()
            loss(net, step).backward()
            optimizer.step()
            handle.write()
            for name, mask in visited.items():
                stored, before = dict(net.named_parameters())[name], dense.get_parameter(name)
                assert torch.equal(stored[~mask], before[~mask])
                assert (stored[mask] != before[mask]).all()
        handle.move()
    assert handle.counts().coverage == 1
    handle.close()
    assert type(net.model.layers[0].mlp.experts) is type(dense.model.layers[0].mlp.experts)
    dense.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(loss(net), loss(dense))


def test_a_slice_as_wide_as_the_experts_trains_like_full_fine_tuning():
    net = build("gpt-oss")
    dense = copy.deepcopy(net)
    for name, parameter in dense.named_parameters():
        parameter.requires_grad_(re.search(r"experts\.down_proj$", name) is not None)
    handle = slice_model(net, WIDTH, "row", targets=r"experts\.down_proj$", lr_scale=1)
    for model in (net, dense):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for step in range(4):
            optimizer.zero_grad()
            loss(model, step).backward()
            optimizer.step()
    handle.close()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter, dense.get_parameter(name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "axis", "size"), [("Mixtral", "row", WIDTH), ("gpt-oss", "row", WIDTH), ("gpt-oss", "column", WIDTH)]
)
def test_a_rank_beyond_one_expert_is_refused(name, axis, size):
    """For any number of experts. The error advises the rank that fits all named matrices."""
    with pytest.raises(ValueError, match=rf"{size} {axis}s are fewer than rank=17.* rank of at most {size}\.$"):
        slice_model(build(name), 17, axis, targets=EXPERTS)
    assert len(slice_model(build(name), size, axis, targets=EXPERTS)) == 2


def test_a_resumed_run_continues_from_the_saved_positions():
    def train(net, handle, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            loss(net, step).backward()
            optimizer.step()
            handle.write()
            if step % 2:
                for moved in handle.move():
                    optimizer.state.pop(moved.parameter, None)

    start, runs = build("Mixtral"), []
    for _ in range(3):
        net = copy.deepcopy(start)
        handle = slice_model(net, RANK, "alternate", targets=EXPERTS, order="importance")
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.01)
        runs.append((net, handle, optimizer))
    (whole, *_), (first, stopped, optimizer), (second, resumed, fresh) = runs
    train(*runs[0], range(7))
    train(*runs[1], range(5))
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(stopped.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    train(*runs[2], range(5, 7))
    for ours, theirs in zip(whole.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_every_way_of_computing_experts_trains_the_slice(implementation):
    """Implementations read the parameter once, or once per expert."""
    net, dense = build("Mixtral").float(), build("Mixtral").float()
    dense.load_state_dict(net.state_dict())
    for model in (net, dense):
        model.set_experts_implementation(implementation)
    handle = slice_model(net, RANK, targets=EXPERTS)
    loss(net).backward()
    loss(dense).backward()
    for view in handle:
        gradient = lines(dense.get_parameter(view.name).grad, "column", True)[view.indices]
        torch.testing.assert_close(view.parameter.grad.view(RANK, -1, E).transpose(1, 2), gradient)


def test_the_summary_shows_what_a_slice_of_experts_is():
    handle = slice_model(build("Mixtral"), RANK, targets=EXPERTS)
    rows = {row.name.split(".")[-1]: row for row in handle.summary() if "experts" in row.name}
    assert (rows["gate_up_proj"].shape, rows["gate_up_proj"].detail) == ((2 * INNER, WIDTH, E), "3 columns")
    assert rows["down_proj"].backend == "mask"
    assert handle.counts().in_slices == RANK * E * (2 * INNER + WIDTH)
