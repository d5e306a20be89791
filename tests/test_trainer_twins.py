"""Claims E1, E2 and L1 in closed loop: the lazy trainer on torch against the eager definition in NumPy.

The dense half of both runs is one TorchOracle's arithmetic, so in replay not one bit may differ anywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from samelaw.contract.bounds import bridge_bounds
from samelaw.contract.errors import InputError
from samelaw.contract.noise import NoiseKey, NoiseStream, Purpose
from samelaw.contract.run import Release, Transcript
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import ExecutionOptions, Mode, PrivacySpec
from samelaw.contract.trace import Batch, FeatureBags, Lookup
from samelaw.fast.cpu import CpuKernels
from samelaw.fast.oracle import TorchOracle
from samelaw.fast.trainer import LazyTrainer
from samelaw.reference.clipping import clip_factors, gradient_sums, square_norms
from samelaw.reference.eager import EagerTrainer
from samelaw.reference.noise import normals
from samelaw.reference.reading import read_bags
from samelaw.reference.settlement import Settlement

EXAMPLES = 12
KEY = NoiseKey.from_seed(2024)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny arrays only wait for a second thread. (Both twins need the same number of torch threads in any case.)"""
    before = torch.get_num_threads(), numba.get_num_threads()
    numba.set_num_threads(1)  # first: it may set torch's number too
    torch.set_num_threads(1)
    yield
    numba.set_num_threads(before[1])
    torch.set_num_threads(before[0])


@dataclass(frozen=True)
class Sizes:
    users: int
    items: int
    tags: int
    dim: int


class Tower(nn.Module):
    """Two features on one table, a mean, an unpooled table with padding, a layer for torch.func, a Linear."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tables = nn.ModuleDict(
            {
                "user": nn.EmbeddingBag(sizes.users, sizes.dim, mode="sum", include_last_offset=True),
                "item": nn.EmbeddingBag(sizes.items, sizes.dim, mode="mean", include_last_offset=True),
                "tag": nn.Embedding(sizes.tags, sizes.dim, padding_idx=0),
            }
        )
        self.norm = nn.LayerNorm(4 * sizes.dim)
        self.hidden = nn.Linear(4 * sizes.dim, 5)
        self.out = nn.Linear(5, 1)

    def forward(self, dense: Tensor, bags: list[tuple[Tensor, Tensor]], tags: Tensor) -> Tensor:
        read = [
            self.tables["user"](*bags[0]),
            self.tables["item"](*bags[1]),
            self.tables["user"](*bags[2]),
            self.tables["tag"](tags).sum(1),
        ]
        x = self.norm(torch.cat(read, dim=1)) + dense[:, :1]
        return self.out(F.relu(self.hidden(x)))[:, 0]


def tower_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    bags = [(torch.tensor(f.ids), torch.tensor(f.offsets)) for f in batch.features[:3]]
    tags = torch.tensor(batch.features[3].ids).reshape(len(batch), -1)
    logits = model(torch.tensor(batch.dense), bags, tags)
    return F.binary_cross_entropy_with_logits(logits, torch.tensor(batch.labels), reduction="none"), logits


class Readout(nn.Module):
    """Gradients that do not depend on what was read: what claim E2's bound is about."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tables = nn.ModuleDict(
            {
                "user": nn.EmbeddingBag(sizes.users, sizes.dim, mode="sum", include_last_offset=True),
                "item": nn.EmbeddingBag(sizes.items, sizes.dim, mode="mean", include_last_offset=True),
            }
        )

    def forward(self, bags: list[tuple[Tensor, Tensor]], vectors: Tensor) -> Tensor:
        read = [self.tables["user"](*bags[0]), self.tables["item"](*bags[1]), self.tables["user"](*bags[2])]
        return (torch.stack(read, dim=1) * vectors[:, None]).sum((1, 2))


