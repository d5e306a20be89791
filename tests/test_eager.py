"""Eager DP-SGD: a step against the formula, noise everywhere, nothing shared with the caller; E1 and E2 by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from samelaw.contract.bounds import bridge_bounds, bridge_rounding_bound
from samelaw.contract.errors import InputError, LedgerError
from samelaw.contract.ledger import Ledger, read_ledger, spent
from samelaw.contract.noise import NoiseKey, NoiseStream, Purpose
from samelaw.contract.oracle import ExampleGradients, Reader
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import Mode, PrivacySpec
from samelaw.contract.trace import Batch, FeatureBags, Lookup, Pooling
from samelaw.reference.eager import EagerTrainer
from samelaw.reference.noise import normals
from samelaw.reference.settlement import Settlement

STREAM = NoiseStream(NoiseKey.from_seed(77))
EXAMPLES = 60


class OnePath:
    """The bridge of one table with its path written down once: it pays P(until) - P(since)."""

    def __init__(self, settlement: Settlement, rows: int) -> None:
        everyone = np.arange(rows)
        steps = [settlement.owed_units(everyone, t, t + 1) for t in range(settlement.clock.steps)]
        self.path = np.cumsum([np.zeros_like(steps[0]), *steps], axis=0)
        self.exponent = settlement.unit_exponent

    def settle(self, weights: np.ndarray, rows: np.ndarray, since: np.ndarray, until: int) -> np.ndarray:
        owed = self.path[until, rows] - self.path[since, rows]
        return weights - np.ldexp(owed.astype(np.float64), self.exponent).astype(np.float32)


class Readout:
    """A gradient oracle whose loss is linear: sum over bags of <v(example, feature), pooled> plus a dense part.

    Feature f of example i reads `bags[i][f]` from `tables[f]`. Gradients do not depend on what is read, so two
    trainers that read different roundings of the same weights still add the same integers.
    """

    def __init__(self, tables: Sequence[str], dims: Sequence[int], *, pooling: Sequence[Pooling] | None = None) -> None:
        rng = np.random.default_rng(3)
        self.tables = tables
        self.pooling = pooling or [Pooling.SUM] * len(tables)
        self.vectors = [rng.normal(size=(EXAMPLES, dim)).astype(np.float32) for dim in dims]
        self._dense = {"z.bias": np.ones(3, dtype=np.float32), "a.weight": np.full((2, 2), 2.0, dtype=np.float32)}
        self.calls = 0
        self.seen: list[np.ndarray] = []

    @property
    def dense(self) -> dict[str, np.ndarray]:
        return self._dense

    def gradients(self, batch: Batch, read: Reader) -> ExampleGradients:
        assert len(batch) > 0, "an empty batch asked for gradients"
        self.calls += 1
        examples = np.arange(len(batch), dtype=np.int64)
        lookups = [
            Lookup(table, bags.ids, bags.offsets, examples, pooling)
            for table, bags, pooling in zip(self.tables, batch.features, self.pooling, strict=True)
        ]
        pooled = [vectors[batch.indices] for vectors in self.vectors]
        reads = [read(lookup) for lookup in lookups]
        self.seen = reads
        losses = sum(np.sum(r.astype(np.float64) * g, axis=1) for r, g in zip(reads, pooled, strict=True))
        self._last = batch.indices
        size = np.array([3 * (0.1 * i) ** 2 for i in batch.indices.tolist()])
        return ExampleGradients(lookups, pooled, size, np.float32(losses), np.float32(losses))

    def clipped_dense_sum(self, factors: np.ndarray) -> dict[str, np.ndarray]:
        """Example i has gradient 0.1 * i on each entry of z.bias and none on a.weight."""
        total = np.float32(sum(f * 0.1 * i for f, i in zip(factors.tolist(), self._last.tolist(), strict=True)))
        return {"z.bias": np.full(3, total), "a.weight": np.zeros((2, 2), dtype=np.float32)}


def make_spec(
    mode: Mode = Mode.REPLAY, *, steps: int = 12, q: float = 0.1, schedule: Schedule | None = None
) -> PrivacySpec:
    return PrivacySpec(
        clip_norm=1.3,
        noise_multiplier=0.9,
        sampling_rate=q,
        expected_batch_size=6.0,
        delta=1e-5,
        schedule=schedule or Schedule.piecewise([4, 6], [0.5, 0.0, 0.2], steps=steps),
        mode=mode,
    )


def initial_tables(**shapes: tuple[int, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def batch_of(indices: np.ndarray, rows: Sequence[int], *, largest_bag: int = 3) -> Batch:
    """Example i always reads the same rows, whatever batch it is in."""
    features: list[FeatureBags] = []
    for f, count in enumerate(rows):
        bags = []
        for i in indices.tolist():
            rng = np.random.default_rng([f, i])
            bags.append(rng.integers(0, count, rng.integers(0, largest_bag + 1)))
        lengths = [len(b) for b in bags]
        ids = np.concatenate([*bags, []]).astype(np.int64)
        features.append(FeatureBags(ids, np.cumsum([0, *lengths]).astype(np.int64)))
    n = len(indices)
    return Batch(np.zeros((n, 0), dtype=np.float32), tuple(features), np.zeros(n, dtype=np.float32), indices)


def trainer_of(mode: Mode = Mode.REPLAY, *, spec: PrivacySpec | None = None, record: bool = True) -> EagerTrainer:
    """Two tables, three features (two share a table), rows that no example ever reads among them."""
    oracle = Readout(("user", "item", "user"), (5, 9, 5), pooling=[Pooling.SUM, Pooling.MEAN, Pooling.SUM])
    tables = initial_tables(user=(40, 5), item=(25, 9))
    return EagerTrainer(tables, oracle, spec or make_spec(mode), STREAM, examples=EXAMPLES, record=record)


def train(trainer: EagerTrainer) -> EagerTrainer:
    for _ in range(trainer.spec.schedule.steps):
        trainer.train_batch(batch_of(trainer.sample(), (20, 25, 20)))
    trainer.release()
    return trainer


# --- one step ---------------------------------------------------------------------------------------------------------


def test_one_step_is_gradient_then_noise_each_rounded_by_itself():
    trainer = trainer_of()
    start, dense = trainer.tables, {name: array.copy() for name, array in trainer.oracle.dense.items()}
    batch = batch_of(np.arange(0, 60, 7), (20, 25, 20))
    sums = trainer.gradient_sums(batch)
    trainer.train_batch(batch)

    a, s = np.float32(0.5 / 6.0), np.float32(0.5 * (0.9 * 1.3 / 6.0))
    for number, name in enumerate(["item", "user"]):  # sorted: the order of the arguments does not number the tables
        expected = start[name].copy()
        for row, total in zip(sums.rows[name], sums.sums[name], strict=True):
            gradient = total.astype(np.float32) * np.float32(2.0**sums.exponent)
            expected[row] = expected[row] - a * gradient
        z = normals(STREAM, Purpose.REPLAY, number, np.arange(len(expected)), 0, dim=expected.shape[1])
        assert np.array_equal(trainer.tables[name], expected - s * z)
    for number, name in enumerate(["a.weight", "z.bias"]):
        z = normals(STREAM, Purpose.DENSE, number, np.zeros(1, dtype=np.int64), 0, dim=dense[name].size)
        expected = dense[name] - a * sums.dense[name] - s * z.reshape(dense[name].shape)
        assert np.array_equal(trainer.oracle.dense[name], expected)


@pytest.mark.parametrize("mode", Mode)
def test_G1_an_empty_batch_asks_no_oracle_and_still_pays_noise_everywhere(mode):
    trainer = trainer_of(mode)
    start, dense = trainer.tables, trainer.release().dense
    assert trainer.train_batch(batch_of(np.zeros(0, dtype=np.int64), (20, 25, 20))) is None
    assert trainer.oracle.calls == 0
    for name, before in start.items():
        assert (trainer.tables[name] != before).all(axis=1).all()
    for name, before in dense.items():
        assert (trainer.oracle.dense[name] != before).all()
    assert trainer.ledger.entries[-1].data["examples"] == 0
    assert trainer.gradient_sums(batch_of(np.zeros(0, dtype=np.int64), (20, 25, 20))).rows == {}


@pytest.mark.parametrize("mode", Mode)
def test_G1_rows_that_nobody_reads_get_the_noise_of_every_step(mode):
    """Rows 20..39 of `user` are never read: what they moved by is the settlement's payments, in order, to the bit."""
    trainer = train(trainer_of(mode))
    settlement = Settlement(mode, STREAM, trainer.spec.clock, table=1, dim=5)
    rows = np.arange(20, 40)
    expected = trainer.transcript.initial_tables["user"][20:]
    for step in range(trainer.spec.schedule.steps):
        for payment in settlement.payments(rows, step, step + 1):
            expected = expected - payment
    assert np.array_equal(trainer.tables["user"][20:], expected)


