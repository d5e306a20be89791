"""The Python that is proved, run by CPython on free terms: equal terms are equal bits in any arithmetic.

A term is a row's whole past: its initial value, and every payment and update applied to it, in order. Two runs that end
with the same terms have done the same operations in the same order, whatever the operations are.

Everything here takes the module under test as an argument, so that mutants.py can hand in a broken copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

TABLES = ("item", "user")


class Term:
    """A hash-consed term: the same structure is the same object."""

    __slots__ = ("number", "parts")
    _known: ClassVar[dict[tuple[Any, ...], Term]] = {}

    def __init__(self, parts: tuple[Any, ...], number: int) -> None:
        self.parts, self.number = parts, number

    @classmethod
    def of(cls, *parts: Any) -> Term:
        known = cls._known
        if parts not in known:
            known[parts] = cls(parts, len(known))
        return known[parts]

    def __repr__(self) -> str:
        return f"({' '.join(map(str, self.parts))})"


Ids = dict[str, list[int]]


@dataclass(frozen=True)
class Step:
    """What one step does: reads in order, the rows that it updates (read or not), the rows settled ahead.

    Repeats are allowed everywhere.
    """

    reads: tuple[Ids, ...]
    touched: Ids
    ahead: Ids


@dataclass(frozen=True)
class Trace:
    """A run: how many rows each table has, and its steps."""

    rows: dict[str, int]
    steps: tuple[Step, ...]


class TermRun:
    """One trace on free terms, for a schedule module `schedule` and its runtime `rows`."""

    def __init__(self, trace: Trace, schedule: ModuleType, rows: ModuleType) -> None:
        self.trace, self.schedule, self.rows = trace, schedule, rows
        self.weights = rows.Weights({name: _terms([("start", name, r) for r in range(n)]) for name, n in self.sizes})
        self.history = rows.History({name: np.zeros(n, dtype=np.int64) for name, n in self.sizes})
        self.everyone = {name: np.arange(n) for name, n in self.sizes}
        self.kept: list[tuple[Any, Any]] = []

    @property
    def sizes(self) -> list[tuple[str, int]]:
        return sorted(self.trace.rows.items())

    def plan(self, step: int, side: tuple[Any, ...]) -> Any:
        """The model of a step: its gradient is a function of everything that it reads, now and before."""
        what = self.trace.steps[step]

        def model(read: Any) -> Any:
            seen: list[Any] = []
            for asked in what.reads:
                values = read(_arrays(asked))
                frozen = tuple((name, tuple(values[name])) for name in sorted(values))
                self.kept.append((values, frozen))
                seen.append(frozen)
            everything = (*side, tuple(seen))
            return _arrays(what.touched), Term.of("gradient", step, everything), everything

        return model

    def announce(self, step: int, side: object) -> Any:
        return _arrays(self.trace.steps[step].ahead)

    def update(self, step: int, rows: Any, gradient: Term, values: Any) -> Any:
        return {
            name: _terms(
                [("update", step, name, r, gradient, w) for r, w in zip(ids.tolist(), values[name], strict=True)]
            )
            for name, ids in rows.items()
        }

    def owed(self, rows: Any, since: Any, until: int, values: Any) -> Any:
        """Replay on terms, by the proved loop. A row that is asked twice, or for a negative span, is an error."""
        paid: dict[str, np.ndarray] = {}
        for name, ids in rows.items():
            assert len(set(ids.tolist())) == len(ids), "a row is settled twice in one call"
            assert all(s <= until for s in since[name].tolist()), "a row owes a negative number of steps"
            paid[name] = values[name].copy()
            for i, start in enumerate(since[name].tolist()):
                row, value = {name: ids[i : i + 1]}, {name: values[name][i : i + 1]}
                paid[name][i] = self.schedule.pay_steps(row, start, until, value, self.pay)[name][0]
        return paid

    def pay(self, rows: Any, since: int, until: int, values: Any) -> Any:
        """One payment for one step of one row."""
        assert until == since + 1, "replay must pay one step at a time"
        ((name, ids),) = rows.items()
        return {name: _terms([("noise", name, int(ids[0]), since, values[name][0])])}

    def eager(self, start: int, stop: int, side: Any) -> Any:
        return self.schedule.eager_run(
            self.weights, side, start, stop, self.everyone, self.plan, self.update, self.owed
        )

    def lazy(self, start: int, stop: int, side: Any) -> Any:
        return self.schedule.lazy_run(
            self.weights, self.history, side, start, stop, self.plan, self.announce, self.update, self.owed
        )

    def release(self) -> None:
        steps = len(self.trace.steps)
        self.schedule.release(self.weights, self.history, steps, self.everyone, self.owed)

    def outcome(self) -> dict[str, list[Any]]:
        return {name: list(array) for name, array in self.weights.arrays.items()}

    def check_kept(self) -> None:
        """What was read must still be what it was when it was read: values, not views."""
        for values, frozen in self.kept:
            now = tuple((name, tuple(values[name])) for name in sorted(values))
            assert now == frozen, "a value that was read has changed since: it is a view of the table"


def eager_outcome(trace: Trace, schedule: ModuleType, rows: ModuleType) -> tuple[dict[str, list[Any]], Any]:
    """What the eager program makes of a trace: the final table, and everything that was read."""
    run = TermRun(trace, schedule, rows)
    side = run.eager(0, len(trace.steps), ())
    run.check_kept()
    return run.outcome(), side


def check_schedule(trace: Trace, schedule: ModuleType, rows: ModuleType, pause: int) -> None:
    """Eager, lazy with release, and lazy paused at `pause` and resumed from copies: the same terms everywhere."""
    steps = len(trace.steps)
    expected, seen = eager_outcome(trace, schedule, rows)
    check_eager_noise(trace, expected)

    lazy = TermRun(trace, schedule, rows)
    side = lazy.lazy(0, steps, ())
    lazy.release()
    lazy.check_kept()
    assert side == seen, "lazy has read something else than eager"
    assert lazy.outcome() == expected, "lazy has released something else than eager"
    for name, history in lazy.history.arrays.items():
        assert set(history.tolist()) <= {steps}, f"table {name!r}: after the release a row still owes noise"

    first = TermRun(trace, schedule, rows)
    side = first.lazy(0, pause, ())
    second = TermRun(trace, schedule, rows)
    second.weights, second.history = rows.Weights(first.weights.arrays), rows.History(first.history.arrays)
    side = second.lazy(pause, steps, side)
    second.release()
    assert side == seen, "the resumed run has read something else"
    assert second.outcome() == expected, "the resumed run has released something else"


def check_eager_noise(trace: Trace, outcome: dict[str, list[Any]]) -> None:
    """The definition itself: every row holds the noise of every step once, in order, each after the step's update."""
    steps = len(trace.steps)
    for name, terms in outcome.items():
        for row, term in enumerate(terms):
            noise: list[int] = []
            while term.parts[0] != "start":
                if term.parts[0] == "noise":
                    noise.append(term.parts[3])
                else:
                    later = noise[-1] if noise else steps
                    assert term.parts[1] == later, (
                        f"row {row}: the update of step {term.parts[1]} comes after its noise"
                    )
                term = term.parts[-1]
            assert noise == list(reversed(range(steps))), f"row {row} of {name!r} holds the noise of steps {noise}"