def readout_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    bags = [(torch.tensor(f.ids), torch.tensor(f.offsets)) for f in batch.features[:3]]
    dim = model.get_submodule("tables.user").embedding_dim
    table = torch.randn(EXAMPLES, dim, generator=torch.Generator().manual_seed(1))  # type: ignore[call-overload]
    losses = model(bags, table[torch.tensor(batch.indices)])
    return losses, losses


@dataclass(frozen=True)
class Scene:
    """A model's sizes, a law, and what each example of the training set looks up."""

    sizes: Sizes
    law: dict[str, Any]
    bags: tuple[tuple[tuple[int, ...], ...], ...]

    @cached_property
    def spec(self) -> PrivacySpec:
        boundary, rates, steps = self.law["schedule"]
        return PrivacySpec(**{**self.law, "schedule": Schedule.piecewise([boundary], rates, steps=steps)})

    def batch(self, indices: np.ndarray) -> Batch:
        features = []
        for feature in range(4):
            chosen = [self.bags[i][feature] for i in indices.tolist()]
            ids = np.array([row for bag in chosen for row in bag], dtype=np.int64)
            offsets = np.cumsum([0, *map(len, chosen)]).astype(np.int64)
            features.append(FeatureBags(ids, offsets))
        dense = (indices[:, None] % 5).astype(np.float32) / 4
        return Batch(dense, tuple(features), (indices % 2).astype(np.float32), indices)

    def model(self, kind: type[nn.Module]) -> nn.Module:
        torch.manual_seed(self.sizes.dim)
        return kind(self.sizes)


@st.composite
def scenes(draw: st.DrawFn, *, mode: Mode | None = None) -> Scene:
    sizes = Sizes(
        draw(st.integers(2, 9)), draw(st.integers(1, 6)), draw(st.integers(2, 5)), draw(st.sampled_from([1, 3, 16, 17]))
    )
    steps = draw(st.integers(2, 7))
    rates = [draw(st.sampled_from([0.0, 0.05, 0.7])) for _ in range(2)]
    rates[draw(st.integers(0, 1))] = 0.3
    law = {
        "clip_norm": draw(st.sampled_from([0.2, 1.0, 50.0])),
        "noise_multiplier": draw(st.sampled_from([0.0, 0.5, 3.0])),
        "sampling_rate": draw(st.sampled_from([0.05, 0.3, 1.0])),
        "expected_batch_size": draw(st.sampled_from([1.0, 3.5])),
        "delta": 1e-5,
        "schedule": (draw(st.integers(1, steps - 1)), rates, steps),
        "mode": mode or draw(st.sampled_from(list(Mode))),
        "rounds": draw(st.sampled_from([8, 12, 20])),
    }

    def bag(rows: int, least: int, most: int) -> st.SearchStrategy[tuple[int, ...]]:
        return st.lists(st.integers(0, rows - 1), min_size=least, max_size=most).map(tuple)

    example = st.tuples(bag(sizes.users, 0, 4), bag(sizes.items, 0, 3), bag(sizes.users, 0, 3), bag(sizes.tags, 2, 2))
    return Scene(sizes, law, tuple(draw(st.lists(example, min_size=EXAMPLES, max_size=EXAMPLES))))


def fixed_scene(mode: Mode, *, steps: int = 12, q: float = 0.25) -> Scene:
    """A scene that is not drawn by Hypothesis."""
    rng = np.random.default_rng(7)
    sizes = Sizes(40, 6, 5, 8)
    law = {
        "clip_norm": 1.0, "noise_multiplier": 1.0, "sampling_rate": q, "expected_batch_size": 3.0, "delta": 1e-5,
        "schedule": (5, [0.5, 0.2], steps), "mode": mode,
    }  # fmt: skip

    def bag(rows: int, length: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, rows, length).tolist())

    bags = tuple(
        (bag(40, int(rng.integers(0, 4))), bag(6, int(rng.integers(0, 4))), bag(40, 2), bag(5, 2))
        for _ in range(EXAMPLES)
    )
    return Scene(sizes, law, bags)


