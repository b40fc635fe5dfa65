"""Every optimizer of torch, and those of timm and transformers, on slices in float64: against the same optimizer on a
dense network of which the slice's entries are the only parameters.
"""

import pytest
import timm.optim
import torch
import transformers
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from slicefine_pl import SliceFineCallback

I, O, R, INTERVAL, STEPS = 7, 5, 2, 3, 8


def timms(name, **settings):
    return lambda parameters: timm.optim.create_optimizer_v2(parameters, name, lr=0.01, **settings)


TORCH = {
    "sgd": lambda p: optim.SGD(p, 0.02, momentum=0.9, weight_decay=0.01),
    "sgd dampened": lambda p: optim.SGD(p, 0.02, momentum=0.9, dampening=0.3),
    "sgd foreach": lambda p: optim.SGD(p, 0.02, momentum=0.9, foreach=True),
    "sgd fused": lambda p: optim.SGD(p, 0.02, momentum=0.9, fused=True),
    "sgd fused nesterov": lambda p: optim.SGD(p, 0.02, momentum=0.9, nesterov=True, fused=True),
    "adam": lambda p: optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, 0.01, weight_decay=0.1),
    "adamw foreach": lambda p: optim.AdamW(p, 0.01, foreach=True),
    "adamw fused": lambda p: optim.AdamW(p, 0.01, fused=True),
    "nadam": lambda p: optim.NAdam(p, 0.01),
    "radam": lambda p: optim.RAdam(p, 0.01),
    "adamax": lambda p: optim.Adamax(p, 0.01),
    "adadelta": lambda p: optim.Adadelta(p),
    "adagrad": lambda p: optim.Adagrad(p, 0.05, lr_decay=0.1, initial_accumulator_value=0.1),
    "adagrad fused": lambda p: optim.Adagrad(p, 0.05, fused=True),
    "asgd": lambda p: optim.ASGD(p, 0.02, lambd=0.1, t0=2),
    "rmsprop": lambda p: optim.RMSprop(p, 0.005, centered=True, momentum=0.5),
    "rprop": lambda p: optim.Rprop(p, 0.005),
    "adafactor": lambda p: optim.Adafactor(p, 0.01),
    "muon": lambda p: optim.Muon(p, 0.01),
    "lbfgs": lambda p: optim.LBFGS(p, 0.1, max_iter=3, history_size=3),
}
OTHERS = {
    **{f"timm {name}": timms(name) for name in ("lion", "lars", "adabelief", "novograd", "sgdp", "adamp", "madgrad")},
    **{f"timm {name}": timms(name) for name in ("lookahead_adam", "adopt", "laprop", "mars", "adafactorbv", "nadamw")},
    "timm lars, decayed": timms("lars", weight_decay=0.1),  # adapts to the size of what it decays only
    "transformers adafactor": lambda p: transformers.Adafactor(p),
    "transformers adafactor, fixed rate": lambda p: transformers.Adafactor(
        p, lr=0.01, scale_parameter=False, relative_step=False
    ),
}
RUNS = {"columns": {}, "rows": {"axis": "row"}, "alternate": {"axis": "alternate"}, "kept": {"optimizer_state": "keep"}}
SCALED_BY_SIZE = {
    "adafactor",
    "timm lars, decayed",
    "transformers adafactor",
}  # steps that depend on the parameter's size
REFUSED = {  # optimizers that see the padding of shorter lines, or write weights of an earlier position
    ("adafactor", "alternate"), ("transformers adafactor", "alternate"),
    ("transformers adafactor, fixed rate", "alternate"), ("timm madgrad", "kept"), ("timm lookahead_adam", "kept"),
}  # fmt: skip


class Module(LightningModule):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(3)
        self.trunk, self.head, self.make = nn.Linear(I, O, bias=False), nn.Linear(O, 3, bias=False), make

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(torch.tanh(self.trunk(batch[0]))), batch[1])

    def configure_optimizers(self):
        return self.make([parameter for parameter in self.parameters() if parameter.requires_grad])


def examples():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8 * STEPS, I, generator=generator, dtype=torch.float64)
    return DataLoader(TensorDataset(x, torch.randint(3, (8 * STEPS,), generator=generator)), batch_size=8)


def sliced(make, **settings):
    """Train with slices; return the module, and the trainable lines at each step."""
    callback, places = SliceFineCallback(R, interval=INTERVAL, targets="trunk", also_train="head", **settings), []

    class Places(Callback):
        def on_train_batch_start(self, *_):
            [view] = callback.opened()
            places.append((view.axis, view.indices.tolist()))

    module = Module(make)
    Trainer(
        callbacks=[callback, Places()], max_epochs=1, precision="64-true", accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, examples())  # fmt: skip
    return module, places