def test_G1_noise_does_not_depend_on_the_batch():
    one, other = trainer_of(), trainer_of()
    one.train_batch(batch_of(np.array([1, 2, 3]), (20, 25, 20)))
    other.train_batch(batch_of(np.zeros(0, dtype=np.int64), (20, 25, 20)))
    assert np.array_equal(one.tables["user"][20:], other.tables["user"][20:])


def test_the_order_of_the_examples_changes_no_bit_of_a_table():
    indices = np.array([3, 8, 21, 34, 55])
    one, other = trainer_of(), trainer_of()
    one.train_batch(batch_of(indices, (20, 25, 20)))
    other.train_batch(batch_of(indices[::-1].copy(), (20, 25, 20)))
    for name in one.tables:
        assert np.array_equal(one.tables[name], other.tables[name])


# --- lazily, by hand: the definition of E1 and E2 ---------------------------------------------------------------------


class LazyByHand:
    """DP-SGD with every payment put off until the row is read: five lines on top of Settlement.

    It adds the integer sums of an eager transcript, as a trainer with the same oracle would compute them.
    """

    def __init__(self, eager: EagerTrainer) -> None:
        self.spec = eager.spec
        self.tables = {name: weights.copy() for name, weights in eager.transcript.initial_tables.items()}
        self.history = {name: np.zeros(len(weights), dtype=np.int64) for name, weights in self.tables.items()}
        self.settlement = {
            name: Settlement(self.spec.mode, STREAM, self.spec.clock, table=number, dim=self.tables[name].shape[1])
            for number, name in enumerate(sorted(self.tables))
        }

    def on_written_paths(self) -> LazyByHand:
        """The same payments, without walking the tree for each of them."""
        self.settlement = {name: OnePath(s, len(self.tables[name])) for name, s in self.settlement.items()}
        return self

    def pay(self, name: str, rows: np.ndarray, until: int) -> np.ndarray:
        since = self.history[name][rows]
        self.tables[name][rows] = self.settlement[name].settle(self.tables[name][rows], rows, since, until)
        self.history[name][rows] = until
        return self.tables[name][rows]

    def run(self, eager: EagerTrainer) -> list[dict[str, np.ndarray]]:
        """Train; returns what each step read, per table."""
        reads: list[dict[str, np.ndarray]] = []
        for record in eager.transcript.steps:
            reads.append({name: self.pay(name, rows, record.step) for name, rows in record.rows.items()})
            rate = np.float32(self.spec.schedule.rate(record.step) / self.spec.expected_batch_size)
            for name, rows in record.rows.items():
                gradient = np.ldexp(record.sums[name].astype(np.float32), self.spec.contribution_exponent)
                self.tables[name][rows] = self.tables[name][rows] - rate * gradient
        for name, weights in self.tables.items():
            self.pay(name, np.arange(len(weights)), len(eager.transcript.steps))
        return reads


