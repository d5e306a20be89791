"""Norms and clipped sums of dense parameters from one backward pass, against autograd one example at a time.

The exact cases have small integers as weights, inputs and readout, so that every float32 product and sum in the model
is an integer below 2^24 and nothing rounds: norms may then differ from the true ones by their own float64 rounding
alone, and clipped sums with powers of two as factors not at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samelaw.contract.errors import InputError, MixedExamplesError, UnsupportedLayerError
from samelaw.fast.bookkeeping import BatchGradients, Book
from samelaw.fast.mixing import check_examples_apart, check_layers_apart, check_parameter_uses

EXAMPLES = 6
FACTORS = torch.tensor([1.0, 0.5, 0.25, 1.0, 0.125, 0.5], dtype=torch.float64)


class Sequence(nn.Module):
    """Some layers in a row, read out with integer coefficients of every example's own."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return readout(x)


def readout(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return (x * torch.randint(-2, 3, x.shape, generator=generator)).flatten(1).sum(1)


class Twice(nn.Module):
    """One layer called twice on one path and once on another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return readout(self.layer(F.relu(self.layer(x))) + self.layer(input=x[:, [2, 0, 1]]))


class Tied(nn.Module):
    """Two Linear layers on one weight, with biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return readout(self.second(self.first(x)))


class Gain(nn.Module):
    """A layer of the user's own: a bare parameter, used where it stands."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, *, shift: float = 0.0) -> Tensor:
        return (x + shift) * self.gain


class Temperature(nn.Module):
    """A layer whose parameter is a number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Transposed(nn.Module):
    """Uses a Linear's weight the other way round, through a parameter that is registered here too."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class TiedAcrossKinds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 3)
        self.decode = Transposed(self.encode)

    def forward(self, x: Tensor) -> Tensor:
        return readout(self.decode(self.encode(x)))


class PartlyFrozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.spare = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 2)
        self.a.bias.requires_grad_(False)
        self.b.weight.requires_grad_(False)
        for parameter in self.c.parameters():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return readout(self.c(self.b(F.relu(self.a(x)))))


class Names(nn.Module):
    """Integers in, floats out: nothing before this layer requires a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x.long().remainder(7)].sum(1)


@dataclass
class Case:
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]


EXACT = {
    "one layer": Case(lambda: Sequence(nn.Linear(3, 2)), (3,)),
    "no bias": Case(lambda: Sequence(nn.Linear(3, 2, bias=False)), (3,)),
    "an MLP": Case(lambda: Sequence(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)), (3,)),
    "in-place activations": Case(
        lambda: Sequence(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3), nn.ReLU(inplace=True)), (3,)
    ),
    "few positions: Gram matrices": Case(lambda: Sequence(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)), (2, 6)),
    "many positions: the gradient itself": Case(lambda: Sequence(nn.Linear(3, 4), nn.ReLU()), (5, 2, 3)),
    "one position in three axes": Case(lambda: Sequence(nn.Linear(3, 4)), (1, 3)),
    "no positions": Case(lambda: Sequence(nn.Linear(3, 4)), (0, 3)),
    "a layer called three times": Case(Twice, (3,)),
    "tied weights": Case(Tied, (3,)),
    "tied across kinds": Case(TiedAcrossKinds, (4,)),
    "partly frozen": Case(PartlyFrozen, (3,)),
    "convolution": Case(lambda: Sequence(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)), (2, 4)),
    "strided, grouped convolution": Case(lambda: Sequence(nn.Conv2d(2, 4, 2, stride=2, groups=2)), (2, 4, 4)),
    "a layer of one's own": Case(lambda: Sequence(nn.Linear(3, 3), Gain(3), nn.Linear(3, 2)), (3,)),
    "a layer of one's own first": Case(lambda: Sequence(Names(), nn.Linear(3, 2)), (5,)),
    "a number as parameter": Case(lambda: Sequence(nn.Linear(3, 3), Temperature()), (3,)),
    "two layers of one's own": Case(lambda: Sequence(Gain(3), Gain(3)), (3,)),
}