def dense(make, places, keep, joint, scaled=False):
    """Train the same lines in plain torch.

    ``joint`` if the optimizer treats all parameters as one vector; ``scaled`` if the parameter is the change of the
    lines, which counts min(I, O) / R times, with the gradient of the lines.
    """
    module = Module(make).double()
    weight, head = module.trunk.weight.detach(), module.head.weight
    lines = lambda line: weight if line == "row" else weight.t()
    others = None if joint else make([head])
    for step, ((line, indices), (x, y)) in enumerate(zip(places, examples(), strict=True)):
        if step == 0 or places[step] != places[step - 1]:
            values = lines(line)[indices].clone()
            base, factor = torch.zeros_like(values), 1.0
            if scaled:
                base, values, factor = values, torch.zeros_like(values), min(weight.shape) / R
            if step == 0 or not keep:
                live = nn.Parameter(values)
                own = make([live, head] if joint else [live])
            else:
                live.data = values

        def closure(live=live, base=base, factor=factor, line=line, indices=indices, x=x, y=y):
            live.grad = head.grad = None
            with torch.enable_grad():
                trained = base + factor * live.detach() + (live - live.detach())
                whole = lines(line).index_put((torch.tensor(indices),), trained)
                whole = whole if line == "row" else whole.t()
                loss = nn.functional.cross_entropy(torch.tanh(x @ whole.t()) @ head.t(), y)
                loss.backward()
            return loss

        if joint:
            own.step(closure)
        else:
            closure()
            own.step()
            others.step()
        lines(line)[indices] = base + factor * live.detach()
    return weight, head


@pytest.mark.parametrize("lr_scale", [1, "auto"])
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", TORCH | OTHERS)
def test_an_optimizer_trains_a_slice_like_a_network_of_that_slice(name, run, lr_scale):
    make, scaled = (TORCH | OTHERS)[name], lr_scale == "auto"
    if (name, run) in REFUSED or (scaled and name in SCALED_BY_SIZE | {"lbfgs"}):
        with pytest.raises(MisconfigurationException, match=r"padding|earlier position|choose lr_scale=1|size of the"):
            sliced(make, lr_scale=lr_scale, **RUNS[run])
        return
    ours, places = sliced(make, lr_scale=lr_scale, **RUNS[run])
    assert len({str(place) for place in places}) == 3
    weight, head = dense(make, places, keep=run == "kept", joint=name == "lbfgs", scaled=scaled)
    torch.testing.assert_close(ours.trunk.weight.detach(), weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.head.weight, head, rtol=1e-9, atol=1e-12)


def test_differentiable_is_turned_off_with_a_warning():
    make = lambda p, **others: optim.SGD(p, 0.02, momentum=0.9, **others)
    with pytest.warns(UserWarning, match="differentiable=True"):
        ours, places = sliced(lambda p: make(p, differentiable=True))
    weight, _ = dense(make, places, keep=False, joint=False, scaled=True)
    torch.testing.assert_close(ours.trunk.weight.detach(), weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["lamb", "adan"])
def test_an_optimizer_that_counts_steps_per_group_needs_a_group_for_slices(name):
    """Otherwise the first step after a move would be several times too large."""
    with pytest.raises(MisconfigurationException, match=r"cannot reset its state .* group of their own"):
        sliced(timms(name), lr_scale=1)
    apart = lambda p: timms(name)([{"params": p[:1]}, {"params": p[1:]}])
    ours, places = sliced(lambda p: apart(sorted(p, key=lambda each: each.shape == (3, O))), lr_scale=1)
    weight, head = dense(timms(name), places, keep=False, joint=False)
    torch.testing.assert_close(ours.trunk.weight.detach(), weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.head.weight, head, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: optim.SparseAdam(p), "SparseAdam cannot update slices.*does not support dense gradients"),
        (lambda p: optim.Adam(p, 0.01, capturable=True), "Adam cannot update slices.*capturable"),
        (lambda p: optim.SGD(p, 0.02, momentum=0.9, dampening=0.3, fused=True), "fused and dampened"),
        (timms("adahessian"), "second derivatives.* backend='mask'"),
    ],
    ids=["sparse", "capturable", "dampened", "second order"],
)
def test_unsuitable_optimizers_are_refused_before_the_first_step(make, message):
    with pytest.raises(MisconfigurationException, match=message):
        sliced(make)


def test_square_matrices_have_no_padding():
    """So Adafactor may alternate."""
    module = Module(optim.Adafactor)
    module.trunk, module.head = nn.Linear(I, I, bias=False), nn.Linear(I, 3, bias=False)
    callback = SliceFineCallback(R, axis="alternate", interval=INTERVAL, targets="trunk", also_train="head", lr_scale=1)
    Trainer(
        callbacks=[callback], max_epochs=1, precision="64-true", accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, examples())  # fmt: skip