def lazy(scene: Scene, kind: type[nn.Module] = Tower, **arguments: Any) -> LazyTrainer:
    loss_fn = tower_loss if kind is Tower else readout_loss
    return LazyTrainer(scene.model(kind), scene.spec, KEY, examples=EXAMPLES, loss_fn=loss_fn, record=True, **arguments)


def run(trainer: LazyTrainer, scene: Scene) -> Release:
    for _ in range(trainer.step_index, scene.spec.schedule.steps):
        trainer.train_batch(scene.batch(trainer.sample()))
    return trainer.release()


def eager_run(scene: Scene, kind: type[nn.Module] = Tower) -> tuple[Transcript, Release, EagerTrainer]:
    oracle = TorchOracle(scene.model(kind), tower_loss if kind is Tower else readout_loss)
    trainer = EagerTrainer(
        oracle.tables, oracle, scene.spec, NoiseStream(KEY, scene.spec.rounds), examples=EXAMPLES,
        padding=oracle.padding, record=True,
    )  # fmt: skip
    for _ in range(scene.spec.schedule.steps):
        trainer.train_batch(scene.batch(trainer.sample()))
    release = trainer.release()
    assert trainer.transcript is not None
    return trainer.transcript, release, trainer


def same(a: Any, b: Any) -> bool:
    """The same names, and arrays of the same bits: NaN equals itself, and 0 is not -0."""
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a
    )


def check_same(found: Transcript, expected: Transcript) -> None:
    assert same(found.initial_tables, expected.initial_tables)
    assert same(found.initial_dense, expected.initial_dense)
    assert len(found.steps) == len(expected.steps)
    for a, b in zip(found.steps, expected.steps, strict=True):
        assert (a.step, a.examples, a.loss) == (b.step, b.examples, b.loss)
        for part in ("rows", "reads", "sums", "dense_sum"):
            assert same(getattr(a, part), getattr(b, part)), (a.step, part)
    assert same(found.final_tables, expected.final_tables)
    assert same(found.final_dense, expected.final_dense)


@settings(max_examples=15, deadline=None)
@given(scene=scenes(mode=Mode.REPLAY))
def test_E1_replay_has_the_bits_of_eager_everywhere(scene: Scene) -> None:
    trainer = lazy(scene)
    release = run(trainer, scene)
    transcript, expected, eager = eager_run(scene)
    assert trainer.transcript is not None
    check_same(trainer.transcript, transcript)
    assert same(release.tables, expected.tables)
    assert same(release.dense, expected.dense)
    charged = [entry.data for entry in trainer.ledger.entries if entry.event in ("open", "step")]
    assert charged == [entry.data for entry in eager.ledger.entries if entry.event in ("open", "step")]


@settings(max_examples=15, deadline=None)
@given(scene=scenes(mode=Mode.BRIDGE))
def test_E2_bridge_stays_within_the_rounding_bound_of_eager(scene: Scene) -> None:
    trainer = lazy(scene, Readout)
    run(trainer, scene)
    transcript, _, _ = eager_run(scene, Readout)
    assert trainer.transcript is not None
    bounds = bridge_bounds(transcript, scene.spec)
    for name, expected in transcript.final_tables.items():
        gap = np.abs(trainer.transcript.final_tables[name].astype(np.float64) - expected)
        assert np.all(gap <= bounds[name][:, None]), name
    for a, b in zip(trainer.transcript.steps, transcript.steps, strict=True):
        assert same(a.sums, b.sums)
        for name in b.rows:
            gap = np.abs(a.reads[name].astype(np.float64) - b.reads[name])
            assert np.all(gap <= bounds[name][b.rows[name]][:, None]), name


