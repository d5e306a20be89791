"""Owed noise adds up: the same increments (replay), exact integers (bridge), the summed variance (aggregate)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samelaw.contract.errors import InputError
from samelaw.contract.noise import NoiseKey, NoiseStream, Purpose
from samelaw.contract.schedule import NoiseClock, Schedule
from samelaw.contract.spec import Mode
from samelaw.reference.noise import normals
from samelaw.reference.settlement import Settlement

STREAM = NoiseStream(NoiseKey.from_seed(20261122))
LONGEST = 1 << 31


def clock_of(schedule: Schedule, *, noise_multiplier: float = 1.1) -> NoiseClock:
    return NoiseClock.of(schedule, noise_multiplier=noise_multiplier, clip_norm=0.7, expected_batch_size=48.0)


def settlement(mode: Mode, schedule: Schedule, *, table: int = 3, dim: int = 3, sigma: float = 1.1) -> Settlement:
    return Settlement(mode, STREAM, clock_of(schedule, noise_multiplier=sigma), table=table, dim=dim)


def fading(step: int) -> float:
    """A tabulated schedule that crosses zero-rate stretches and eight orders of magnitude."""
    return 0.0 if step % 7 in (3, 4) else 0.5 * 0.97**step


SHORT_SCHEDULES = {
    "one step": Schedule.constant(0.3, steps=1),
    "constant": Schedule.constant(0.3, steps=100),
    "power of two": Schedule.constant(0.3, steps=64),
    "piecewise with a pause": Schedule.piecewise([10, 40, 90], [0.1, 0.0, 2.0, 0.01], steps=121),
    "silent start and end": Schedule.piecewise([33, 50], [0.0, 1.0, 0.0], steps=97),
    "tabulated": Schedule.from_function(fading, steps=150),
    "warm-up and cosine": Schedule.warmup_cosine(0.4, steps=130, warmup=20),
}
LONG_SCHEDULES = {
    "constant": Schedule.constant(0.05, steps=LONGEST),
    "piecewise": Schedule.piecewise(
        [1, 3, 1000, 1 << 20, (1 << 30) + 1, LONGEST - 2], [0.5, 0.0, 0.1, 0.02, 0.0, 1e-3, 3.0], steps=LONGEST
    ),
    "not a power of two": Schedule.constant(0.05, steps=LONGEST - 12345),
}


def path_by_the_document(s: Settlement, row: int, t: int) -> list[float]:
    """P(t) of docs/arithmetic.md, descended iteratively in float64 with the magic-constant rint."""
    magic = 1.5 * 2.0**52

    def rint(x: float) -> float:
        return (x + magic) - magic

    def elapsed(step: int) -> int:
        """V(step) in Python integers, from the clock's own table of segments."""
        ends = [*s.clock.starts[1:].tolist(), s.clock.steps]
        return sum(
            max(0, min(step, end) - start) * ticks
            for start, end, ticks in zip(s.clock.starts.tolist(), ends, s.clock.ticks.tolist(), strict=True)
        )

    shift = s.clock.exponent - s.unit_exponent
    values: list[float] = []
    for d in range(s.dim):

        def z(step: int, d: int = d) -> float:
            return float(normals(s.stream, Purpose.BRIDGE, s.table, np.array([row]), step, dim=s.dim)[0, d])

        span = 1
        while span < s.clock.steps:
            span *= 2
        total = rint(z(0) * (math.sqrt(float(elapsed(s.clock.steps))) * 2.0**shift))
        if t >= span:
            values.append(total)
            continue
        low, high, held, before = 0, span, total, 0.0
        while high - low > 1 and low < t:
            middle = (low + high) // 2
            a, b, c = (elapsed(min(x, s.clock.steps)) for x in (low, middle, high))
            vl, vr = float(b - a), float(c - b)
            if vr == 0:
                left = held
            elif vl == 0:
                left = 0.0
            else:
                v = vl + vr
                left = rint(held * (vl / v) + z(middle) * (math.sqrt((vl * vr) / v) * 2.0**shift))
            if t >= middle:
                before, low, held = before + left, middle, held - left
            else:
                high, held = middle, left
        values.append(before)
    return values


# --- replay -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHORT_SCHEDULES)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_T1_replay_pays_the_same_increments_in_whatever_spans(name, data):
    s = settlement(Mode.REPLAY, SHORT_SCHEDULES[name])
    a, b, c = sorted(data.draw(st.lists(st.integers(0, s.clock.steps), min_size=3, max_size=3)))
    rows = np.array([0, 5, 1 << 40], dtype=np.int64)
    split = [*s.payments(rows, a, b), *s.payments(rows, b, c)]
    whole = list(s.payments(rows, a, c))
    assert len(whole) == c - a
    assert all(np.array_equal(p, q) and p.dtype == np.float32 for p, q in zip(split, whole, strict=True))