def check_truncation(truncation: ModuleType, gradients: Sequence[np.ndarray], clip_norm: float, exponent: int) -> None:
    """Sensitivity in exact rational arithmetic, about what CPython computes."""
    flat = [Fraction(float(x)) for g in gradients for x in g]
    square = sum((x * x for x in flat), Fraction(0))
    reported = float(square)
    while Fraction(reported) < square:
        reported = math.nextafter(reported, math.inf)
    factor = truncation.clip_factor(reported, clip_norm)
    target = Fraction(clip_norm) * (1 - Fraction(1, 2**20))
    if square > 0 and factor < 1:  # never above the real quotient by more than its own three roundings
        assert Fraction(factor) ** 2 * square <= target**2 * (1 + Fraction(1, 2**50)), "the factor was rounded up"
        assert Fraction(factor) ** 2 * square >= target**2 * (1 - Fraction(1, 2**49)), "the factor is too small"
    assert 0 <= factor <= 1
    scale = math.ldexp(factor, -exponent)
    parts = [truncation.contribution(g, scale) for g in gradients]
    for part, gradient in zip(parts, gradients, strict=True):
        assert part.dtype == np.int64
        for integer, x in zip(part.tolist(), gradient.tolist(), strict=True):
            assert abs(integer) <= abs(Fraction(x * scale)), "truncation has lengthened a coordinate"
            assert abs(integer) > abs(Fraction(x * scale)) - 1, "truncation has lost a whole unit"
    limit = Fraction(clip_norm) / Fraction(2) ** exponent
    assert sum(i * i for part in parts for i in part.tolist()) <= limit**2, "a contribution exceeds the clip norm"