class LazyDefinition:
    """LazyDP over the same oracle in plain NumPy: settle what is read, update it, settle everything at the end."""

    def __init__(self, scene: Scene) -> None:
        self.oracle, self.spec = TorchOracle(scene.model(Tower), tower_loss), scene.spec
        self.stream = NoiseStream(KEY, scene.spec.rounds)
        self.tables = {name: self.oracle.tables[name].copy() for name in sorted(self.oracle.tables)}
        self.settlements = {
            name: Settlement(self.spec.mode, self.stream, self.spec.clock, table=number, dim=weights.shape[1])
            for number, (name, weights) in enumerate(self.tables.items())
        }
        self.since = {name: np.zeros(len(weights), dtype=np.int64) for name, weights in self.tables.items()}
        self.step = 0

    def settle(self, name: str, rows: np.ndarray) -> None:
        table, since = self.tables[name], self.since[name]
        rows = rows[rows != self.oracle.padding[name]] if name in self.oracle.padding else rows
        table[rows] = self.settlements[name].settle(table[rows], rows, since[rows], self.step)
        since[rows] = self.step

    def read(self, lookup: Lookup) -> np.ndarray:
        self.settle(lookup.table, np.unique(lookup.ids))
        return read_bags(self.tables[lookup.table], lookup)

    def train(self, batch: Batch) -> None:
        rate = np.float32(self.spec.schedule.rate(self.step) / self.spec.expected_batch_size)
        dense = {}
        if len(batch):
            found = self.oracle.gradients(batch, self.read)
            norms = square_norms(found.lookups, found.pooled, found.dense_square_norms, list(self.tables))
            factors = clip_factors(norms, self.spec.clip_norm)
            sums = gradient_sums(
                found.lookups, found.pooled, factors, self.spec.contribution_exponent, list(self.tables)
            )
            for name, rows in sums.rows.items():
                gradient = np.ldexp(sums.sums[name].astype(np.float32), sums.exponent)
                self.tables[name][rows] = self.tables[name][rows] - rate * gradient
            dense = self.oracle.clipped_dense_sum(factors)
        for number, (name, parameter) in enumerate(self.oracle.dense.items()):
            if name in dense:
                parameter[...] = parameter - rate * dense[name]
            row = np.zeros(1, dtype=np.int64)
            noise = normals(self.stream, Purpose.DENSE, number, row, self.step, dim=parameter.size)
            parameter[...] = parameter - self.spec.clock.scale(self.step) * noise.reshape(parameter.shape)
        self.step += 1

    def release(self) -> None:
        for name, weights in self.tables.items():
            self.settle(name, np.arange(len(weights)))


@settings(max_examples=15, deadline=None)
@given(scene=scenes())
def test_every_mode_has_the_bits_of_lazydp_written_in_numpy(scene: Scene) -> None:
    trainer, definition = lazy(scene), LazyDefinition(scene)
    release = run(trainer, scene)
    for _ in range(scene.spec.schedule.steps):
        drawn = np.flatnonzero(_joins(scene.spec, definition.step))
        definition.train(scene.batch(drawn))
    definition.release()
    assert same(release.tables, definition.tables)
    assert same(release.dense, definition.oracle.dense)


def _joins(spec: PrivacySpec, step: int) -> np.ndarray:
    """Which examples the sampler draws."""
    from samelaw.reference.sampling import poisson_sample

    drawn = poisson_sample(NoiseStream(KEY, spec.rounds), step, spec.sampling_rate, EXAMPLES)
    return np.isin(np.arange(EXAMPLES), drawn)


def test_L1_aggregate_noise_of_idle_rows_has_the_variance_of_the_clock() -> None:
    # No row is ever read: q is so small that all batches are empty. 4000 * 16 standard normals.
    spec = PrivacySpec(1.0, 2.0, 1e-12, 4.0, 1e-5, Schedule.piecewise([3], [0.5, 0.1], steps=9), Mode.AGGREGATE)
    table = nn.EmbeddingBag(4000, 16, mode="sum")
    table.weight.data.zero_()
    trainer = LazyTrainer(nn.Sequential(table), spec, KEY, examples=EXAMPLES)
    for _ in range(9):
        assert len(trainer.sample()) == 0
        trainer.empty_step()
    scale = np.sqrt(sum(float(spec.clock.scale(t)) ** 2 for t in range(9)))
    z = trainer.release().tables["0"].astype(np.float64).ravel() / scale
    n = z.size
    # Both bounds are 5 standard errors: 6e-7 each, once for all, since the key is fixed. An off-by-one in the number of
    # steps at the low rate would move the variance by 1.3 %, more than 2 standard errors; at the high rate by 32 %.
    assert abs(z.mean()) < 5 / np.sqrt(n)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / n)