def test_replay_is_scale_times_the_draw_of_that_step():
    s = settlement(Mode.REPLAY, SHORT_SCHEDULES["piecewise with a pause"])
    rows = np.array([2, 9])
    for step, payment in zip(range(8, 13), s.payments(rows, 8, 13), strict=True):
        z = normals(STREAM, Purpose.REPLAY, 3, rows, step, dim=3)
        assert np.array_equal(payment, np.float32(s.clock.scale(step)) * z)


# --- bridge -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHORT_SCHEDULES)
def test_T1_bridge_steps_add_up_to_every_span(name):
    s = settlement(Mode.BRIDGE, SHORT_SCHEDULES[name])
    rows = np.array([0, 1, 77, (1 << 48) - 1], dtype=np.int64)
    increments = np.stack([s.owed_units(rows, t, t + 1) for t in range(s.clock.steps)])
    path = np.concatenate([np.zeros_like(increments[:1]), np.cumsum(increments, axis=0)])
    rng = np.random.default_rng(5)
    for _ in range(30):
        a, b = sorted(rng.integers(0, s.clock.steps + 1, 2).tolist())
        assert np.array_equal(s.owed_units(rows, a, b), path[b] - path[a])


@pytest.mark.parametrize("name", LONG_SCHEDULES)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_T1_bridge_adds_up_over_two_thousand_million_steps(name, data):
    s = settlement(Mode.BRIDGE, LONG_SCHEDULES[name], dim=2)
    near_a_power = st.builds(
        lambda k, off: max(0, min(s.clock.steps, (1 << k) + off)), st.integers(0, 31), st.integers(-2, 2)
    )
    times = st.one_of(near_a_power, st.integers(0, s.clock.steps))
    a, b, c = sorted(data.draw(st.tuples(times, times, times)))
    rows = np.array([0, 1, 1 << 40, (1 << 48) - 1], dtype=np.int64)
    with np.errstate(all="raise"):
        whole = s.owed_units(rows, a, c)
        assert np.array_equal(s.owed_units(rows, a, b) + s.owed_units(rows, b, c), whole)
    assert np.abs(whole).max(initial=0) < 1 << 50


@pytest.mark.parametrize("power", range(1, 32))
def test_T1_bridge_adds_up_across_every_power_of_two(power):
    s = settlement(Mode.BRIDGE, LONG_SCHEDULES["piecewise"], dim=2)
    rows = np.array([3, 1 << power], dtype=np.int64)
    edge = 1 << power
    first, last = max(0, edge - 2), min(LONGEST, edge + 2)
    steps = sum(s.owed_units(rows, t, t + 1) for t in range(first, last))
    assert np.array_equal(steps, s.owed_units(rows, first, last))
    around = s.owed_units(rows, 0, first) + steps + s.owed_units(rows, last, LONGEST)
    assert np.array_equal(around, s.owed_units(rows, 0, LONGEST))


@pytest.mark.parametrize("name", [*SHORT_SCHEDULES, *(f"long: {name}" for name in LONG_SCHEDULES)])
def test_bridge_is_the_path_of_the_document(name):
    schedule = LONG_SCHEDULES[name[6:]] if name.startswith("long: ") else SHORT_SCHEDULES[name]
    s = settlement(Mode.BRIDGE, schedule, dim=2)
    rng = np.random.default_rng(8)
    for t in {0, 1, s.clock.steps - 1, s.clock.steps, *rng.integers(0, s.clock.steps, 6).tolist()}:
        row = int(rng.integers(0, 1 << 40))
        assert s.owed_units(np.array([row]), 0, t)[0].tolist() == path_by_the_document(s, row, t)


def test_bridge_pays_nothing_for_steps_of_rate_zero():
    s = settlement(Mode.BRIDGE, SHORT_SCHEDULES["piecewise with a pause"])
    rows = np.arange(20)
    assert not s.owed_units(rows, 10, 40).any()
    assert not s.owed_units(rows, 17, 18).any()
    assert s.owed_units(rows, 39, 41).any()


def test_bridge_unit_leaves_thirty_bits_below_the_largest_step():
    for name, schedule in (SHORT_SCHEDULES | LONG_SCHEDULES).items():
        s = settlement(Mode.BRIDGE, schedule)
        largest = float(s.clock.scales.max())
        assert 2.0**30 <= largest / 2.0**s.unit_exponent < 2.0**31, name


def test_bridge_payment_is_one_rounding_of_the_integer():
    s = settlement(Mode.BRIDGE, SHORT_SCHEDULES["tabulated"])
    rows = np.arange(6)
    (payment,) = s.payments(rows, 4, 19)
    exact = s.owed_units(rows, 4, 19).astype(np.float64) * 2.0**s.unit_exponent
    assert np.array_equal(payment, exact.astype(np.float32))