def test_E1_replay_is_eager_to_the_bit():
    eager = train(trainer_of(Mode.REPLAY, spec=make_spec(Mode.REPLAY, steps=40)))
    lazy = LazyByHand(eager)
    reads = lazy.run(eager)
    for name, weights in eager.tables.items():
        assert lazy.tables[name].tobytes() == weights.tobytes()
    for record, read in zip(eager.transcript.steps, reads, strict=True):
        assert all(np.array_equal(read[name], record.reads[name]) for name in record.rows)
    assert sum(len(rows) for record in eager.transcript.steps for rows in record.rows.values()) > 100


@pytest.mark.parametrize("schedule", ["constant", "with a pause", "cosine"])
def test_E2_bridge_stays_within_the_derived_bound_which_is_not_vacuous(schedule):
    steps = 48
    spec = make_spec(
        Mode.BRIDGE,
        schedule={
            "constant": Schedule.constant(0.5, steps=steps),
            "with a pause": Schedule.piecewise([12, 30], [0.5, 0.0, 0.05], steps=steps),
            "cosine": Schedule.warmup_cosine(1.5, steps=steps, warmup=12),
        }[schedule],
    )
    eager = train(trainer_of(spec=spec))
    lazy = LazyByHand(eager).on_written_paths()
    reads = lazy.run(eager)
    bounds = bridge_bounds(eager.transcript, spec)
    worst = 0.0
    for name, weights in eager.tables.items():
        difference = np.abs(weights.astype(np.float64) - lazy.tables[name]).max(axis=1)
        assert (difference <= bounds[name]).all()
        worst = max(worst, float((difference / bounds[name]).max()))
    for record, read in zip(eager.transcript.steps, reads, strict=True):
        for name, rows in record.rows.items():
            difference = np.abs(record.reads[name].astype(np.float64) - read[name]).max(axis=1)
            assert (difference <= bounds[name][rows]).all()
    assert worst > 1e-3, f"the bound is {1 / worst:.0f} times what was seen: it would let a real difference through"