def integers(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = torch.randint(-2, 3, parameter.shape, generator=generator).float()
    return model


def inputs(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(-3, 4, (EXAMPLES, *shape), generator=torch.Generator().manual_seed(4)).float()


def kept(model: nn.Module, x: Tensor) -> tuple[Book, BatchGradients]:
    book = Book(model, device=torch.device("cpu"))
    return book, book.backward(model(x))


def autograd(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Per-example gradients in float64: name -> (examples, *shape)."""
    original = copy.deepcopy(model).double()
    names = {name: p for name, p in original.named_parameters() if p.requires_grad}
    losses = original(x.double())
    rows = [
        torch.autograd.grad(loss, list(names.values()), retain_graph=True, materialize_grads=True) for loss in losses
    ]
    return {name: torch.stack([row[k] for row in rows]) for k, name in enumerate(names)}


@pytest.mark.parametrize("name", EXACT)
def test_norms_and_clipped_sums_are_those_of_autograd(name: str) -> None:
    model, x = integers(EXACT[name].model()), inputs(EXACT[name].shape)
    gradients = autograd(model, x)
    book, found = kept(model, x)
    assert list(book.parameters) == sorted(gradients)
    squares = sum(g.reshape(EXAMPLES, -1).square().sum(1) for g in gradients.values())
    assert isinstance(squares, Tensor)
    # An upper bound, but for the few float64 roundings that the clip factor's margin covers. What it adds for
    # cancellation is below 2^-40 of sum |a|^2|d|^2, here below 2^24.
    assert bool((found.dense_square_norms >= squares * (1 - 2.0**-49)).all())
    assert bool((found.dense_square_norms <= squares * (1 + 2.0**-50) + 2.0**-16).all())
    sums = book.clipped_sums(found, FACTORS)
    for parameter, gradient in gradients.items():
        assert torch.equal(sums[parameter].double(), torch.tensordot(FACTORS, gradient, 1)), parameter
        assert sums[parameter].dtype is torch.float32


FLOATING = {
    "LayerNorm": Case(lambda: Sequence(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)), (4,)),
    "GroupNorm": Case(lambda: Sequence(nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh()), (2, 5)),
    "InstanceNorm": Case(lambda: Sequence(nn.InstanceNorm1d(2, affine=True), nn.Flatten(), nn.Linear(10, 2)), (2, 5)),
    "PReLU": Case(lambda: Sequence(nn.Linear(4, 5), nn.PReLU(), nn.Linear(5, 2)), (4,)),
    "an MLP": Case(lambda: Sequence(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 1)), (4,)),
    "positions": Case(lambda: Sequence(nn.Linear(4, 6), nn.Softmax(dim=-1), nn.Linear(6, 4)), (7, 4)),
}


@pytest.mark.parametrize("name", FLOATING)
def test_layers_that_round_agree_with_autograd_to_float32(name: str) -> None:
    torch.manual_seed(0)
    model, x = FLOATING[name].model(), torch.randn(EXAMPLES, *FLOATING[name].shape)
    gradients = autograd(model, x)
    book, found = kept(model, x)
    squares = sum(g.flatten(1).square().sum(1) for g in gradients.values())
    # Fewer than 64 float32 operations lie in a row between an input and a gradient, each worth 2^-24, and no layer here
    # amplifies a relative error more than 4 times: 2^-16 of the norm, and the same of the clipped sum's largest part.
    assert torch.allclose(found.dense_square_norms, squares, rtol=2.0**-15, atol=0)
    sums = book.clipped_sums(found, FACTORS)
    for parameter, gradient in gradients.items():
        exact = torch.tensordot(FACTORS, gradient, 1)
        room = 2.0**-16 * float(torch.tensordot(FACTORS, gradient.abs(), 1).max())
        assert float((sums[parameter].double() - exact).abs().max()) <= room, parameter


def test_general_layers_give_the_norm_of_autograd_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs((4,))
    _, whole = kept(integers(EXACT["tied across kinds"].model()), x)
    monkeypatch.setattr("samelaw.fast.dense_gradients._CHUNK_BYTES", 8)
    _, single = kept(integers(EXACT["tied across kinds"].model()), x)
    assert torch.equal(whole.dense_square_norms, single.dense_square_norms)


def test_one_backward_pass_and_no_weight_gradients() -> None:
    model, x = integers(EXACT["an MLP"].model()), inputs((3,))
    passes = 0
    grad = torch.autograd.grad

    def counting(*args: object, **kwargs: object) -> object:
        nonlocal passes
        passes += 1
        return grad(*args, **kwargs)  # type: ignore[arg-type]

    book = Book(model, device=torch.device("cpu"))
    losses = model(x)
    torch.autograd.grad = counting  # type: ignore[assignment]
    try:
        found = book.backward(losses)
        book.clipped_sums(found, FACTORS)
    finally:
        torch.autograd.grad = grad
    assert passes == 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_example_whose_gradient_is_not_finite_is_left_out() -> None:
    x = inputs((3,))
    x[2] = torch.tensor([float("inf"), 1.0, float("nan")])
    book, found = kept(integers(EXACT["a layer of one's own"].model()), x)
    assert not bool(torch.isfinite(found.dense_square_norms[2]))
    factors = FACTORS.clone()
    factors[2] = 0.0
    sums = book.clipped_sums(found, factors)
    x[2] = 0.0  # its factor is zero all the same
    book, found = kept(integers(EXACT["a layer of one's own"].model()), x)
    for name, value in book.clipped_sums(found, factors).items():
        assert torch.equal(sums[name], value), name


def test_cancellation_cannot_hide_a_norm() -> None:
    # d_2 = -d_1 up to one part in 2^20, and a_1 = a_2: the Gram sum is a difference of numbers 2^40 times its size.
    layer = nn.Linear(1, 1, bias=False)
    book = Book(layer, device=torch.device("cpu"))
    x = torch.ones(1, 2, 1)
    losses = (layer(x) * torch.tensor([[1.0 + 2.0**-20], [-1.0]])).flatten(1).sum(1)
    found = book.backward(losses)
    assert float(found.dense_square_norms[0]) >= 2.0**-40


class BatchMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Centred(nn.Module):
    """A layer with a parameter that looks at the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) * self.gain


@pytest.mark.parametrize("examples", [2, 3, 6])
def test_a_model_that_mixes_examples_is_caught_by_its_gradients(examples: int) -> None:
    model = Sequence(nn.Linear(3, 3), BatchMean(), nn.Linear(3, 2))
    book = Book(model, device=torch.device("cpu"))
    losses = model(torch.randn(examples, 3, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(MixedExamplesError, match=r"'layers\.0'"):
        check_examples_apart(book, losses)


def test_two_examples_that_touch_are_caught_among_many() -> None:
    model = Sequence(nn.Linear(3, 3))
    book = Book(model, device=torch.device("cpu"))
    outputs = model.layers[0](inputs((3,)).repeat(30, 1))
    for i, j in ((0, 179), (179, 0), (17, 18), (90, 3)):
        losses = outputs.sum(1)
        losses = losses + F.one_hot(torch.tensor(i), 180) * outputs[j, 0]
        with pytest.raises(MixedExamplesError):
            check_examples_apart(book, losses)
    check_examples_apart(book, outputs.sum(1))


def test_a_loss_that_is_already_a_mean_is_caught() -> None:
    model = Sequence(nn.Linear(3, 3))
    book = Book(model, device=torch.device("cpu"))
    losses = model(inputs((3,)))
    with pytest.raises(MixedExamplesError):
        check_examples_apart(book, losses.mean().expand(EXAMPLES) + 0 * losses)


def test_a_layer_with_parameters_that_mixes_its_inputs_is_caught_though_no_gradient_shows_it() -> None:
    model = Sequence(Centred())
    book = Book(model, device=torch.device("cpu"))
    losses = model(inputs((3,)))
    check_examples_apart(book, losses)  # nothing upstream has a gradient to show
    found = book.backward(losses)
    with pytest.raises(MixedExamplesError, match="Centred"), book.paused():
        check_layers_apart(found)


def test_layers_that_keep_examples_apart_pass_both_checks() -> None:
    for case in (*EXACT.values(), *FLOATING.values()):
        model = case.model()
        book = Book(model, device=torch.device("cpu"))
        losses = model(inputs(case.shape))
        if losses.requires_grad:
            check_examples_apart(book, losses)
        found = book.backward(losses)
        with book.paused():
            check_layers_apart(found)


class UsedOutside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return readout(F.linear(self.first(x), self.second.weight))


class Thief(nn.Module):
    """A layer that reaches for the weight of another."""

    def __init__(self, other: nn.Linear) -> None:
        super().__init__()
        self.others = [other]
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(x, self.others[0].weight)


def test_a_parameter_used_outside_its_layer_is_caught() -> None:
    linear = nn.Linear(3, 3)
    for model, name in ((UsedOutside(), "second.weight"), (Sequence(linear, Thief(linear)), "layers.0.weight")):
        book = Book(model, device=torch.device("cpu"))
        with pytest.raises(UnsupportedLayerError, match=name):
            check_parameter_uses(book, model(inputs((3,))))


def test_parameters_inside_their_layers_pass() -> None:
    for case in (*EXACT.values(), *FLOATING.values()):
        model = case.model()
        book = Book(model, device=torch.device("cpu"))
        check_parameter_uses(book, model(inputs(case.shape)))


class Overwrites(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        y = self.layer(x)
        x.zero_()
        return readout(y)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.mean().detach()
        return readout(self.layer(x))


class Noisy(nn.Module):
    """Dropout inside a layer of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training) * self.gain


class Shifted(nn.Module):
    """Takes a tensor that is no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = Gain(3)

    def forward(self, x: Tensor) -> Tensor:
        return readout(self.gain(x, shift=torch.ones(3)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Overwrites(), "overwritten after the layer had read it"),
        (Counts(), "buffers .'seen'. changed"),
        (Sequence(Noisy()), "no per-example gradient"),
        (Shifted(), "every tensor argument needs the batch as leading index"),
    ],
    ids=["overwritten input", "running buffer", "randomness inside", "a tensor that is no batch"],
)
def test_what_cannot_be_rebuilt_is_refused_at_its_step(model: nn.Module, message: str) -> None:
    book = Book(model, device=torch.device("cpu"))
    losses = model(inputs((3,)))
    with pytest.raises(UnsupportedLayerError, match=message):
        book.backward(losses)


def test_losses_that_are_no_vector_of_this_pass_are_refused() -> None:
    model = Sequence(nn.Linear(3, 2))
    book = Book(model, device=torch.device("cpu"))
    losses = model(inputs((3,)))
    for wrong, message in (
        (losses.mean(), "vector of per-example losses"),
        (losses[:, None], "vector of per-example losses"),
        (3.0, "vector of per-example losses"),
        (losses.detach(), "do not depend on"),
        (torch.ones(EXAMPLES, requires_grad=True), "do not come from the training forward pass on record"),
    ):
        with pytest.raises(InputError, match=message):
            book.backward(wrong)  # type: ignore[arg-type]
    with pytest.raises(MixedExamplesError, match="leading index of 6 for a batch of 3"):
        book.backward(losses[:3])
    losses.sum().backward()
    with pytest.raises(InputError, match=r"do not call losses\.backward"):
        book.backward(losses)
    book.discard()
    with pytest.raises(InputError, match="no training forward pass is on record"):
        book.backward(losses)


def test_a_sequence_first_layout_is_refused() -> None:
    model = Sequence(nn.Linear(3, 2))
    book = Book(model, device=torch.device("cpu"))
    losses = model.layers[0](torch.randn(4, EXAMPLES, 3)).sum((0, 2))
    with pytest.raises(MixedExamplesError, match="Keep the batch first"):
        book.backward(losses)
