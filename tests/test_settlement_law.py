"""The law of the bridge: each step's increment is Gaussian with variance s_t^2, and independent of every other's.

All statistics below are scaled so that they are close to standard normal under the stated law; the key is fixed, so a
verdict never changes. Each test rejects above 7.0: over the fewer than 2,000 statistics of this file the chance that a
correct bridge would have been rejected is below 2000 * 2.6e-12 = 6e-9. With n samples a relative error of the variance
of (7.0 + 2.4) * sqrt(2 / n) would be found with probability 0.99; the tests state it.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from samelaw.contract.noise import NoiseKey, NoiseStream
from samelaw.contract.schedule import NoiseClock, Schedule
from samelaw.contract.spec import Mode
from samelaw.reference.settlement import Settlement

REJECT = 7.0
POWER_99 = 2.4
SCHEDULE = Schedule.piecewise([3, 5, 11, 20], [0.2, 0.0, 0.05, 0.9, 0.3], steps=27)


def bridge(schedule: Schedule, *, seed: int, dim: int = 16) -> Settlement:
    clock = NoiseClock.of(schedule, noise_multiplier=1.0, clip_norm=1.0, expected_batch_size=32.0)
    return Settlement(Mode.BRIDGE, NoiseStream(NoiseKey.from_seed(seed)), clock, table=0, dim=dim)


def increments(s: Settlement, *, rows: int, steps: list[int]) -> np.ndarray:
    """Increment of each step in units of s_t, one row per step, over rows * dim independent coordinates."""
    scales = [float(s.clock.scale(t)) for t in steps]
    units = [s.owed_units(np.arange(rows), t, t + 1).ravel() * 2.0**s.unit_exponent for t in steps]
    return np.stack([u / scale for u, scale in zip(units, scales, strict=True)])


def worst_statistics(x: np.ndarray) -> dict[str, float]:
    """Largest statistic of each kind over all steps, or all pairs of steps."""
    n = x.shape[1]
    other = ~np.eye(len(x), dtype=bool)
    squares = (x**2 - 1) / math.sqrt(2)
    return {
        "mean": float(np.abs(x.sum(axis=1)).max() / math.sqrt(n)),
        "variance": float(np.abs(squares.sum(axis=1)).max() / math.sqrt(n)),
        # x^4 has variance 96. Pooled, because one step's x^4 is too skewed for a normal threshold at 7 sigma.
        "kurtosis": float(abs((x**4 - 3).sum()) / math.sqrt(96 * x.size)),
        "correlation": float(np.abs((x @ x.T)[other]).max() / math.sqrt(n)),
        "correlation of squares": float(np.abs((squares @ squares.T)[other]).max() / math.sqrt(n)),
    }


def active_steps(schedule: Schedule) -> list[int]:
    return [t for t in range(schedule.steps) if schedule.rate(t) > 0]


def test_increments_have_the_variance_of_their_step_and_are_independent():
    n = 3000 * 16
    x = increments(bridge(SCHEDULE, seed=11), rows=3000, steps=active_steps(SCHEDULE))
    assert max(worst_statistics(x).values()) < REJECT, worst_statistics(x)
    assert (REJECT + POWER_99) * math.sqrt(2 / n) < 0.061  # a 6 % error of any step's variance would have been found


def test_a_span_has_the_variance_of_its_steps_together():
    s = bridge(SCHEDULE, seed=12)
    rows = np.arange(2000)
    for a, b in [(0, 27), (0, 1), (1, 12), (4, 19), (10, 11), (26, 27)]:
        total = math.fsum(float(s.clock.scale(t)) ** 2 for t in range(a, b))
        x = s.owed_units(rows, a, b).ravel() * 2.0**s.unit_exponent / math.sqrt(total)
        assert abs((x**2 - 1).sum()) / math.sqrt(2 * x.size) < REJECT


def test_the_law_holds_at_the_far_end_of_the_longest_run():
    schedule = Schedule.piecewise([(1 << 30) + 3], [0.1, 0.02], steps=1 << 31)
    steps = [0, 1, 2, (1 << 20) - 1, 1 << 20, (1 << 30) + 2, (1 << 30) + 3, (1 << 31) - 2, (1 << 31) - 1]
    x = increments(bridge(schedule, seed=13), rows=700, steps=steps)
    assert max(worst_statistics(x).values()) < REJECT, worst_statistics(x)


def test_rows_and_columns_and_tables_are_independent():
    s = bridge(SCHEDULE, seed=14, dim=24)
    other_table = Settlement(Mode.BRIDGE, s.stream, s.clock, table=1, dim=24)
    scale = 2.0**s.unit_exponent / float(s.clock.scale(12))
    # Columns 0..23 of one table, one column of another, one column of the next row: pairwise over 6,000 rows.
    rows = np.arange(6000)
    x = s.owed_units(rows, 12, 13) * scale
    y = other_table.owed_units(rows, 12, 13)[:, :1] * scale
    z = s.owed_units(rows + 1, 12, 13)[:, :1] * scale
    assert max(worst_statistics(np.concatenate([x, y, z], axis=1).T).values()) < REJECT


class HalvesBySteps(Settlement):
    """Fault: splits a node by number of steps instead of by variance."""

    def _elapsed(self, step: int) -> int:
        return step << 40


class NoInnerNoise(Settlement):
    """Fault: splits a node in proportion and adds too little noise of its own."""

    def _units_std(self, ticks: float) -> float:
        whole = float(self._elapsed(self.clock.steps))
        return super()._units_std(ticks) * (1.0 if ticks == whole else 0.95)


class SharedDraw(Settlement):
    """Fault: every node of the tree uses the draw of the root."""

    def _normals(self, purpose, rows, step):
        return super()._normals(purpose, rows, 0)


@pytest.mark.parametrize(
    ("fault", "statistic"),
    [(HalvesBySteps, "variance"), (NoInnerNoise, "variance"), (SharedDraw, "correlation")],
)
def test_the_checks_reject_a_wrong_bridge(fault, statistic):
    sound = bridge(SCHEDULE, seed=11)
    wrong = fault(Mode.BRIDGE, sound.stream, sound.clock, table=0, dim=16)
    x = increments(wrong, rows=3000, steps=active_steps(SCHEDULE))
    assert worst_statistics(x)[statistic] > REJECT


def test_aggregate_spans_have_the_summed_variance_and_are_independent():
    s = bridge(SCHEDULE, seed=15)
    s = Settlement(Mode.AGGREGATE, s.stream, s.clock, table=0, dim=16)
    spans = [(0, 2), (2, 6), (6, 12), (12, 13), (13, 27)]
    x = np.stack(
        [
            next(s.payments(np.arange(3000), a, b)).ravel().astype(np.float64)
            / math.sqrt(math.fsum(float(s.clock.scale(t)) ** 2 for t in range(a, b)))
            for a, b in spans
        ]
    )
    assert max(worst_statistics(x).values()) < REJECT


@pytest.mark.slow
def test_the_law_with_fifty_million_draws():
    """As the first test, with a variance error of 0.5 % of any step found with probability 0.99."""
    n = 150_000 * 48
    x = increments(bridge(SCHEDULE, seed=16, dim=48), rows=150_000, steps=active_steps(SCHEDULE)[::4])
    assert max(worst_statistics(x).values()) < REJECT, worst_statistics(x)
    assert (REJECT + POWER_99) * math.sqrt(2 / n) < 0.005