def test_E2_settlements_walk_the_same_path():
    """As above in few steps, with the lazy side going down the tree for every row that it settles."""
    spec = make_spec(Mode.BRIDGE, schedule=Schedule.warmup_cosine(0.7, steps=13, warmup=3))
    eager = train(trainer_of(spec=spec))
    by_tree, by_path = LazyByHand(eager), LazyByHand(eager).on_written_paths()
    by_tree.run(eager)
    by_path.run(eager)
    for name, weights in by_tree.tables.items():
        assert weights.tobytes() == by_path.tables[name].tobytes()


def test_E2_the_bound_from_the_largest_values_met_holds_and_is_tighter():
    """W and N measured at every single step of the eager run, as the formula's own symbols."""
    trainer = trainer_of(spec=make_spec(Mode.BRIDGE, schedule=Schedule.constant(0.5, steps=36)))
    largest = {name: np.abs(weights).max(axis=1).astype(np.float64) for name, weights in trainer.tables.items()}
    increment = 0.0
    for step in range(36):
        before = trainer.tables
        trainer.train_batch(batch_of(trainer.sample(), (20, 25, 20)))
        for name, weights in trainer.tables.items():
            noise = np.stack(list(trainer._settlements[name].payments(np.arange(len(weights)), step, step + 1)))[0]
            increment = max(increment, float(np.abs(noise).max()))
            between = weights.astype(np.float64) + noise  # after the gradient, before the noise, up to one rounding
            for values in (before[name], between, weights):
                largest[name] = np.maximum(largest[name], np.abs(values).max(axis=1) * (1 + 2.0**-23))
    trainer.release()
    lazy = LazyByHand(trainer).on_written_paths()
    lazy.run(trainer)
    general = bridge_bounds(trainer.transcript, trainer.spec)
    for name, weights in trainer.tables.items():
        touches = sum(np.isin(np.arange(len(weights)), r.rows.get(name, [])) for r in trainer.transcript.steps)
        bound = bridge_rounding_bound(
            steps=36, touches=touches, largest_weight=largest[name], largest_increment=increment
        )
        assert (np.abs(weights.astype(np.float64) - lazy.tables[name]).max(axis=1) <= bound).all()
        assert (bound < general[name]).all()


def test_E2_the_bound_refuses_what_it_cannot_bound():
    with pytest.raises(InputError, match=r"fewer than 2\^23 touches"):
        bridge_rounding_bound(steps=1 << 24, touches=1 << 23, largest_weight=1.0, largest_increment=1.0)


@pytest.mark.parametrize("fault", ["off by one", "one step too few at release", "another table's path"])
def test_E2_the_bound_rejects_a_wrong_settlement(fault):
    spec = make_spec(Mode.BRIDGE, schedule=Schedule.constant(0.5, steps=40))
    eager = train(trainer_of(spec=spec))
    lazy = LazyByHand(eager).on_written_paths()
    pay = lazy.pay

    def forget_a_step(name: str, rows: np.ndarray, until: int) -> np.ndarray:
        settled = pay(name, rows, until)
        lazy.history[name][rows] = min(until + 1, 40)
        return settled

    if fault == "off by one":
        lazy.pay = forget_a_step
    elif fault == "one step too few at release":
        lazy.pay = lambda name, rows, until: pay(name, rows, min(until, 39))
    else:
        lazy.settlement["user"] = OnePath(Settlement(Mode.BRIDGE, STREAM, spec.clock, table=2, dim=5), 40)
    lazy.run(eager)
    bounds = bridge_bounds(eager.transcript, spec)
    touched = np.unique(np.concatenate([record.rows.get("user", []) for record in eager.transcript.steps]))
    wrong = touched.astype(np.int64) if fault == "off by one" else np.arange(40)
    difference = np.abs(eager.tables["user"].astype(np.float64) - lazy.tables["user"]).max(axis=1)
    assert (difference > bounds["user"])[wrong].mean() > 0.9


# --- nothing is shared ------------------------------------------------------------------------------------------------


