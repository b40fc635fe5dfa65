"""The tangent kernel is checked against closed forms and torch.func's Jacobian, and restores the network."""

import copy
import math

import pytest
import torch
from torch import nn

from slicefine_pl.analysis.kernel import alignment, drift, kernel, slice_parameters, spectrum, target_weights
from slicefine_pl.slicing import slice_model

N, I, C = 5, 7, 3


class Conv(nn.Module):
    """A convolution, attention, dropout, batch norm and two linear layers, with 3 outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.hidden = nn.Linear(4, 6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, C)

    def forward(self, x):
        x = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x)[0].mean(1)
        return self.head(self.drop(torch.tanh(self.hidden(x))))


@pytest.fixture
def net():
    return Conv().double()


@pytest.fixture
def images():
    return torch.randn(N, 4, 5, 5, dtype=torch.float64)


def jacobian(net, x, names):
    """Return the Jacobian by torch.func for the named parameters, each of shape ``(N C, O, I, ...)``."""
    net = copy.deepcopy(net).eval()
    values = {name: parameter.detach() for name, parameter in net.named_parameters()}
    chosen = {name: values[name] for name in names}
    found = torch.func.jacrev(lambda own: torch.func.functional_call(net, {**values, **own}, (x,)))(chosen)
    return {name: rows.flatten(0, 1) for name, rows in found.items()}


def gram(rows):
    return sum(each.flatten(1) @ each.flatten(1).T for each in rows)


def test_linear_layer_has_the_closed_form():
    """d(W x + b)_c / dW_{kj} = δ_ck x_j, so K = (X Xᵀ) ⊗ I; the bias adds 1 1ᵀ ⊗ I."""
    net, x = nn.Linear(I, C).double(), torch.randn(N, I, dtype=torch.float64)
    found = kernel(net, net, [x], [net.weight])
    torch.testing.assert_close(found, torch.kron(x @ x.T, torch.eye(C, dtype=torch.float64)))
    both = kernel(net, net, [x], [net.weight, net.bias])
    torch.testing.assert_close(both, torch.kron(x @ x.T + 1, torch.eye(C, dtype=torch.float64)))


@pytest.mark.parametrize("max_rows", [2, 7, 14, 100])
@pytest.mark.parametrize("parts", [1, 2, N])
def test_kernel_agrees_with_the_jacobian_of_torch_func(net, images, max_rows, parts):
    """Independent of ``max_rows`` and of the number of batches."""
    names = [name for name, _ in net.named_parameters()]
    found = kernel(net, net, images.split(math.ceil(N / parts)), net.parameters(), max_rows)
    torch.testing.assert_close(found, gram(jacobian(net, images, names).values()))


def test_max_rows_limits_memory(net, images, monkeypatch):
    held, most = [], []
    zeros = torch.Tensor.new_zeros

    def counted(self, *shape, **kwargs):
        made = zeros(self, *shape, **kwargs)
        if isinstance(self, nn.Parameter) and made.ndim == 2 and self is net.head.bias:
            import weakref

            held.append(weakref.ref(made))
            most.append(sum(len(each()) for each in held if each() is not None))
        return made

    monkeypatch.setattr(torch.Tensor, "new_zeros", counted)
    kernel(net, net, [images], [net.hidden.weight, net.head.bias], max_rows=6)
    assert len(held) > 3
    assert max(most) <= 6


@pytest.mark.parametrize("backend", ["auto", "mask"])
@pytest.mark.parametrize(("axis", "moves"), [("column", 0), ("row", 1), ("alternate", 1)])
def test_kernel_of_open_slices_is_the_dense_kernel_of_their_entries(net, images, axis, moves, backend):
    """The gradient of a slice is a block of the dense gradient, so its kernel sums over these entries only."""
    names = {"conv": "conv.weight", "hidden": "hidden.weight", "head": "head.weight"}
    dense = jacobian(net, images, names.values())
    handle = slice_model(net, rank=2, axis=axis, targets=list(names), also_train=[r"norm\.bias"], backend=backend)
    for _ in range(moves):
        handle.move()
    found = kernel(net, net, images.split(2), slice_parameters(handle))
    restricted = [
        dense[names[slice_.name]].index_select(1 if slice_.axis == "row" else 2, slice_.indices) for slice_ in handle
    ]
    torch.testing.assert_close(found, gram(restricted))
    handle.close()


def test_slices_of_full_width_have_the_dense_kernel_of_attention(net, images):
    dense = gram(jacobian(net, images, ["attention.in_proj_weight", "attention.out_proj.weight"]).values())
    handle = slice_model(net, rank=4, targets="attention", also_train="head")
    torch.testing.assert_close(kernel(net, net, [images], slice_parameters(handle)), dense)


def test_target_weights_contain_the_slices(net):
    """The four matrices of attention lie in two parameters, each listed once; narrow layers are left out."""
    weights = target_weights(net, rank=3)
    assert [id(weight) for weight in weights] == [
        id(net.attention.in_proj_weight),
        id(net.attention.out_proj.weight),
        id(net.hidden.weight),
        id(net.head.weight),
    ]
    assert [id(weight) for weight in target_weights(net, "hid")] == [id(net.hidden.weight)]


def test_network_state_is_restored(net, images):
    """Modes, random generators, requires_grad, .grad, buffers and importance scores are unchanged."""
    net.train()
    net.drop.eval()
    net.hidden.bias.requires_grad_(False)
    handle = slice_model(net, rank=2, order="importance", targets="hidden", also_train="head")
    net(images).sum().backward()
    slice_ = next(module for module in net.modules() if type(module).__name__ == "Slice")
    score, gradient = slice_.score.clone(), slice_.trainable.grad.clone()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [parameter.requires_grad for parameter in net.parameters()]
    modes = [module.training for module in net.modules()]
    generator = torch.get_rng_state()
    with torch.no_grad():
        kernel(net, lambda x: nn.functional.dropout(net(x), 0.0), [images], slice_parameters(handle))
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(slice_.score, score)
    assert torch.equal(slice_.trainable.grad, gradient)
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_network_state_is_restored_after_an_error(net, images):
    with pytest.raises(ValueError, match=r"shape \(5, 3, 1\)"):
        kernel(net, lambda x: net(x).unsqueeze(-1), [images], [net.head.weight])
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_unused_parameters_add_nothing(net, images):
    lonely = nn.Linear(2, 2).double()
    net.add_module("lonely", lonely)
    found = kernel(net, net, [images], [net.head.weight, lonely.weight])
    torch.testing.assert_close(found, kernel(net, net, [images], [net.head.weight]))
    with pytest.raises(ValueError, match="do not depend on the chosen parameters"):
        kernel(net, net, [images], [lonely.weight])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": []}, "No parameters"),
        ({"batches": []}, "No batches"),
        ({"max_rows": 1}, "max_rows=1 is too small"),
    ],
)
def test_invalid_arguments_are_refused(net, images, change, message):
    given = {"net": net, "outputs": net, "batches": [images], "parameters": [net.head.weight]} | change
    with pytest.raises(ValueError, match=message):
        kernel(**given)


def test_spectrum_of_known_eigenvalues():
    basis, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    found = spectrum(basis @ values.diag() @ basis.T)
    torch.testing.assert_close(found.eigenvalues, values.flip(0))
    assert found.condition == pytest.approx(8)
    shares = values / 15
    assert found.effective_rank == pytest.approx(math.prod(float(share**-share) for share in shares))


def test_spectrum_of_the_identity_and_of_one_direction():
    assert spectrum(torch.eye(6)).effective_rank == pytest.approx(6)
    one = torch.outer(torch.arange(1.0, 4), torch.arange(1.0, 4))
    assert spectrum(one).effective_rank == pytest.approx(1)
    assert spectrum(one).condition == math.inf
    with pytest.raises(ValueError, match="zero or not finite"):
        spectrum(torch.zeros(2, 2))


def test_drift():
    before = torch.randn(3, 3)
    assert drift(before, before) == 0
    assert drift(1.5 * before, before) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="one fixed batch"):
        drift(before, torch.eye(4))
    with pytest.raises(ValueError, match="first kernel is zero"):
        drift(before, torch.zeros(3, 3))


def test_alignment():
    one, other = torch.diag(torch.tensor([3.0, 4.0, 0])), torch.diag(torch.tensor([0, 1.0, 0]))
    assert alignment(one, 7 * one) == pytest.approx(1)
    assert alignment(one, other) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="one fixed batch"):
        alignment(one, torch.eye(2))
    with pytest.raises(ValueError, match="is zero"):
        alignment(one, torch.zeros(3, 3))


def test_drift_during_training(net, images):
    """Training moves the kernel of a nonlinear network, not that of a linear one."""
    linear = nn.Linear(100, C).double()
    for trained, x, moves in ((net, images, True), (linear, images.flatten(1), False)):
        before = kernel(trained, trained, [x], trained.parameters())
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        after = kernel(trained, trained, [x], trained.parameters())
        assert (drift(after, before) > 1e-3) == moves