@pytest.mark.parametrize("mode", list(Mode))
def test_look_ahead_changes_no_bit(mode: Mode) -> None:
    scene = fixed_scene(mode)
    expected = run(lazy(scene), scene)
    trainer = lazy(scene)
    settled_ahead = 0
    for _ in range(scene.spec.schedule.steps):
        batch, following = scene.batch(trainer.sample()), scene.batch(trainer.sample(ahead=1))
        trainer.look_ahead(_rows(following))
        trainer.train_batch(batch)
        for name, rows in _rows(following).items():
            wanted = rows[rows != 0] if name == "tables.tag" else rows
            assert bool((trainer.tables[name].history[torch.from_numpy(wanted)] >= trainer.step_index).all())
            settled_ahead += len(wanted)
    assert settled_ahead > 0
    release = trainer.release()
    assert same(release.tables, expected.tables)
    assert same(release.dense, expected.dense)


def test_samples_ahead_are_the_samples_of_those_steps() -> None:
    scene = fixed_scene(Mode.REPLAY)
    trainer = lazy(scene)
    ahead = [trainer.sample(ahead=k) for k in range(scene.spec.schedule.steps)]
    assert [len(drawn) for drawn in ahead] == [int(_joins(scene.spec, t).sum()) for t in range(len(ahead))]
    for drawn in ahead:
        assert np.array_equal(trainer.sample(), drawn)
        trainer.train_batch(scene.batch(drawn))
    with pytest.raises(InputError, match="ahead must be >= 0"):
        lazy(scene).sample(ahead=-1)
    assert len(lazy(scene).sample(ahead=scene.spec.schedule.steps)) == 0


def test_look_ahead_can_be_switched_off() -> None:
    scene = fixed_scene(Mode.REPLAY)
    trainer = lazy(scene, options=ExecutionOptions(look_ahead=False))
    trainer.look_ahead({"tables.user": np.arange(40)})
    trainer.train_batch(scene.batch(trainer.sample()))
    assert int((trainer.tables["tables.user"].history == 1).sum()) == 0


def _rows(batch: Batch) -> dict[str, np.ndarray]:
    ids = [feature.ids for feature in batch.features]
    return {"tables.user": np.concatenate([ids[0], ids[2]]), "tables.item": ids[1], "tables.tag": ids[3]}


@pytest.mark.parametrize("mode", list(Mode))
def test_the_number_of_kernel_threads_changes_no_bit(mode: Mode) -> None:
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one core")
    scene = fixed_scene(mode)
    before = numba.get_num_threads()
    try:
        releases = [run(lazy(scene, kernels=CpuKernels(threads)), scene) for threads in (1, 2)]
    finally:
        numba.set_num_threads(before)
    assert same(releases[0].tables, releases[1].tables)
    assert same(releases[0].dense, releases[1].dense)


def test_predictions_between_steps_change_no_bit_in_replay() -> None:
    scene = fixed_scene(Mode.REPLAY)
    expected = run(lazy(scene), scene)
    trainer = lazy(scene)
    everyone = scene.batch(np.arange(EXAMPLES))
    for _ in range(scene.spec.schedule.steps):
        with trainer.evaluation() as model:
            scores = tower_loss(model, everyone)[1]
        assert not scores.requires_grad
        trainer.train_batch(scene.batch(trainer.sample()))
        assert trainer.model.training
    assert same(trainer.release().tables, expected.tables)


