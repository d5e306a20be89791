"""A whole training run as a value: tables, examples, batches, law, and everything that happens on the way.

A plan is plain data whose `repr` is the Python that makes it, so a failing run can be pasted into a test. Its model is
a readout: the gradient of an example's loss with respect to the pooled vector p of feature f is

    fl32(v + fl32(curvature * p)),      v = the example's slopes for f,

and with respect to the dense parameter it is the example's dense input. Every slope is a small integer times a power of
two, so that is all the arithmetic of a model, and any language can repeat it. With curvature 0 no gradient depends on
what was read; with another one, a wrong read changes everything after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from samelaw.contract.errors import InputError
from samelaw.contract.noise import NoiseKey
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import ExecutionOptions, Mode, PrivacySpec
from samelaw.contract.trace import Batch, FeatureBags, Lookup, Pooling

DENSE = "out.weight"
"""The name of the dense parameter, of shape (1, dense_width)."""


@dataclass(frozen=True, repr=False)
class Table:
    """One embedding table; `padding` is a row that is a constant of the model."""

    name: str
    rows: int
    dim: int
    pooling: str = "sum"
    padding: int | None = None

    def __repr__(self) -> str:
        return f"Table({', '.join(_said(self))})"


@dataclass(frozen=True, repr=False)
class Example:
    """What one example looks up, and its gradients.

    Attributes:
        bags: row ids per feature, padding ids included; a bag may be empty or hold a row several times.
        slope, power: slopes[f][d] = ((slope * (d + 1) + 7 * f) mod 17 - 8) * 2^power.
        weights: per feature one weight per id, or None; empty for no weights at all.
        dense: the dense input; 0 or a power of two of either sign.
        given: the slopes of every feature, one by one, in place of `slope` and `power`.
    """

    bags: tuple[tuple[int, ...], ...]
    slope: int = 1
    power: int = -3
    weights: tuple[tuple[float, ...] | None, ...] = ()
    dense: tuple[float, ...] = ()
    given: tuple[tuple[float, ...], ...] = ()

    def slopes(self, feature: int, dim: int) -> Float32[np.ndarray, "dim"]:
        """v for one feature: exact in float32."""
        if self.given:
            return np.array(self.given[feature], dtype=np.float32)
        whole = (self.slope * np.arange(1, dim + 1, dtype=np.int64) + 7 * feature) % 17 - 8
        return np.ldexp(whole.astype(np.float32), self.power).astype(np.float32)

    def weights_of(self, feature: int) -> tuple[float, ...] | None:
        return self.weights[feature] if self.weights else None

    def __repr__(self) -> str:
        return f"Example({', '.join(_said(self))})"


@dataclass(frozen=True, repr=False)
class RunPlan:
    """One run.

    Attributes:
        tables: the tables; those whose `name` is named by no feature are never read.
        features: for each feature, its table's place in `tables`; features may share one.
        examples: the training set.
        schedule: ("constant", rate), ("piecewise", boundaries, rates), ("cosine", peak, warmup), or ("named", name,
            starts, rates), which is a Schedule as it is.
        steps: number of steps.
        batches: the examples of each step; None for the keyed sampler.
        mode, clip_norm, noise_multiplier, expected_batch_size, sampling_rate, rounds: the law.
        key: seed of the noise key, or the key itself as 64 hexadecimal digits.
        curvature: see above.
        dense_width: width of the dense parameter; 0 for none.
        restarts: (save, kill) pairs: a checkpoint before step `save`, the trainer dropped before step `kill` >= save,
            a fresh one that goes on from `save`. In order, and apart.
        early: steps before which everything is settled.
        announce: tell the trainer before each step which rows the next one reads.
        look_ahead, threads, settle_chunk, check_mixing: contract.spec.ExecutionOptions.
        weights_given: the initial weights of each table, row after row, then of the dense parameter; by default they
            are made up.
    """

    tables: tuple[Table, ...]
    features: tuple[int, ...]
    examples: tuple[Example, ...]
    steps: int
    schedule: tuple[str | float | tuple[int, ...] | tuple[float, ...], ...] = ("constant", 0.5)
    batches: tuple[tuple[int, ...], ...] | None = None
    mode: str = "replay"
    clip_norm: float = 1.0
    noise_multiplier: float = 1.0
    expected_batch_size: float = 2.0
    sampling_rate: float = 0.5
    rounds: int = 12
    key: int | str = 0
    curvature: float = 0.0
    dense_width: int = 0
    restarts: tuple[tuple[int, int], ...] = ()
    early: tuple[int, ...] = ()
    announce: bool = False
    look_ahead: bool = True
    threads: int = 1
    settle_chunk: int = 1 << 16
    check_mixing: bool = False
    weights_given: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.batches is not None and len(self.batches) != self.steps:
            raise InputError(f"a plan of {self.steps} steps needs as many batches, got {len(self.batches)} in RunPlan")
        ends = [step for pair in self.restarts for step in pair]
        if ends != sorted(ends) or any(not 0 <= step <= self.steps for step in ends):
            raise InputError(
                f"restarts must be (save, kill) pairs in order, within 0..{self.steps}, got {self.restarts}"
            )

    def __repr__(self) -> str:
        return "RunPlan(\n    " + ",\n    ".join(_said(self)) + ",\n)"

    @cached_property
    def spec(self) -> PrivacySpec:
        """The law."""
        return PrivacySpec(
            clip_norm=self.clip_norm,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            expected_batch_size=self.expected_batch_size,
            delta=1e-5,
            schedule=_schedule(self.schedule, self.steps),
            mode=Mode(self.mode),
            rounds=self.rounds,
        )

    @cached_property
    def options(self) -> ExecutionOptions:
        return ExecutionOptions(self.threads, self.look_ahead, self.settle_chunk, self.check_mixing)

    @cached_property
    def noise_key(self) -> NoiseKey:
        if isinstance(self.key, str):
            return NoiseKey.from_bytes(bytes.fromhex(self.key), origin="seed")
        return NoiseKey.from_seed(self.key)

    def table_name(self, table: int) -> str:
        """The table's name as both trainers know it."""
        return f"tables.{self.tables[table].name}"

    def table_order(self) -> list[int]:
        """The tables of the model, in sorted order of their names."""
        return sorted(range(len(self.tables)), key=self.table_name)

    def initial_tables(self) -> dict[str, Float32[np.ndarray, "_rows _dim"]]:
        """Initial weights: multiples of 2^-16 in [-1/2, 1/2), unlike everywhere that matters."""
        found: dict[str, np.ndarray] = {}
        for number in self.table_order():
            table = self.tables[number]
            if self.weights_given:
                given = np.array(self.weights_given[number], dtype=np.float32)
                found[self.table_name(number)] = given.reshape(table.rows, table.dim)
                continue
            place = np.arange(table.rows * table.dim, dtype=np.int64) + 1
            mixed = (place * 40503 + number * 12289) % (1 << 16) - (1 << 15)
            weights = np.ldexp(mixed.astype(np.float32), -16).astype(np.float32)
            found[self.table_name(number)] = weights.reshape(table.rows, table.dim)
        return found

    def initial_dense(self) -> dict[str, Float32[np.ndarray, "1 width"]]:
        """The dense parameter starts at 1/4, 1/2, ..., one value a column."""
        if self.dense_width == 0:
            return {}
        if self.weights_given:
            return {DENSE: np.array(self.weights_given[-1], dtype=np.float32).reshape(1, -1)}
        return {DENSE: (np.arange(1, self.dense_width + 1, dtype=np.float32) / 4).reshape(1, -1).astype(np.float32)}

    def padding(self) -> dict[str, int]:
        return {self.table_name(t): table.padding for t, table in enumerate(self.tables) if table.padding is not None}

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """These examples, with their bags as they are (padding included); the model takes weights from the plan."""
        chosen = [self.examples[int(i)] for i in indices]
        features: list[FeatureBags] = []
        for f in range(len(self.features)):
            ids = np.array([row for example in chosen for row in example.bags[f]], dtype=np.int64)
            ends = np.cumsum([0, *(len(example.bags[f]) for example in chosen)])
            features.append(FeatureBags(ids, ends.astype(np.int64)))
        dense = np.array([example.dense for example in chosen], dtype=np.float32).reshape(len(chosen), self.dense_width)
        labels = np.zeros(len(chosen), dtype=np.float32)
        return Batch(dense, tuple(features), labels, np.array(indices, dtype=np.int64))

    def weights(self, feature: int, indices: Sequence[int] | np.ndarray) -> Float32[np.ndarray, "_ids"] | None:
        """One weight per id of the feature's bags in this batch, or None where no example of the plan has any."""
        if not any(example.weights_of(feature) for example in self.examples):
            return None
        chosen = [self.examples[int(i)] for i in indices]
        values = [w for e in chosen for w in (e.weights_of(feature) or (1.0,) * len(e.bags[feature]))]
        return np.array(values, dtype=np.float32)

    def slopes(self, feature: int, indices: Sequence[int] | np.ndarray) -> Float32[np.ndarray, "examples dim"]:
        """v of one feature for each example of a batch."""
        dim = self.tables[self.features[feature]].dim
        rows = [self.examples[int(i)].slopes(feature, dim) for i in indices]
        return np.array(rows, dtype=np.float32).reshape(len(rows), dim)

    def lookups(self, batch: Batch) -> list[Lookup]:
        """One call per feature, padding taken out of the bags; bag i belongs to example i."""
        found: list[Lookup] = []
        for f, bags in enumerate(batch.features):
            table = self.tables[self.features[f]]
            weights = self.weights(f, batch.indices)
            keep = np.full(bags.ids.shape, True) if table.padding is None else bags.ids != table.padding
            before = np.concatenate([[0], np.cumsum(keep)]).astype(np.int64)
            found.append(
                Lookup(
                    self.table_name(self.features[f]),
                    bags.ids[keep],
                    before[bags.offsets],
                    np.arange(len(batch), dtype=np.int64),
                    Pooling(table.pooling),
                    None if weights is None else weights[keep],
                )
            )
        return found

    def rows_read(self, batch: Batch) -> dict[str, Int64[np.ndarray, "_rows"]]:
        """Distinct rows that a batch reads, by table; none for tables that it leaves alone."""
        found: dict[str, np.ndarray] = {}
        for lookup in self.lookups(batch):
            found[lookup.table] = np.union1d(found.get(lookup.table, np.empty(0, dtype=np.int64)), lookup.ids)
        return found


def _said(record: Any) -> list[str]:
    """The arguments that make a record; what is at its default is left out."""
    return [f"{f.name}={getattr(record, f.name)!r}" for f in fields(record) if getattr(record, f.name) != f.default]


def _schedule(said: Sequence[object], steps: int) -> Schedule:
    match tuple(said):
        case ("constant", float(rate)):
            return Schedule.constant(rate, steps=steps)
        case ("piecewise", tuple(boundaries), tuple(rates)):
            return Schedule.piecewise(boundaries, rates, steps=steps)
        case ("cosine", float(peak), int(warmup)):
            return Schedule.warmup_cosine(peak, steps=steps, warmup=warmup)
        case ("named", str(name), tuple(starts), tuple(rates)):
            return Schedule(starts, rates, steps, name)
        case other:
            raise InputError(
                "schedule must be ('constant', rate), ('piecewise', boundaries, rates) or ('cosine', peak, warmup), "
                f"got {other!r} in RunPlan"
            )