def test_the_caller_can_change_what_it_gave_and_what_it_got():
    given = initial_tables(user=(40, 5), item=(25, 9))
    oracle = Readout(("user", "item", "user"), (5, 9, 5))
    trainer = EagerTrainer(given, oracle, make_spec(), STREAM, examples=EXAMPLES, record=True)
    twin = trainer_of()
    twin.oracle = Readout(("user", "item", "user"), (5, 9, 5))
    for _ in range(3):
        indices = trainer.sample()
        trainer.train_batch(batch_of(indices, (20, 25, 20)))
        twin.train_batch(batch_of(indices, (20, 25, 20)))
        for array in (*given.values(), *trainer.tables.values(), *trainer.oracle.seen):
            array[...] = 1e9
        for array in (*trainer.release().tables.values(), *trainer.release().dense.values()):
            array[...] = 1e9
    for name, weights in twin.tables.items():
        assert np.array_equal(trainer.tables[name], weights)


def test_recorded_reads_are_not_overwritten_by_the_updates_that_follow():
    """The aliasing trap: a view into a table, kept as a read, would show the row's latest value."""
    trainer = trainer_of()
    expected = []
    for step in range(6):
        before = trainer.tables
        trainer.train_batch(batch_of(np.arange(step, 60, 9), (20, 25, 20)))
        record = trainer.transcript.steps[-1]
        expected.append({name: before[name][rows] for name, rows in record.rows.items()})
        live = [*trainer._tables.values(), *trainer.oracle.dense.values()]
        kept = [*record.reads.values(), *record.sums.values(), *record.dense_sum.values()]
        kept += [*trainer.transcript.initial_tables.values(), *trainer.transcript.initial_dense.values()]
        assert not any(np.shares_memory(a, b) for a in live for b in kept)
    for record, reads in zip(trainer.transcript.steps, expected, strict=True):
        assert all(np.array_equal(record.reads[name], reads[name]) for name in reads)


def test_gradient_sums_change_nothing():
    trainer = trainer_of()
    before, entries = trainer.tables, len(trainer.ledger.entries)
    batch = batch_of(np.arange(10), (20, 25, 20))
    one, two = trainer.gradient_sums(batch), trainer.gradient_sums(batch)
    for name in before:
        assert np.array_equal(trainer.tables[name], before[name])
        assert np.array_equal(one.sums[name], two.sums[name])
    assert (trainer.step_index, len(trainer.ledger.entries)) == (0, entries)


# --- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
def test_a_padding_row_is_a_constant(mode):
    tables = initial_tables(user=(40, 5))
    oracle = Readout(("user",), (5,))
    trainer = EagerTrainer(tables, oracle, make_spec(mode), STREAM, examples=EXAMPLES, padding={"user": 7})
    single = np.array([7, 3, 7], dtype=np.int64)  # an unpooled embedding: one id a bag, two of them padding
    offsets = np.arange(4, dtype=np.int64)
    batch = Batch(
        np.zeros((3, 0), np.float32), (FeatureBags(single, offsets),), np.zeros(3, np.float32), np.array([4, 5, 6])
    )
    sums = trainer.gradient_sums(batch)
    assert sums.rows["user"].tolist() == [3]
    trainer.train_batch(batch)
    assert np.array_equal(oracle.seen[0], tables["user"][single])  # the padding row itself is read
    trainer.train_batch(batch_of(np.zeros(0, dtype=np.int64), (40,)))
    assert np.array_equal(trainer.tables["user"][7], tables["user"][7])
    assert (trainer.tables["user"] != tables["user"]).any(axis=1).sum() == 39
    assert trainer.ledger.entries[0].data["tables"] == {"user": [40, 5, 7]}


def test_padding_inside_a_longer_bag_is_refused():
    trainer = EagerTrainer(
        initial_tables(user=(40, 5)),
        Readout(("user",), (5,)),
        make_spec(),
        STREAM,
        examples=EXAMPLES,
        padding={"user": 7},
    )
    bags = FeatureBags(np.array([3, 7], dtype=np.int64), np.array([0, 2], dtype=np.int64))
    batch = Batch(np.zeros((1, 0), np.float32), (bags,), np.zeros(1, np.float32), np.array([4]))
    with pytest.raises(InputError, match="remove padding ids"):
        trainer.train_batch(batch)


# --- the ledger and the edges -----------------------------------------------------------------------------------------