def test_predictions_are_those_of_eager_at_the_same_step() -> None:
    scene = fixed_scene(Mode.REPLAY)
    trainer, everyone = lazy(scene), scene.batch(np.arange(EXAMPLES))
    oracle = TorchOracle(scene.model(Tower), tower_loss)
    stream = NoiseStream(KEY, scene.spec.rounds)
    eager = EagerTrainer(oracle.tables, oracle, scene.spec, stream, examples=EXAMPLES, padding=oracle.padding)
    for _ in range(scene.spec.schedule.steps):
        with trainer.evaluation() as model:
            scores = tower_loss(model, everyone)[1].numpy()
        logits = oracle.gradients(everyone, lambda lookup: read_bags(eager.tables[lookup.table], lookup)).logits
        assert scores.tobytes() == logits.tobytes()
        batch = scene.batch(trainer.sample())
        trainer.train_batch(batch)
        eager.train_batch(batch)


@pytest.mark.parametrize("mode", list(Mode))
def test_gradient_sums_change_nothing_and_are_those_of_the_next_step(mode: Mode) -> None:
    scene = fixed_scene(mode)
    expected = run(lazy(scene), scene)
    trainer = lazy(scene)
    for step in range(scene.spec.schedule.steps):
        batch = scene.batch(trainer.sample())
        tables = {name: table.weights.clone() for name, table in trainer.tables.items()}
        histories = {name: table.history.clone() for name, table in trainer.tables.items()}
        probe = trainer.gradient_sums(batch)
        for name, table in trainer.tables.items():
            assert torch.equal(table.weights, tables[name])
            assert torch.equal(table.history, histories[name])
        trainer.train_batch(batch)
        assert trainer.transcript is not None
        record = trainer.transcript.steps[step]
        assert same(probe.rows, record.rows)
        assert same(probe.sums, record.sums)
        assert same(probe.dense, record.dense_sum)
    release = trainer.release()
    assert same(release.tables, expected.tables)


def test_settling_early_changes_no_bit_in_replay_and_no_path_in_bridge() -> None:
    scene = fixed_scene(Mode.REPLAY)
    expected = run(lazy(scene), scene)
    trainer = lazy(scene)
    for step in range(scene.spec.schedule.steps):
        if step % 3 == 1:
            trainer.settle()
        trainer.train_batch(scene.batch(trainer.sample()))
    assert same(trainer.release().tables, expected.tables)


def test_the_ordinary_loop_and_train_batch_are_one_thing() -> None:
    scene = fixed_scene(Mode.REPLAY)
    expected = run(lazy(scene), scene)
    trainer = lazy(scene)
    for _ in range(scene.spec.schedule.steps):
        drawn = trainer.sample()
        if len(drawn) == 0:
            trainer.empty_step()
        else:
            trainer.step(tower_loss(trainer.model, scene.batch(drawn))[0])
    release = trainer.release()
    assert same(release.tables, expected.tables)
    assert same(release.dense, expected.dense)
    assert {e.data["sampler"] for e in trainer.ledger.entries if e.event == "step"} == {"keyed-poisson"}


