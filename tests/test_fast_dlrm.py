"""The torch DLRM: its derivatives, its names, and the NumPy DLRM's per-example gradients at the same weights (M1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from samelaw.contract.errors import InputError
from samelaw.contract.noise import NoiseKey
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import PrivacySpec
from samelaw.contract.trace import Batch, Feature, FeatureBags, Lookup, Pooling
from samelaw.fast.dlrm import DLRM, PairwiseDots, bce_loss
from samelaw.fast.oracle import TorchOracle
from samelaw.fast.trainer import LazyTrainer
from samelaw.reference.dlrm import NumpyDLRM
from samelaw.reference.reading import read_bags


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny arrays only wait for a second thread."""
    before = torch.get_num_threads(), numba.get_num_threads()
    numba.set_num_threads(1)  # first: it may set torch's number too
    torch.set_num_threads(1)
    yield
    numba.set_num_threads(before[1])
    torch.set_num_threads(before[0])


FEATURES = (
    Feature("user", "user", 9),
    Feature("liked", "item", 7, Pooling.MEAN),
    Feature("seen", "item", 7, Pooling.MEAN),
    Feature("tags", "tag", 5),
)


def model_of(dense_width: int, dim: int = 6) -> DLRM:
    torch.manual_seed(1)
    return DLRM(FEATURES, dense_width, dim=dim, bottom=(5, dim), top=(8, 4, 1))


def batch_of(examples: int, dense_width: int) -> Batch:
    rng = np.random.default_rng(0)
    features = []
    for feature in FEATURES:
        lengths = rng.integers(0, 4, examples)
        ids = rng.integers(0, feature.rows, lengths.sum()).astype(np.int64)
        features.append(FeatureBags(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)))
    dense = rng.normal(size=(examples, dense_width)).astype(np.float32)
    labels = rng.integers(0, 2, examples).astype(np.float32)
    return Batch(dense, tuple(features), labels, np.arange(examples, dtype=np.int64))


def test_pairwise_dots_are_the_upper_triangle_row_by_row() -> None:
    z = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    dots: Any = PairwiseDots.apply(z)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    expected = torch.stack([(z[:, i] * z[:, j]).sum(1) for i, j in pairs], dim=1)
    assert torch.allclose(dots, expected, rtol=1e-14)
    assert torch.autograd.gradcheck(PairwiseDots.apply, (z,))


@pytest.mark.parametrize("dense_width", [3, 0])
def test_M1_per_example_gradients_are_those_of_the_numpy_dlrm(dense_width: int) -> None:
    model, batch = model_of(dense_width).double(), batch_of(10, dense_width)
    tables = {
        f"tables.{name}": table.weight.detach().numpy().astype(np.float32) for name, table in model.tables.items()
    }
    with torch.no_grad():
        for name, table in model.tables.items():
            table.weight.copy_(torch.from_numpy(tables[f"tables.{name}"]))
        for parameter in model.parameters():
            parameter.copy_(parameter.float())
    dense = {name: p.detach().float().numpy() for name, p in model.named_parameters() if not name.startswith("tables.")}
    numpy_dlrm = NumpyDLRM(dense, FEATURES, dense_width)
    hand = numpy_dlrm.per_example_gradients(batch, lambda lookup: read_bags(tables[lookup.table], lookup))

    bags = [(torch.from_numpy(f.ids), torch.from_numpy(f.offsets)) for f in batch.features]
    logits = model(torch.from_numpy(batch.dense).double(), bags)
    losses = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(batch.labels).double(), reduction="none")
    names = [name for name in dict(model.named_parameters()) if not name.startswith("tables.")]
    parameters = dict(model.named_parameters())
    for example in range(len(batch)):
        found = torch.autograd.grad(losses[example], [parameters[name] for name in names], retain_graph=True)
        for name, gradient in zip(names, found, strict=True):
            # NumPy pools rows of size 1/3 in float32, up to three of them: an error below 2^-22 at the input, which
            # passes two dot products and three small layers with gains below 8.
            assert np.allclose(gradient.numpy(), hand[name][example], rtol=0, atol=2.0**-17), (name, example)


