"""Owed noise: what a row pays for the steps since, ..., until - 1, in each of the three modes.

docs/arithmetic.md ("Settlement") gives every rounding; docs/modes.md says what each mode guarantees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int64

from samelaw.contract.errors import InputError
from samelaw.contract.noise import NoiseStream, Purpose
from samelaw.contract.schedule import NoiseClock
from samelaw.contract.spec import Mode
from samelaw.reference.lazy_schedule import pay_steps
from samelaw.reference.noise import normals
from samelaw.reference.rows import Rows, Values

BRIDGE_BITS = 30
LARGEST_UNITS = float(1 << 51)  # below this, rint and (x + 1.5 * 2^52) - 1.5 * 2^52 are the same function


@dataclass(frozen=True)
class Settlement:
    """The noise of one table.

    Attributes:
        mode: how owed noise is drawn.
        stream: key and rounds; every draw is a pure function of it and of (table, row, step).
        clock: scale and variance of every step of the run.
        table: number of the table, its rank among the sorted table names.
        dim: columns of the table.

    Guarantees:
        T1  A row that settles at times a = t_0 < t_1 < ... < t_n = b has paid exactly the payments of (a, b) at once:
            the same increments in the same order (replay), the same integer sum (bridge).
        T2  In aggregate, spans that do not overlap are drawn from different addresses, and the variance of a span is
            the sum of the variances of its steps, up to the rounding of one float32 scale.

    Source: docs/arithmetic.md; Lévy's construction of Brownian motion (bridge); LazyDP, arXiv 2404.08847 (aggregate).
    """

    mode: Mode
    stream: NoiseStream
    clock: NoiseClock
    table: int = field(kw_only=True)
    dim: int = field(kw_only=True)

    def payments(self, rows: Int64[np.ndarray, "n"], since: int, until: int) -> Iterator[Float32[np.ndarray, "n dim"]]:
        """The increments to subtract from `rows`, in order, each rounded to float32 by itself.

        Args:
            rows: row numbers, 0 <= row < 2^48.
            since: steps already paid for, >= 0.
            until: steps to have paid for afterwards, since <= until <= steps of the run.

        Returns:
            replay: one increment per step; bridge and aggregate: one. Nothing when since == until.

        Raises:
            InputError: the span is not inside the run.
        """
        self._check_span(since, until)
        if since == until:
            return
        if self.mode is Mode.REPLAY:
            for step in range(since, until):
                yield self.clock.scale(step) * self._normals(Purpose.REPLAY, rows, step)
        elif self.mode is Mode.BRIDGE:
            units = self.owed_units(rows, since, until)
            yield np.ldexp(units.astype(np.float64), self.unit_exponent).astype(np.float32)
        else:
            ticks = self._elapsed(until) - self._elapsed(since)
            yield self.clock.std(np.array([ticks])) * self._normals(Purpose.AGGREGATE, rows, until - 1)

    def settle(
        self,
        weights: Float32[np.ndarray, "n dim"],
        rows: Int64[np.ndarray, "n"],
        since: Int64[np.ndarray, "n"],
        until: int,
    ) -> Float32[np.ndarray, "n dim"]:
        """The values of `rows` after each has paid for its own steps since, ..., until - 1.

        Args:
            weights: present values of the rows.
            rows: row numbers.
            since: steps that each row has paid for.
            until: steps to have paid for afterwards.
        """
        pay = self._pay_step_by_step if self.mode is Mode.REPLAY else self._pay_at_once
        settled = weights.copy()
        for start in np.unique(since).tolist():
            owing = since == start
            due = {"": rows[owing]}
            settled[owing] = pay(due, start, until, {"": settled[owing]})[""]
        return settled

    def _pay_step_by_step(self, rows: Rows, since: int, until: int, values: Values) -> Values:
        self._check_span(since, until)
        return pay_steps(rows, since, until, values, self._pay_at_once)

    def _pay_at_once(self, rows: Rows, since: int, until: int, values: Values) -> Values:
        paid = dict(values)
        for name, ids in rows.items():
            for payment in self.payments(ids, since, until):
                paid[name] = paid[name] - payment
        return paid

    @property
    def unit_exponent(self) -> int:
        """u: the bridge counts noise in integer units of 2^u, with u = floor(log2(largest s_t)) - 30."""
        return math.frexp(float(self.clock.scales.max()))[1] - 1 - BRIDGE_BITS

    def owed_units(self, rows: Int64[np.ndarray, "n"], since: int, until: int) -> Int64[np.ndarray, "n dim"]:
        """The bridge's noise for the steps since, ..., until - 1: P(until) - P(since), in units of 2^u.

        Guarantees:
            T1  owed_units(a, b) + owed_units(b, c) == owed_units(a, c), exactly.

        Raises:
            InputError: the span is not inside the run.
        """
        self._check_span(since, until)
        std = self._units_std(float(self._elapsed(self.clock.steps)))
        total = _round(std * self._normals(Purpose.BRIDGE, rows, 0).astype(np.float64))
        horizon = 1 << (self.clock.steps - 1).bit_length()
        return self._share(rows, 0, horizon, total, since, until)

    def _share(
        self,
        rows: Int64[np.ndarray, "n"],
        low: int,
        high: int,
        total: Int64[np.ndarray, "n dim"],
        since: int,
        until: int,
    ) -> Int64[np.ndarray, "n dim"]:
        """What the steps since, ..., until - 1 hold of the node [low, high), whose steps hold `total` together."""
        if since <= low and min(high, self.clock.steps) <= until:
            return total
        if high <= since or until <= low:
            return np.zeros_like(total)
        middle = (low + high) // 2
        left = self._left(rows, low, middle, high, total)
        return self._share(rows, low, middle, left, since, until) + self._share(
            rows, middle, high, total - left, since, until
        )

    def _left(
        self, rows: Int64[np.ndarray, "n"], low: int, middle: int, high: int, total: Int64[np.ndarray, "n dim"]
    ) -> Int64[np.ndarray, "n dim"]:
        """What [low, middle) holds of [low, high): the law of a Gaussian walk given its sum, on the variance clock."""
        start, split, end = self._elapsed(low), self._elapsed(middle), self._elapsed(high)
        left, right = float(split - start), float(end - split)
        if right == 0:
            return total
        if left == 0:
            return np.zeros_like(total)
        variance = left + right
        std = self._units_std(left * right / variance)
        draw = self._normals(Purpose.BRIDGE, rows, middle).astype(np.float64)
        return _round(total * (left / variance) + draw * std)

    def _elapsed(self, step: int) -> int:
        """V(step) in clock ticks; the clock stands still after the last step."""
        return int(self.clock.at(np.array([min(step, self.clock.steps)]))[0])

    def _units_std(self, ticks: float) -> float:
        """Standard deviation, in bridge units, of a variance given in clock ticks."""
        return math.ldexp(math.sqrt(ticks), self.clock.exponent - self.unit_exponent)

    def _normals(self, purpose: Purpose, rows: Int64[np.ndarray, "n"], step: int) -> Float32[np.ndarray, "n dim"]:
        return normals(self.stream, purpose, self.table, rows, step, dim=self.dim)

    def _check_span(self, since: int, until: int) -> None:
        if not 0 <= since <= until <= self.clock.steps:
            raise InputError(
                f"a span must satisfy 0 <= since <= until <= {self.clock.steps}, got since={since}, until={until} "
                f"in table {self.table}: a row cannot owe steps that the schedule does not have"
            )


def _round(units: np.ndarray) -> np.ndarray:
    """Nearest integer, ties to even."""
    assert np.all(np.abs(units) < LARGEST_UNITS), "a bridge path left the range in which its sums are exact"
    return np.rint(units).astype(np.int64)
