"""Every way to call an embedding layer: exact clipped sums against per-example autograd on the original layer.

The losses are linear in the reads with small integer coefficients, so torch's float32 gradients of them are exact and
all that may differ is what docs/arithmetic.md rounds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from samelaw.contract.noise import NoiseKey
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import CLIP_MARGIN, PrivacySpec
from samelaw.contract.trace import Batch
from samelaw.fast.trainer import LazyTrainer

ROWS, DIM = 5, 3
# sum over an example's bags of M_pp <d_p, d_p>: at most 30 bags, multiplicities that add up to 20, |d|^2 <= DIM * 9.
LARGEST_OWN = 30 * 20**2 * DIM * 9


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny arrays only wait for a second thread."""
    before = torch.get_num_threads(), numba.get_num_threads()
    numba.set_num_threads(1)  # first: it may set torch's number too
    torch.set_num_threads(1)
    yield
    numba.set_num_threads(before[1])
    torch.set_num_threads(before[0])


@dataclass
class Call:
    """Arguments of one embedding call, and integer coefficients for what it returns."""

    layer: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


class Model(nn.Module):
    """Losses that are linear in the reads of one or more calls."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, calls: list[Call], examples: int) -> Tensor:
        losses = torch.zeros(examples)
        for call in calls:
            read = self.layers[call.layer](*call.args, **call.kwargs)
            generator = torch.Generator().manual_seed(call.seed)
            losses = losses + (read * coefficients(read.shape, generator)).flatten(1).sum(1)
        return losses


def coefficients(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randint(-3, 4, shape, generator=generator).float()


class Examples(Batch):
    """A batch that is nothing but calls."""

    calls: list[Call]

    def __init__(self, calls: list[Call], examples: int) -> None:
        nothing = np.zeros(examples, dtype=np.float32)
        super().__init__(nothing[:, None], (), nothing, np.arange(examples, dtype=np.int64))
        object.__setattr__(self, "calls", calls)


def loss_fn(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    assert isinstance(batch, Examples)
    losses = model(batch.calls, len(batch))
    return losses, losses


def spec_of(clip_norm: float) -> PrivacySpec:
    return PrivacySpec(clip_norm, 0.0, 1.0, 1.0, 1e-5, Schedule.constant(1.0, steps=3))


def check(model: Model, calls: list[Call], examples: int, *, clip_norm: float = 2.0) -> None:
    """gradient_sums of the trainer against autograd, one example at a time, on the original layers in float64."""
    spec = spec_of(clip_norm)
    original = copy.deepcopy(model).double()
    tables = {
        name: module.weight
        for name, module in original.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    names = {id(weight): name for name, weight in reversed(tables.items())}
    losses = original([doubled(call) for call in calls], examples)
    gradients = [
        {
            names[id(weight)]: found.to_dense().double().numpy()
            for weight, found in zip(
                tables.values(),
                torch.autograd.grad(losses[i], list(tables.values()), retain_graph=True, materialize_grads=True),
                strict=True,
            )
        }
        for i in range(examples)
    ]
    trainer = LazyTrainer(copy.deepcopy(model), spec, NoiseKey.from_seed(0), examples=9, loss_fn=loss_fn)
    sums = trainer.gradient_sums(Examples(calls, examples))
    assert sums.factors is not None
    for of_tables, factor in zip(gradients, sums.factors.tolist(), strict=True):
        square = sum(float((g**2).sum()) for g in of_tables.values())
        target = clip_norm * (1 - CLIP_MARGIN)
        # The norm is taken from above: 2^-40 of every bag's own square is added. 2^-48 is room for float64 rounding.
        assert factor <= min(1.0, target / math.sqrt(square) if square else 1.0) * (1 + 2.0**-48)
        assert factor >= min(1.0, target / math.sqrt(square + 2.0**-40 * LARGEST_OWN)) * (1 - 2.0**-48)
    unit = 2.0**sums.exponent
    for name in trainer.tables:
        shares = [factor * g[name] for factor, g in zip(sums.factors.tolist(), gradients, strict=True)]
        found = np.zeros((ROWS, DIM))
        if name in sums.rows:
            found[sums.rows[name]] = sums.sums[name] * unit
        # Truncation takes less than one unit of every example that holds the row; the rest is float64 rounding.
        slack = sum(((share != 0) * unit + 2.0**-48 * np.abs(share) for share in shares), np.zeros((ROWS, DIM)))
        assert np.all(np.abs(found - sum(shares)) <= slack), name


def doubled(call: Call) -> Call:
    """The call with its weights in float64."""

    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return Call(call.layer, tuple(map(wide, call.args)), {k: wide(v) for k, v in call.kwargs.items()}, call.seed)


def ids(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def bag(**options: Any) -> nn.EmbeddingBag:
    return nn.EmbeddingBag(ROWS, DIM, **options)


def row(**options: Any) -> nn.Embedding:
    return nn.Embedding(ROWS, DIM, **options)


CASES: dict[str, tuple[Callable[[], dict[str, nn.Module]], Callable[[], list[Call]], int]] = {
    "sum": (lambda: {"a": bag(mode="sum")}, lambda: [Call("a", (ids(0, 1, 2, 1), ids(0, 2, 3)))], 3),
    "mean": (lambda: {"a": bag(mode="mean")}, lambda: [Call("a", (ids(0, 1, 2, 1), ids(0, 3)))], 2),
    "2-D ids": (lambda: {"a": bag(mode="sum")}, lambda: [Call("a", (torch.tensor([[0, 1], [2, 2]]),))], 2),
    "2-D ids, mean": (lambda: {"a": bag(mode="mean")}, lambda: [Call("a", (torch.tensor([[0, 1], [2, 2]]),))], 2),
    "include_last_offset": (
        lambda: {"a": bag(mode="sum", include_last_offset=True)},
        lambda: [Call("a", (ids(0, 1, 1, 3), ids(0, 1, 4)))],
        2,
    ),
    "int32 ids": (lambda: {"a": bag(mode="sum")}, lambda: [Call("a", (ids(0, 1, 4).int(), ids(0, 1).int()))], 2),
    "empty bags": (lambda: {"a": bag(mode="sum")}, lambda: [Call("a", (ids(3, 4), ids(0, 0, 1, 1, 2, 2)))], 6),
    "empty bags, mean": (lambda: {"a": bag(mode="mean")}, lambda: [Call("a", (ids(3, 4, 4), ids(0, 0, 2, 3)))], 4),
    "only empty bags": (
        lambda: {"a": bag(mode="sum")},
        lambda: [Call("a", (ids(0).new_zeros(0), ids(0, 0)))],
        2,
    ),
    "a row twenty times in a bag": (
        lambda: {"a": bag(mode="sum")},
        lambda: [Call("a", (ids(*[2] * 20, 2), ids(0, 20)))],
        2,
    ),
    "weights": (
        lambda: {"a": bag(mode="sum")},
        lambda: [Call("a", (ids(0, 1, 1, 2), ids(0, 3)), {"per_sample_weights": torch.tensor([2.0, -3.0, 0.5, 0.0])})],
        2,
    ),
    "weights that cancel": (
        lambda: {"a": bag(mode="sum")},
        lambda: [Call("a", (ids(1, 1, 2), ids(0, 2)), {"per_sample_weights": torch.tensor([2.0, -2.0, 1.0])})],
        2,
    ),
    "weights, 2-D": (
        lambda: {"a": bag(mode="sum")},
        lambda: [Call("a", (torch.tensor([[0, 1], [3, 3]]), None, torch.tensor([[1.0, 0.25], [-1.0, 4.0]])))],
        2,
    ),
    "padding": (
        lambda: {"a": bag(mode="sum", padding_idx=0)},
        lambda: [Call("a", (ids(0, 1, 0, 2, 0), ids(0, 3, 4)))],
        3,
    ),
    "padding, mean": (
        lambda: {"a": bag(mode="mean", padding_idx=1)},
        lambda: [Call("a", (ids(0, 1, 1, 2, 2, 1), ids(0, 3, 5)))],
        3,
    ),
    "padding from the end": (
        lambda: {"a": bag(mode="sum", padding_idx=-1)},
        lambda: [Call("a", (ids(4, 1, 4, 2), ids(0, 3)))],
        2,
    ),
    "padding and weights": (
        lambda: {"a": bag(mode="sum", padding_idx=0)},
        lambda: [Call("a", (ids(0, 1, 2), ids(0, 2)), {"per_sample_weights": torch.tensor([5.0, 2.0, 3.0])})],
        2,
    ),
    "padding and include_last_offset": (
        lambda: {"a": bag(mode="sum", padding_idx=2, include_last_offset=True)},
        lambda: [Call("a", (ids(2, 2, 1, 2), ids(0, 2, 4)))],
        2,
    ),
    "embedding, 1-D": (lambda: {"a": row()}, lambda: [Call("a", (ids(3, 3, 1),))], 3),
    "embedding, 2-D": (lambda: {"a": row()}, lambda: [Call("a", (torch.tensor([[0, 1, 0], [2, 2, 4]]),))], 2),
    "embedding, 3-D": (
        lambda: {"a": row()},
        lambda: [Call("a", (torch.tensor([[[0, 1], [1, 1]], [[2, 4], [4, 2]]]),))],
        2,
    ),
    "embedding, no columns": (
        lambda: {"a": row()},
        lambda: [Call("a", (torch.zeros(2, 0, dtype=torch.int64),)), Call("a", (ids(1, 2),), seed=1)],
        2,
    ),
    "embedding, padding": (
        lambda: {"a": row(padding_idx=1)},
        lambda: [Call("a", (torch.tensor([[0, 1, 1], [1, 1, 1]]),))],
        2,
    ),
    "sparse gradients asked for": (
        lambda: {"a": bag(mode="sum", sparse=True)},
        lambda: [Call("a", (ids(0, 1, 1), ids(0, 2)))],
        2,
    ),
    "two calls of one table": (
        lambda: {"a": bag(mode="sum")},
        lambda: [Call("a", (ids(0, 1, 2, 2), ids(0, 2)), seed=1), Call("a", (ids(1, 1, 2), ids(0, 1)), seed=2)],
        2,
    ),
    "two calls, sum and unpooled together": (
        lambda: shared(bag(mode="sum"), row()),
        lambda: [Call("a", (ids(0, 1, 2, 2), ids(0, 2)), seed=1), Call("b", (torch.tensor([[1, 2], [2, 0]]),), seed=2)],
        2,
    ),
    "sum and mean on one weight": (
        lambda: shared(bag(mode="sum"), bag(mode="mean")),
        lambda: [Call("b", (ids(0, 1, 2, 2), ids(0, 2)), seed=1), Call("a", (ids(1, 1, 2), ids(0, 2)), seed=2)],
        2,
    ),
    "two tables, clipped together": (
        lambda: {"a": bag(mode="sum"), "b": row()},
        lambda: [Call("b", (ids(0, 1),), seed=1), Call("a", (ids(1, 1, 2), ids(0, 2)), seed=2)],
        2,
    ),
}


def shared(a: nn.EmbeddingBag, b: nn.Module) -> dict[str, nn.Module]:
    """Two layers on one weight."""
    b.weight = a.weight
    return {"a": a, "b": b}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("clip_norm", [0.5, 1000.0])
def test_clipped_sums_are_those_of_per_example_autograd(name: str, clip_norm: float) -> None:
    layers, calls, examples = CASES[name]
    torch.manual_seed(0)
    check(Model(**layers()), calls(), examples, clip_norm=clip_norm)


@st.composite
def bag_calls(draw: st.DrawFn, *, examples: int, options: dict[str, Any]) -> tuple[Any, ...]:
    """Arguments of an EmbeddingBag call with these options."""
    row_id = st.integers(0, ROWS - 1)
    if draw(st.booleans()) and not options["include_last_offset"]:
        columns = draw(st.integers(1, 4))  # torch takes no bags of zero columns
        values = torch.tensor(
            [draw(st.lists(row_id, min_size=columns, max_size=columns)) for _ in range(examples)], dtype=torch.int64
        ).reshape(examples, columns)
        offsets = None
    else:
        lengths = draw(st.lists(st.integers(0, 4), min_size=examples, max_size=examples))
        total = sum(lengths)
        values = torch.tensor(draw(st.lists(row_id, min_size=total, max_size=total)), dtype=torch.int64)
        offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)
        if not options["include_last_offset"]:
            offsets = offsets[:-1]
    weights = None
    if options["mode"] == "sum" and draw(st.booleans()):
        # Quarters up to 2: products with the integer coefficients, and their sums, are exact in float32.
        flat = draw(st.lists(st.integers(-8, 8), min_size=values.numel(), max_size=values.numel()))
        weights = (torch.tensor(flat, dtype=torch.float32) / 4).reshape(values.shape)
    return values, offsets, weights


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Model, list[Call], int]:
    """Up to three layers, some on one weight, each called once or twice."""
    examples = draw(st.integers(1, 5))
    padding = draw(st.none() | st.integers(0, ROWS - 1))
    layers: dict[str, nn.Module] = {}
    calls: list[Call] = []
    weight: nn.Parameter | None = None
    for number in range(draw(st.integers(1, 3))):
        name = "abc"[number]
        if draw(st.booleans()):
            options = {
                "mode": draw(st.sampled_from(["sum", "mean"])),
                "include_last_offset": draw(st.booleans()),
                "padding_idx": padding,
            }
            layer: Any = bag(**options)
            for seed in range(draw(st.integers(1, 2))):
                args = draw(bag_calls(examples=examples, options=options))
                calls.append(Call(name, args, seed=10 * number + seed))
        else:
            layer = row(padding_idx=padding)
            shape = (examples, *draw(st.sampled_from([(), (1,), (3,), (2, 2)])))
            size = int(np.prod(shape))
            values = draw(st.lists(st.integers(0, ROWS - 1), min_size=size, max_size=size))
            calls.append(Call(name, (torch.tensor(values, dtype=torch.int64).reshape(shape),), seed=10 * number))
        if weight is not None and draw(st.booleans()):
            layer.weight = weight
        weight = layer.weight
        layers[name] = layer
    return Model(**layers), calls, examples


@settings(max_examples=60, deadline=None)
@given(scene=scenes(), clip_norm=st.sampled_from([0.3, 2.0, 100.0]))
def test_any_mixture_of_calls_is_that_of_per_example_autograd(scene: Any, clip_norm: float) -> None:
    model, calls, examples = scene
    check(model, calls, examples, clip_norm=clip_norm)


@pytest.mark.parametrize("name", CASES)
def test_reads_are_those_of_the_original_layer(name: str) -> None:
    layers, calls, _ = CASES[name]
    torch.manual_seed(1)
    model = Model(**layers())
    for module in model.layers.values():
        # Multiples of 1/8 below 2: sums and products with the weights are exact, and a mean of at most 20 rounds once.
        module.weight.data = torch.randint(-16, 17, (ROWS, DIM)) / 8
    expected = [model.layers[call.layer](*call.args, **call.kwargs).detach() for call in calls()]
    trainer = LazyTrainer(model, spec_of(1.0), NoiseKey.from_seed(0), examples=9)
    found = [trainer.model.layers[call.layer](*call.args, **call.kwargs) for call in calls()]
    for call, value, reference in zip(calls(), found, expected, strict=True):
        assert value.shape == reference.shape, call
        assert torch.equal(value, reference), call


def test_a_padding_row_that_is_not_zero_is_read_and_stays_a_constant() -> None:
    layer = row(padding_idx=1)
    layer.weight.data = torch.arange(1.0, 1 + ROWS * DIM).reshape(ROWS, DIM)
    before = layer.weight.detach().clone()
    spec = PrivacySpec(1.0, 1.0, 1.0, 1.0, 1e-5, Schedule.constant(1.0, steps=3))
    trainer = LazyTrainer(Model(a=layer), spec, NoiseKey.from_seed(0), examples=9)
    read = trainer.model.layers["a"](torch.tensor([[1, 0], [1, 1]]))
    assert torch.equal(read, before[torch.tensor([[1, 0], [1, 1]])])
    trainer.step(read.flatten(1).sum(1))
    trainer.empty_step()
    released = trainer.release().tables["layers.a"]
    assert np.array_equal(released[1], before[1].numpy())
    assert (released[[0, 2, 3, 4]] != before[[0, 2, 3, 4]].numpy()).all()


def test_an_update_moves_the_rows_by_the_rate_times_the_clipped_sum() -> None:
    torch.manual_seed(2)
    model = Model(a=bag(mode="sum"), b=row())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    calls = [Call("a", (ids(0, 1, 1, 4), ids(0, 2)), seed=1), Call("b", (ids(2, 2),), seed=2)]
    spec = PrivacySpec(2.0, 0.0, 1.0, 4.0, 1e-5, Schedule.constant(0.5, steps=3))
    trainer = LazyTrainer(model, spec, NoiseKey.from_seed(0), examples=9, loss_fn=loss_fn)
    sums = trainer.gradient_sums(Examples(calls, 2))
    trainer.step(model(calls, 2))
    released = trainer.release()
    for name, table in released.tables.items():
        expected = before[f"{name}.weight"].numpy().copy()
        gradient = np.ldexp(sums.sums[name].astype(np.float32), sums.exponent)
        expected[sums.rows[name]] = expected[sums.rows[name]] - np.float32(0.5 / 4.0) * gradient
        assert np.array_equal(table, expected), name