def check_batch_sum(truncation: ModuleType, parts: Sequence[Sequence[int]], dim: int) -> None:
    """The sum of a batch is exact, whatever the order."""
    arrays = [np.array(p, dtype=np.int64) for p in parts]
    total = truncation.batch_sum(arrays, np.zeros(dim, dtype=np.int64))
    assert total.dtype == np.int64, "the sum is not one of integers"
    assert total.tolist() == [sum(p[i] for p in parts) for i in range(dim)], "the sum is not exact"


def _terms(parts: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(parts), dtype=object)
    for i, part in enumerate(parts):
        array[i] = part if isinstance(part, Term) else Term.of(*part)
    return array


def _arrays(ids: Ids) -> dict[str, np.ndarray]:
    return {name: np.array(rows, dtype=np.int64) for name, rows in ids.items()}


# Traces without Hypothesis, for mutants.py and oracle.py.


def random_trace(rng: Any, *, tables: Sequence[str] = TABLES, largest: int = 5, steps: int = 6) -> Trace:
    """A small trace: repeats, empty batches, rows never read, rows updated unread, rows settled ahead."""
    sizes = {name: int(rng.integers(1, largest + 1)) for name in tables}

    def rows(most: int) -> Ids:
        return {n: rng.integers(0, sizes[n], size=int(rng.integers(0, most + 1))).tolist() for n in tables}

    made: list[Step] = []
    for _ in range(int(rng.integers(0, steps + 1))):
        reads = tuple(rows(4) for _ in range(int(rng.integers(0, 3))))
        ahead = rows(3) if rng.integers(0, 2) else {n: [] for n in tables}
        made.append(Step(reads, rows(4), ahead))
    return Trace(sizes, tuple(made))


def long_trace(rng: Any) -> Trace:
    """A run of 10 to 40 steps on a few rows."""
    sizes = {name: int(rng.integers(2, 6)) for name in TABLES}

    def rows(most: int) -> Ids:
        return {n: rng.integers(0, sizes[n], size=int(rng.integers(0, most + 1))).tolist() for n in TABLES}

    return Trace(sizes, tuple(Step((rows(2),), rows(2), rows(1)) for _ in range(int(rng.integers(10, 41)))))


def wide_trace(rng: Any) -> Trace:
    """A few steps on tables of 300 to 400 rows, most of them read, updated or settled ahead at once, in any order."""
    sizes = {name: int(rng.integers(300, 401)) for name in TABLES}

    def rows(least: int) -> Ids:
        return {n: rng.permutation(size)[: int(rng.integers(least, size + 1))].tolist() for n, size in sizes.items()}

    return Trace(sizes, tuple(Step((rows(270), rows(0)), rows(270), rows(0)) for _ in range(3)))