def test_losses_and_logits_are_those_of_the_numpy_dlrm() -> None:
    model, batch = model_of(3), batch_of(10, 3)
    oracle = TorchOracle(model, bce_loss)
    numpy_dlrm = NumpyDLRM(oracle.dense, FEATURES, 3)

    def read(lookup: Lookup) -> np.ndarray:
        return read_bags(oracle.tables[lookup.table], lookup)

    found, expected = oracle.gradients(batch, read), numpy_dlrm.gradients(batch, read)
    assert [lookup.table for lookup in found.lookups] == ["tables.user", "tables.item", "tables.item", "tables.tag"]
    # The same reads in both; float32 against float64 in layers of width at most 16: below 2^-18 relative.
    assert np.allclose(found.logits, expected.logits, rtol=2.0**-18, atol=2.0**-20)
    assert np.allclose(found.losses, expected.losses, rtol=2.0**-18, atol=2.0**-20)
    assert np.allclose(found.dense_square_norms, expected.dense_square_norms, rtol=2.0**-16, atol=0)


def test_names_are_those_of_the_reference() -> None:
    assert [name for name, _ in model_of(3).named_parameters()] == [
        "tables.user.weight", "tables.item.weight", "tables.tag.weight",
        "bottom.0.weight", "bottom.0.bias", "bottom.1.weight", "bottom.1.bias",
        "top.0.weight", "top.0.bias", "top.1.weight", "top.1.bias", "top.2.weight", "top.2.bias",
    ]  # fmt: skip
    assert not any(name.startswith("bottom") for name, _ in model_of(0).named_parameters())


def test_rows_are_what_a_step_reads() -> None:
    model, batch = model_of(3), batch_of(10, 3)
    spec = PrivacySpec(1.0, 1.0, 0.5, 5.0, 1e-5, Schedule.constant(0.1, steps=3))
    trainer = LazyTrainer(model, spec, NoiseKey.from_seed(0), examples=20, loss_fn=bce_loss, record=True)
    trainer.train_batch(batch)
    assert trainer.transcript is not None
    read = trainer.transcript.steps[0].rows
    announced = model.rows(batch)
    assert set(announced) == set(trainer.tables)
    for name, ids in announced.items():
        assert np.array_equal(np.unique(ids), read[name])


def test_it_learns_a_click_that_depends_on_the_user() -> None:
    rng = np.random.default_rng(3)
    users = rng.integers(0, 9, 400).astype(np.int64)
    labels = (users % 2).astype(np.float32)
    ends = np.arange(401, dtype=np.int64)
    empty = FeatureBags(np.zeros(0, dtype=np.int64), np.zeros(401, dtype=np.int64))

    def batch(chosen: np.ndarray) -> Batch:
        n = len(chosen)
        none = FeatureBags(empty.ids, empty.offsets[: n + 1])
        bags = (FeatureBags(users[chosen], ends[: n + 1]), none, none, none)
        return Batch(np.ones((n, 1), dtype=np.float32), bags, labels[chosen], chosen)

    torch.manual_seed(0)
    model = DLRM(FEATURES, 1, dim=6, bottom=(5, 6), top=(16, 1))
    spec = PrivacySpec(1.0, 0.3, 0.25, 100.0, 1e-5, Schedule.constant(2.0, steps=120))
    trainer = LazyTrainer(model, spec, NoiseKey.from_seed(4), examples=400, loss_fn=bce_loss)
    first = last = None
    for _ in range(120):
        last = trainer.train_batch(batch(trainer.sample()))
        first = last if first is None else first
    assert first is not None
    assert last is not None
    # A coin gives ln 2 = 0.69. With this much noise and fixed keys the loss ends far below it.
    assert first > 0.6
    assert last < 0.35
    trainer.release()
    assert isinstance(model.tables["user"], nn.EmbeddingBag)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bottom": (5, 7)}, "must end at the tables' width 6"),
        ({"bottom": ()}, "must end at the tables' width 6"),
        ({"top": (8, 2)}, "must end in one logit"),
        ({"top": ()}, "must end in one logit"),
        ({"features": FEATURES[:1], "dense_width": 0}, "at least two vectors"),
        ({"features": (*FEATURES, Feature("x", "item", 8, Pooling.MEAN))}, "'liked' and 'x' share table 'item'"),
        ({"features": (*FEATURES, Feature("x", "item", 7))}, "share table 'item' but disagree"),
        ({"features": (*FEATURES, Feature("x", "a.b", 7))}, "must not be empty or hold a dot"),
    ],
)
def test_widths_and_features_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"features": FEATURES, "dense_width": 3, "dim": 6, "bottom": (5, 6), "top": (8, 1)}
    with pytest.raises(InputError, match=message):
        DLRM(**{**given, **arguments})