def test_a_model_without_tables_and_one_without_dense_parameters_train_like_eager() -> None:
    scene = fixed_scene(Mode.REPLAY)

    class Plain(nn.Module):
        def __init__(self, _: Sizes) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[:, 0]

    def loss_fn(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model(torch.tensor(batch.dense))
        return logits.square(), logits

    trainer = LazyTrainer(scene.model(Plain), scene.spec, KEY, examples=EXAMPLES, loss_fn=loss_fn)
    oracle = TorchOracle(scene.model(Plain), loss_fn)
    eager = EagerTrainer({}, oracle, scene.spec, NoiseStream(KEY), examples=EXAMPLES)
    for _ in range(scene.spec.schedule.steps):
        batch = scene.batch(trainer.sample())
        trainer.train_batch(batch)
        eager.train_batch(batch)
    assert same(trainer.release().dense, eager.release().dense)
    run(lazy(scene, Readout), scene)


class TestSeams:
    """Every seam that a seeded fault patches is really on the path: patching it changes the run."""

    @staticmethod
    def differs(fault: Any, *, mode: Mode = Mode.REPLAY, q: float = 0.25) -> bool:
        scene = fixed_scene(mode, q=q)
        expected = run(lazy(scene), scene)
        trainer = lazy(scene)
        fault(trainer)
        release = run(trainer, scene)
        return not (same(release.tables, expected.tables) and same(release.dense, expected.dense))

    def test_an_unpatched_trainer_does_not_differ(self) -> None:
        assert not self.differs(lambda trainer: None)

    def test_table_pay(self) -> None:
        def fault(trainer: LazyTrainer) -> None:
            table = trainer.tables["tables.user"]
            pay = table.pay
            table.pay = lambda rows, since, until: pay(rows, since, max(until - 1, int(since.max())))  # type: ignore[method-assign]

        assert self.differs(fault)

    def test_table_update(self) -> None:
        def fault(trainer: LazyTrainer) -> None:
            table = trainer.tables["tables.item"]
            update = table.update
            table.update = lambda calls, pooled, factors, rate: update(calls, pooled, factors, 2 * rate)  # type: ignore[method-assign]

        assert self.differs(fault)

    def test_table_plan(self) -> None:
        def fault(trainer: LazyTrainer) -> None:
            table = trainer.tables["tables.user"]
            table.plan = replace(table.plan, table=0)

        assert self.differs(fault)

    def test_square_norms(self) -> None:
        def fault(trainer: LazyTrainer) -> None:
            joint = trainer.square_norms
            trainer.square_norms = lambda calls, pooled, dense: joint(calls, pooled, dense) / 4  # type: ignore[method-assign]

        assert self.differs(fault)

    def test_clip_factors(self) -> None:
        def fault(trainer: LazyTrainer) -> None:
            factors = trainer.clip_factors
            trainer.clip_factors = lambda square_norms: factors(square_norms) / 2  # type: ignore[method-assign]

        assert self.differs(fault)

    def test_pay_dense(self) -> None:
        assert self.differs(lambda trainer: setattr(trainer, "pay_dense", lambda step: None))

    def test_empty_step(self) -> None:
        def fault(trainer: LazyTrainer) -> None:
            empty_step = trainer.empty_step

            def quiet() -> None:
                trainer.pay_dense = lambda step: None  # type: ignore[method-assign]
                empty_step()
                del trainer.pay_dense

            trainer.empty_step = quiet  # type: ignore[method-assign]

        assert self.differs(fault, q=0.02)

    def test_settle(self) -> None:
        def fault(trainer: LazyTrainer) -> None:
            def forget() -> None:
                for table in trainer.tables.values():
                    table.history.clamp_(min=trainer.step_index)

            trainer.settle = forget  # type: ignore[method-assign]

        assert self.differs(fault)


def test_the_oracle_keeps_to_the_model_it_was_given() -> None:
    scene = fixed_scene(Mode.REPLAY)
    model = scene.model(Tower)
    untouched = copy.deepcopy(model)
    oracle = TorchOracle(model, tower_loss)
    assert oracle.padding == {"tables.tag": 0}
    assert list(oracle.dense) == sorted(oracle.dense)
    batch = scene.batch(np.arange(EXAMPLES))
    found = oracle.gradients(batch, lambda lookup: read_bags(oracle.tables[lookup.table], lookup))
    losses, _ = tower_loss(untouched, batch)
    # torch pools in another order of additions: a few float32 roundings of numbers of size 1.
    assert np.allclose(found.losses, losses.detach().numpy(), rtol=0, atol=2.0**-18)
    assert [lookup.table for lookup in found.lookups] == ["tables.user", "tables.item", "tables.user", "tables.tag"]
    oracle.dense["out.bias"][...] = 3.0
    moved = oracle.gradients(batch, lambda lookup: read_bags(oracle.tables[lookup.table], lookup))
    assert not np.array_equal(moved.logits, found.logits)
