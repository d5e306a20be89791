"""The NumPy DLRM: its gradients against finite differences and autograd, one example at a time; its sums exact."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from samelaw.contract.errors import InputError
from samelaw.contract.noise import NoiseKey, NoiseStream
from samelaw.contract.oracle import GradientOracle
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import Mode, PrivacySpec
from samelaw.contract.trace import Batch, Feature, FeatureBags, Lookup, Pooling
from samelaw.reference.clipping import clip_factors, contributions, square_norms
from samelaw.reference.dlrm import NumpyDLRM
from samelaw.reference.eager import EagerTrainer
from samelaw.reference.reading import read_bags

FEATURES = (
    Feature("user", "user", 11),
    Feature("genres", "genre", 7, Pooling.MEAN),
    Feature("history", "item", 13),
    Feature("item", "item", 13),
)


def linear_layers(part: str, sizes: Sequence[int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    dense: dict[str, np.ndarray] = {}
    for i in range(len(sizes) - 1):
        dense[f"{part}.{i}.weight"] = (rng.normal(size=(sizes[i + 1], sizes[i])) / np.sqrt(sizes[i])).astype(np.float32)
        dense[f"{part}.{i}.bias"] = (0.3 * rng.normal(size=sizes[i + 1])).astype(np.float32)
    return dense


def model_of(*, dense_width: int, dim: int = 4, seed: int = 1, dtype=np.float64, **options) -> NumpyDLRM:
    rng = np.random.default_rng(seed)
    vectors = len(FEATURES) + (dense_width > 0)
    top = vectors * (vectors - 1) // 2 + (dim if dense_width else 0)
    dense = linear_layers("bottom", (dense_width, 6, dim), rng) if dense_width else {}
    return NumpyDLRM(dense | linear_layers("top", (top, 5, 3, 1), rng), FEATURES, dense_width, dtype=dtype, **options)


def tables_of(*, dim: int = 4, seed: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"tables.{f.table}": rng.normal(size=(f.rows, dim)).astype(np.float32) for f in FEATURES}


def batch_of(examples: int, *, dense_width: int, seed: int = 3) -> Batch:
    """Bags of 0 to 4 ids, repeats among them."""
    rng = np.random.default_rng(seed)
    features = []
    for feature in FEATURES:
        sizes = rng.integers(0, 5, examples)
        ids = rng.integers(0, min(feature.rows, 5), sizes.sum())
        features.append(FeatureBags(ids.astype(np.int64), np.cumsum([0, *sizes]).astype(np.int64)))
    return Batch(
        rng.normal(size=(examples, dense_width)).astype(np.float32),
        tuple(features),
        rng.integers(0, 2, examples).astype(np.float32),
        np.arange(examples, dtype=np.int64),
    )


def reader_of(tables: dict[str, np.ndarray]):
    def read(lookup: Lookup) -> np.ndarray:
        return read_bags(tables[lookup.table], lookup)

    return read


WIDTHS = pytest.mark.parametrize("dense_width", [3, 0])


# --- M1: finite differences -------------------------------------------------------------------------------------------


def loss_by_the_definition(
    parameters: dict[str, np.ndarray], x: np.ndarray, vectors: np.ndarray, label: float
) -> np.floating:
    """The loss of one example in extended precision, with loops in place of matrix products."""

    def layers(part: str, h: np.ndarray, *, last_is_linear: bool) -> np.ndarray:
        count = sum(name.startswith(part) for name in parameters) // 2
        for i in range(count):
            weight, bias = parameters[f"{part}.{i}.weight"], parameters[f"{part}.{i}.bias"]
            h = np.array([sum(weight[o, j] * h[j] for j in range(h.size)) + bias[o] for o in range(bias.size)])
            if not (last_is_linear and i == count - 1):
                h = np.where(h > 0, h, 0)
        return h

    bottom = any(name.startswith("bottom") for name in parameters)
    h = layers("bottom", x, last_is_linear=False) if bottom else x[:0]
    z = [*([h] if bottom else []), *vectors]
    dots = [np.sum(z[i] * z[j]) for i in range(len(z)) for j in range(i + 1, len(z))]
    logit = layers("top", np.array([*h, *dots]), last_is_linear=True)[0]
    return np.log1p(np.exp(-logit)) if label == 1 else np.log1p(np.exp(logit))


@WIDTHS
def test_M1_gradients_are_finite_differences(dense_width):
    """Central differences in 80-bit floats with h = 2^-13.

    Their truncation error is h^2/6 = 2^-28.6 times a third derivative (below 2^6 for these sizes), their rounding error
    2^-64/h; pooled gradients are rounded to float32, a relative 2^-24. So 1e-6 + 1e-6 * |gradient| is never exceeded
    unless a ReLU changes sign within h, which the fixed seeds avoid.
    """
    model, batch = model_of(dense_width=dense_width), batch_of(5, dense_width=dense_width)
    read = reader_of(tables_of())
    found = model.gradients(batch, read)
    gradients = model.per_example_gradients(batch, read)
    reads = [read(lookup).astype(np.longdouble) for lookup in model.lookups(batch)]
    h = np.longdouble(2.0**-13)
    for b in range(len(batch)):
        parameters = {name: array.astype(np.longdouble) for name, array in model.dense.items()}
        x, label = batch.dense[b].astype(np.longdouble), float(batch.labels[b])
        vectors = np.stack([r[b] for r in reads])
        places = [(parameters[name], gradients[name][b]) for name in parameters]
        places += [(vectors[f], found.pooled[f][b]) for f in range(len(FEATURES))]
        for array, gradient in places:
            for index in np.ndindex(array.shape):
                value = array[index]
                array[index] = value + h
                up = loss_by_the_definition(parameters, x, vectors, label)
                array[index] = value - h
                down = loss_by_the_definition(parameters, x, vectors, label)
                array[index] = value
                assert float((up - down) / (2 * h)) == pytest.approx(float(gradient[index]), rel=1e-6, abs=1e-6)
        exact = float(loss_by_the_definition(parameters, x, vectors, label))
        assert found.losses[b] == pytest.approx(exact, rel=1e-6)


# --- M1: torch --------------------------------------------------------------------------------------------------------


class Twin(nn.Module):
    """The same architecture from torch's own modules, in float64."""

    def __init__(self, model: NumpyDLRM, tables: dict[str, np.ndarray], *, dense_width: int) -> None:
        super().__init__()
        modes = {f.table: str(f.pooling) for f in FEATURES}
        self.tables = nn.ModuleDict()
        for f in FEATURES:
            weight = torch.from_numpy(tables[f"tables.{f.table}"]).double()
            bag = nn.EmbeddingBag.from_pretrained(weight.clone(), freeze=False, mode=modes[f.table])
            self.tables[f.table] = bag
        self.bottom = self._stack("bottom", model) if dense_width else None
        self.top = self._stack("top", model)

    @staticmethod
    def _stack(part: str, model: NumpyDLRM) -> nn.ModuleList:
        layers = nn.ModuleList()
        for i in range(sum(name.startswith(part) for name in model.dense) // 2):
            weight = torch.from_numpy(model.dense[f"{part}.{i}.weight"]).double()
            layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
            layer.weight.data = weight
            layer.bias.data = torch.from_numpy(model.dense[f"{part}.{i}.bias"]).double()
            layers.append(layer)
        return layers

    def forward(self, batch: Batch) -> torch.Tensor:
        pooled = [
            self.tables[f.table](torch.from_numpy(bags.ids), torch.from_numpy(bags.offsets[:-1]))
            for f, bags in zip(FEATURES, batch.features, strict=True)
        ]
        h = torch.from_numpy(batch.dense).double()
        for layer in self.bottom or []:
            h = torch.relu(layer(h))
        z = torch.stack([*([h] if self.bottom else []), *pooled], dim=1)
        i, j = torch.triu_indices(z.shape[1], z.shape[1], offset=1)
        dots = (z @ z.transpose(1, 2))[:, i, j]
        t = torch.cat([h, dots], dim=1) if self.bottom else dots
        for k, layer in enumerate(self.top):
            t = layer(t) if k == len(self.top) - 1 else torch.relu(layer(t))
        return t[:, 0]


def one_example(batch: Batch, b: int) -> Batch:
    features = []
    for bags in batch.features:
        start, end = int(bags.offsets[b]), int(bags.offsets[b + 1])
        features.append(FeatureBags(bags.ids[start:end], np.array([0, end - start], dtype=np.int64)))
    part = slice(b, b + 1)
    return Batch(batch.dense[part], tuple(features), batch.labels[part], batch.indices[part])


@WIDTHS
def test_M1_gradients_are_autograds_example_by_example(dense_width):
    """Both in float64 from the same float32 reads' rows.

    Pooling in NumPy rounds to float32 (at most 4 additions: 2^-22 relative to the rows added), which moves every
    downstream value by a few such parts; pooled gradients are rounded to float32. 1e-5 of the largest entry covers
    both, and an error in a formula moves entries by their own size.
    """
    tables = tables_of()
    model, batch = model_of(dense_width=dense_width), batch_of(9, dense_width=dense_width)
    read = reader_of(tables)
    found = model.gradients(batch, read)
    gradients = model.per_example_gradients(batch, read)
    factors = np.full(len(batch), 1.0)
    integers = contributions(found.lookups, found.pooled, factors, -40, sorted(tables))
    twin = Twin(model, tables, dense_width=dense_width)
    for b in range(len(batch)):
        twin.zero_grad()
        logit = twin(one_example(batch, b))
        label = torch.tensor([float(batch.labels[b])], dtype=torch.float64)
        loss = nn.functional.binary_cross_entropy_with_logits(logit, label)
        loss.backward()
        assert found.logits[b] == pytest.approx(logit.item(), rel=1e-5, abs=1e-6)
        assert found.losses[b] == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
        square = 0.0
        for name, parameter in twin.named_parameters():
            expected = parameter.grad.numpy()
            if name.startswith("tables."):
                mine = np.zeros_like(expected)
                for row, integer in integers[b].get(name.removesuffix(".weight"), {}).items():
                    mine[row] = integer * 2.0**-40
            else:
                mine = gradients[name][b]
                square += float((expected**2).sum())
            assert np.abs(mine - expected).max() <= 1e-5 * max(1e-3, np.abs(expected).max()), name
        assert found.dense_square_norms[b] == pytest.approx(square, rel=1e-4, abs=1e-12)


def test_per_example_gradients_add_up_to_the_gradient_of_the_sum():
    model, batch = model_of(dense_width=3), batch_of(8, dense_width=3)
    tables = tables_of()
    gradients = model.per_example_gradients(batch, reader_of(tables))
    twin = Twin(model, tables, dense_width=3)
    labels = torch.from_numpy(batch.labels).double()
    nn.functional.binary_cross_entropy_with_logits(twin(batch), labels, reduction="sum").backward()
    for name, parameter in twin.named_parameters():
        if not name.startswith("tables."):
            assert np.allclose(gradients[name].sum(axis=0), parameter.grad.numpy(), rtol=1e-5, atol=1e-6)


# --- exact sums -------------------------------------------------------------------------------------------------------


def permuted(batch: Batch, order: list[int]) -> Batch:
    parts = [one_example(batch, b) for b in order]
    features = tuple(
        FeatureBags(
            np.concatenate([p.features[f].ids for p in parts]),
            np.cumsum([0, *(p.features[f].ids.size for p in parts)]).astype(np.int64),
        )
        for f in range(len(FEATURES))
    )
    return Batch(batch.dense[order], features, batch.labels[order], batch.indices[order])


def test_the_dense_sum_is_the_sum_of_truncated_integers():
    model, batch = model_of(dense_width=3, exponent=-30), batch_of(6, dense_width=3)
    gradients = model.per_example_gradients(batch, reader_of(tables_of()))
    factors = np.array([1.0, 0.5, 0.0, 1e-9, 0.123456789, 1.0])
    sums = model.clipped_dense_sum(factors)
    for name, array in gradients.items():
        assert sums[name].dtype == np.float32
        for index in np.ndindex(array.shape[1:]):
            total = sum(int(float(array[b][index]) * (float(factors[b]) * 2.0**30)) for b in range(6))
            assert sums[name][index] == np.float32(total) * np.float32(2.0**-30)


def test_an_example_that_is_left_out_may_hold_anything():
    model, batch = model_of(dense_width=3), batch_of(3, dense_width=3)
    batch.dense[1] = np.inf
    with np.errstate(invalid="ignore"):
        found = model.gradients(batch, reader_of(tables_of()))
    norms = square_norms(found.lookups, found.pooled, found.dense_square_norms, sorted(tables_of()))
    factors = clip_factors(norms, 1.0)
    assert factors[1] == 0
    assert (factors[[0, 2]] > 0).all()
    assert all(np.isfinite(total).all() for total in model.clipped_dense_sum(factors).values())


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_S1_tables_and_dense_parameters_share_one_clip_norm(dtype):
    """Exact: squares of the integers of an example over all tables and dense parameters are within (C * 2^-e)^2."""
    clip_norm, exponent = 0.05, -36  # ceil(log2 0.05) - 32
    model = model_of(dense_width=3, dtype=dtype, exponent=exponent)
    batch, tables = batch_of(12, dense_width=3), tables_of()
    found = model.gradients(batch, reader_of(tables))
    factors = clip_factors(
        square_norms(found.lookups, found.pooled, found.dense_square_norms, sorted(tables)), clip_norm
    )
    assert (factors < 1).sum() > 6
    integers = contributions(found.lookups, found.pooled, factors, exponent, sorted(tables))
    dense = model.per_example_gradients(batch, reader_of(tables))
    for b in range(len(batch)):
        square = sum(int(x) ** 2 for of_rows in integers[b].values() for v in of_rows.values() for x in v)
        for array in dense.values():
            scaled = np.trunc(array[b].astype(np.float64) * (factors[b] * 2.0**-exponent))
            square += sum(int(x) ** 2 for x in scaled.ravel())
        assert square <= (Fraction(clip_norm) / Fraction(2) ** exponent) ** 2


@pytest.mark.parametrize("mode", Mode)
def test_an_all_numpy_run_does_not_depend_on_the_order_of_examples(mode):
    spec = PrivacySpec(1.0, 0.7, 0.5, 8.0, 1e-5, Schedule.constant(0.4, steps=4), mode)
    runs = []
    for order in ([0, 1, 2, 3, 4, 5, 6], [6, 2, 0, 5, 1, 3, 4]):
        model = model_of(dense_width=3, exponent=spec.contribution_exponent)
        trainer = EagerTrainer(tables_of(), model, spec, NoiseStream(NoiseKey.from_seed(5)), examples=16)
        for step in range(4):
            trainer.train_batch(permuted(batch_of(7, dense_width=3, seed=step), order))
        runs.append(trainer.release())
    for name, weights in runs[0].tables.items():
        assert weights.tobytes() == runs[1].tables[name].tobytes()
    for name, array in runs[0].dense.items():
        assert array.tobytes() == runs[1].dense[name].tobytes()


def test_training_without_noise_lowers_the_loss():
    spec = PrivacySpec(10.0, 0.0, 1.0, 20.0, 1e-5, Schedule.constant(1.5, steps=60))
    model = model_of(dense_width=3, exponent=spec.contribution_exponent)
    trainer = EagerTrainer(tables_of(), model, spec, NoiseStream(NoiseKey.from_seed(5)), examples=20)
    losses = [trainer.train_batch(batch_of(20, dense_width=3)) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]


# --- edges ------------------------------------------------------------------------------------------------------------


def test_it_is_a_gradient_oracle_whose_parameters_can_be_written():
    model, batch = model_of(dense_width=3), batch_of(2, dense_width=3)
    assert isinstance(model, GradientOracle)
    before = model.gradients(batch, reader_of(tables_of())).logits
    model.dense["top.2.bias"][...] += 1
    after = model.gradients(batch, reader_of(tables_of())).logits
    assert after == pytest.approx(before + 1, abs=1e-5)


def test_large_logits_have_finite_losses_and_gradients():
    model, batch = model_of(dense_width=3), batch_of(4, dense_width=3)
    for bias in (2000.0, -2000.0):
        model.dense["top.2.bias"][...] = bias
        found = model.gradients(batch, reader_of(tables_of()))
        assert np.isfinite(found.losses).all()
        assert all(np.isfinite(p).all() for p in found.pooled)
        wrong = batch.labels != (bias > 0)
        assert found.losses[wrong] == pytest.approx(2000, rel=0.01)
        assert found.losses[~wrong] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda dense: dense | {"extra": np.zeros(2, dtype=np.float32)}, "must be top"),
        (lambda dense: {k: v for k, v in dense.items() if not k.startswith("top")}, "must be top"),
        (lambda dense: {k: v for k, v in dense.items() if not k.startswith("bottom")}, "must be top"),
        (lambda dense: dense | {"bottom.0.weight": np.zeros((6, 4), dtype=np.float32)}, "do not fit"),
        (lambda dense: dense | {"top.1.bias": np.zeros(4, dtype=np.float32)}, "do not fit"),
        (
            lambda dense: (
                dense
                | {"top.2.weight": np.zeros((2, 3), dtype=np.float32), "top.2.bias": np.zeros(2, dtype=np.float32)}
            ),
            "one output",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        NumpyDLRM(change(model_of(dense_width=3).dense), FEATURES, 3)


def test_a_batch_with_other_features_is_refused():
    model, batch = model_of(dense_width=0), batch_of(2, dense_width=0)
    with pytest.raises(InputError, match="4 features"):
        model.lookups(Batch(batch.dense, batch.features[:2], batch.labels, batch.indices))