def test_the_ledger_says_what_happened(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    oracle = Readout(("user", "item", "user"), (5, 9, 5))
    tables = initial_tables(user=(40, 5), item=(25, 9))
    spec = make_spec()
    trainer = EagerTrainer(tables, oracle, spec, STREAM, examples=EXAMPLES, ledger=ledger)
    drawn = trainer.sample()
    trainer.train_batch(batch_of(drawn, (20, 25, 20)))
    trainer.train_batch(batch_of(np.array([1, 2]), (20, 25, 20)))
    release = trainer.release()
    ledger.close()

    entries = read_ledger(tmp_path / "ledger.jsonl")
    assert [e.event for e in entries] == ["open", "step", "step", "release"]
    assert entries[0].data == {
        "law": spec.to_json(),
        "law_digest": spec.digest(),
        "key_commitment": STREAM.key.commitment(),
        "key_origin": "seed",
        "tables": {"item": [25, 9, None], "user": [40, 5, None]},
        "dense": {"z.bias": [3], "a.weight": [2, 2]},
        "examples": EXAMPLES,
    }
    assert entries[1].data == {
        "step": 0,
        "examples": len(drawn),
        "lr": 0.5,
        "noise_std": 0.9 * 1.3,
        "sampler": "keyed-poisson",
    }
    assert entries[2].data["sampler"] == "external"
    assert release.ledger_head == entries[-1].hash
    assert len(spent(entries).steps) == 2
    key = "".join(f"{word:08x}" for word in STREAM.key.words)
    text = (tmp_path / "ledger.jsonl").read_text()
    assert STREAM.key.to_bytes().hex() not in text
    assert key not in text


def test_a_ledger_that_holds_a_run_is_refused():
    trainer = trainer_of()
    with pytest.raises(LedgerError, match="already holds"):
        EagerTrainer(trainer.tables, trainer.oracle, make_spec(), STREAM, examples=EXAMPLES, ledger=trainer.ledger)


def test_the_schedule_is_not_outrun():
    trainer = train(trainer_of())
    with pytest.raises(InputError, match="the schedule ends after 12 steps"):
        trainer.train_batch(batch_of(np.array([1]), (20, 25, 20)))


def test_a_released_model_is_the_present_one_and_training_goes_on():
    trainer = trainer_of()
    trainer.train_batch(batch_of(np.array([1, 5]), (20, 25, 20)))
    first = trainer.release()
    assert first.step == 1
    assert all(np.array_equal(first.tables[name], weights) for name, weights in trainer.tables.items())
    trainer.train_batch(batch_of(np.array([1, 5]), (20, 25, 20)))
    assert trainer.release().step == 2
    assert math.isfinite(float(first.tables["user"].sum()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tables": {"user": np.zeros((4, 2))}}, "float32 matrix"),
        ({"tables": {"user": np.zeros(4, dtype=np.float32)}}, "float32 matrix"),
        ({"tables": {"user": np.zeros((0, 2), dtype=np.float32)}}, "float32 matrix"),
        ({"padding": {"user": 40}}, "padding row"),
        ({"padding": {"nobody": 0}}, "padding row"),
        ({"stream": NoiseStream(NoiseKey.from_seed(1), rounds=8)}, "rounds"),
        ({"examples": 0}, "examples must be"),
    ],
)
def test_malformed_arguments_are_refused(change, message):
    arguments = {
        "tables": initial_tables(user=(40, 5)),
        "oracle": Readout(("user",), (5,)),
        "spec": make_spec(),
        "stream": STREAM,
        "examples": EXAMPLES,
    } | change
    with pytest.raises(InputError, match=message):
        EagerTrainer(**arguments)


def test_reads_of_rows_and_tables_that_do_not_exist_are_refused():
    trainer = trainer_of()
    with pytest.raises(InputError, match="out of range"):
        trainer.train_batch(batch_of(np.arange(20), (4000, 25, 20)))
    trainer.oracle.tables = ("user", "item", "nobody")
    with pytest.raises(InputError, match="reads table 'nobody'"):
        trainer.train_batch(batch_of(np.arange(20), (20, 25, 20)))


def test_a_wrong_read_leaves_the_run_where_it_was():
    trainer = trainer_of()
    before, entries = trainer.tables, len(trainer.ledger.entries)
    with pytest.raises(InputError):
        trainer.train_batch(batch_of(np.arange(20), (4000, 25, 20)))
    assert all(np.array_equal(trainer.tables[name], before[name]) for name in before)
    assert (trainer.step_index, len(trainer.ledger.entries)) == (0, entries)