def test_bridge_belongs_to_its_horizon():
    """A run that was declared longer has another path: the horizon is part of the law (docs/modes.md)."""
    rows = np.arange(4)
    short = settlement(Mode.BRIDGE, Schedule.constant(0.3, steps=64))
    longer = settlement(Mode.BRIDGE, Schedule.constant(0.3, steps=65))
    assert not np.array_equal(short.owed_units(rows, 0, 10), longer.owed_units(rows, 0, 10))


# --- aggregate --------------------------------------------------------------------------------------------------------


def test_T2_aggregate_is_one_draw_with_the_summed_variance():
    s = settlement(Mode.AGGREGATE, SHORT_SCHEDULES["tabulated"])
    rows = np.array([1, 4])
    (payment,) = s.payments(rows, 4, 19)
    z = normals(STREAM, Purpose.AGGREGATE, 3, rows, 18, dim=3)
    std = np.float32(math.sqrt(math.fsum(float(s.clock.scale(t)) ** 2 for t in range(4, 19))))
    # Ticks round each variance up by less than 2^-44 of the largest here, so at most the last bit of the scale moves.
    assert np.allclose(payment, std * z, rtol=2.0**-22, atol=0)


def test_T2_aggregate_spans_that_do_not_overlap_use_different_draws():
    s = settlement(Mode.AGGREGATE, Schedule.constant(0.3, steps=40))
    rows = np.arange(3)
    seen = [next(s.payments(rows, a, b)) / np.sqrt(b - a) for a, b in [(0, 1), (1, 5), (5, 6), (6, 21), (21, 40)]]
    for i, one in enumerate(seen):
        for other in seen[i + 1 :]:
            assert not np.isclose(one, other, rtol=1e-3).any()


def test_aggregate_does_not_overflow_at_the_longest_run():
    s = settlement(Mode.AGGREGATE, LONG_SCHEDULES["constant"])
    with np.errstate(all="raise"):
        (payment,) = s.payments(np.array([0, (1 << 48) - 1]), 0, LONGEST)
    z = normals(STREAM, Purpose.AGGREGATE, 3, np.array([0, (1 << 48) - 1]), LONGEST - 1, dim=3)
    expected = float(s.clock.scale(0)) * math.sqrt(LONGEST)
    assert np.allclose(payment / z, expected, rtol=2.0**-22)


# --- all modes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
def test_a_row_that_owes_nothing_is_left_alone_to_the_bit(mode):
    s = settlement(mode, SHORT_SCHEDULES["constant"])
    weights = np.array([[-0.0, 1.0, 2.0], [3.0, -0.0, 4.0]], dtype=np.float32)
    rows = np.array([0, 1])
    assert list(s.payments(rows, 17, 17)) == []
    settled = s.settle(weights, rows, np.array([17, 17]), 17)
    assert settled.tobytes() == weights.tobytes()


@pytest.mark.parametrize("mode", Mode)
@given(since=st.lists(st.integers(0, 30), min_size=1, max_size=5), seed=st.integers(0, 1000))
@settings(max_examples=12, deadline=None)
def test_settle_pays_each_row_from_its_own_since_and_returns_new_values(mode, since, seed):
    s = settlement(mode, SHORT_SCHEDULES["constant"])
    rng = np.random.default_rng(seed)
    rows = rng.permutation(100)[: len(since)].astype(np.int64)
    weights = rng.normal(size=(len(since), 3)).astype(np.float32)
    before = weights.copy()
    settled = s.settle(weights, rows, np.array(since), 30)
    assert np.array_equal(weights, before)
    assert not np.shares_memory(settled, weights)
    for i, start in enumerate(since):
        value = before[i]
        for payment in s.payments(rows[i : i + 1], start, 30):
            value = (value - payment[0]).astype(np.float32)
        assert np.array_equal(settled[i], value)


@pytest.mark.parametrize("mode", Mode)
def test_a_rows_payment_does_not_depend_on_the_rows_beside_it(mode):
    s = settlement(mode, SHORT_SCHEDULES["warm-up and cosine"], dim=19)
    rows = np.array([4, 1 << 40, 9], dtype=np.int64)
    together = list(s.payments(rows, 3, 60))
    alone = [list(s.payments(rows[i : i + 1], 3, 60)) for i in range(3)]
    for k, payment in enumerate(together):
        assert np.array_equal(payment, np.concatenate([alone[i][k] for i in range(3)]))


@pytest.mark.parametrize("mode", Mode)
def test_without_noise_nothing_moves(mode):
    s = settlement(mode, SHORT_SCHEDULES["constant"], sigma=0.0)
    weights = np.array([[1.5, -2.5, 0.25]], dtype=np.float32)
    assert np.array_equal(s.settle(weights, np.array([7]), np.array([0]), 100), weights)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(("since", "until"), [(-1, 3), (4, 3), (0, 101), (101, 101)])
def test_spans_outside_the_run_are_refused(mode, since, until):
    s = settlement(mode, SHORT_SCHEDULES["constant"])
    with pytest.raises(InputError, match="0 <= since <= until <= 100"):
        list(s.payments(np.array([0]), since, until))
