"""The noise clock: exact integers for every schedule, without overflow, and never less than a step owes."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samelaw.contract.errors import DataDependentRateError, InputError
from samelaw.contract.schedule import LARGEST_STEPS, NoiseClock, Schedule


def clock_of(schedule: Schedule, *, sigma: float = 1.1, clip_norm: float = 0.7, batch: float = 48.0) -> NoiseClock:
    return NoiseClock.of(schedule, noise_multiplier=sigma, clip_norm=clip_norm, expected_batch_size=batch)


LONG = {
    "constant": Schedule.constant(0.05, steps=LARGEST_STEPS),
    "constant, odd horizon": Schedule.constant(3e4, steps=LARGEST_STEPS - 1),
    "piecewise": Schedule.piecewise(
        [1, 7, 1 << 13, (1 << 22) - 1, (1 << 30) + 5], [0.3, 0.0, 1e-4, 5.0, 0.02, 1.0], steps=LARGEST_STEPS
    ),
    "one loud step": Schedule.piecewise([5, 6], [1e-12, 1e12, 1e-12], steps=LARGEST_STEPS),
    "tabulated": Schedule.from_function(lambda t: 1.0 / (1 + t), steps=5000),
    "warm-up and cosine": Schedule.warmup_cosine(0.4, steps=6000, warmup=500),
}


def exact_elapsed(clock: NoiseClock, step: int) -> int:
    """V(step) in Python integers, segment by segment."""
    ends = [*clock.starts[1:].tolist(), clock.steps]
    return sum(
        max(0, min(step, end) - start) * ticks
        for start, end, ticks in zip(clock.starts.tolist(), ends, clock.ticks.tolist(), strict=True)
    )


def near_powers_of_two(limit: int) -> list[int]:
    steps = {max(0, min(limit, (1 << k) + off)) for k in range(32) for off in (-2, -1, 0, 1, 2)}
    return sorted(steps | {limit - 1, limit})


@pytest.mark.parametrize("name", LONG)
def test_prefix_sums_are_exact_near_every_power_of_two(name):
    clock = clock_of(LONG[name])
    steps = near_powers_of_two(clock.steps)
    with np.errstate(all="raise"):
        found = clock.at(np.array(steps, dtype=np.int64))
    assert found.dtype == np.int64
    assert found.tolist() == [exact_elapsed(clock, step) for step in steps]


@pytest.mark.parametrize("name", LONG)
def test_ticks_round_each_variance_up_by_less_than_one(name):
    clock = clock_of(LONG[name])
    tick = Fraction(4) ** clock.exponent
    for scale, ticks in itertools.islice(zip(clock.scales, clock.ticks.tolist(), strict=True), 2000):
        variance = Fraction(float(scale)) ** 2
        assert variance <= ticks * tick < variance + tick


@pytest.mark.parametrize("name", LONG)
def test_the_whole_run_fits_and_is_fine_grained(name):
    """Below 2^62, so differences and sums of int64 cannot wrap; at least 2^58, so one tick is under 2^-58 of it."""
    clock = clock_of(LONG[name])
    assert 1 << 58 <= exact_elapsed(clock, clock.steps) < 1 << 62


@given(
    rates=st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e12)), min_size=1, max_size=8),
    lengths=st.lists(st.integers(1, 1 << 27), min_size=8, max_size=8),
    sigma=st.floats(1e-3, 1e3),
    clip_norm=st.floats(1e-3, 1e3),
)
@settings(max_examples=100, deadline=None)
def test_any_piecewise_schedule_is_exact_and_monotone(rates, lengths, sigma, clip_norm):
    rates = [*rates, 1.0]
    boundaries = list(itertools.accumulate(lengths[: len(rates) - 1]))
    schedule = Schedule.piecewise(boundaries, rates, steps=boundaries[-1] + lengths[-1])
    clock = clock_of(schedule, sigma=sigma, clip_norm=clip_norm)
    steps = sorted({0, schedule.steps, *boundaries, *(b - 1 for b in boundaries), *(b // 2 for b in boundaries)})
    found = clock.at(np.array(steps, dtype=np.int64)).tolist()
    assert found == [exact_elapsed(clock, step) for step in steps]
    assert found == sorted(found)
    assert found[-1] < 1 << 62


def test_scale_is_two_roundings_of_the_declared_numbers():
    schedule = Schedule.piecewise([10, 20], [0.1, 0.37, 0.0], steps=30)
    clock = clock_of(schedule, sigma=1.3, clip_norm=0.9, batch=37.0)
    for step in (0, 9, 10, 19, 20, 29):
        assert clock.scale(step) == np.float32(schedule.rate(step) * (1.3 * 0.9 / 37.0))
    assert clock.scale(0).dtype == np.float32


def test_std_of_a_span_is_within_one_float32_rounding():
    clock = clock_of(LONG["warm-up and cosine"])
    for a, b in [(0, 1), (3, 700), (499, 501), (0, 6000)]:
        exact = math.sqrt(sum(Fraction(float(clock.scale(t))) ** 2 for t in range(a, b)))
        ticks = clock.at(np.array([a, b]))
        assert clock.std(ticks[1:] - ticks[:1])[0] == pytest.approx(exact, rel=2.0**-23)


def test_a_clock_without_noise_stands_still():
    clock = clock_of(Schedule.constant(0.1, steps=10), sigma=0.0)
    assert clock.at(np.arange(11)).tolist() == [0] * 11
    assert clock.std(np.array([0])).tolist() == [0.0]


@pytest.mark.parametrize("step", [-1, 11])
def test_the_clock_ends_with_the_run(step):
    with pytest.raises(InputError, match=r"0\.\.10"):
        clock_of(Schedule.constant(0.1, steps=10)).at(np.array([step]))


def test_noise_beyond_float32_is_refused_at_either_end():
    with pytest.raises(InputError, match="overflows float32"):
        clock_of(Schedule.constant(1e30, steps=3), sigma=1e12)
    # Below 2^-126 float32 loses bits, and at last all of them: steps would pay less noise than the ledger says.
    with pytest.raises(InputError, match="too small for float32"):
        clock_of(Schedule.constant(1e-30, steps=3), sigma=1e-12)


# --- schedules --------------------------------------------------------------------------------------------------------


def test_rates_are_those_of_the_segment():
    schedule = Schedule.piecewise([2, 5], [1.0, 2.0, 3.0], steps=7)
    assert [schedule.rate(t) for t in range(7)] == [1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0]
    for step in (-1, 7):
        with pytest.raises(InputError, match="the schedule ends there"):
            schedule.rate(step)


def test_warmup_cosine_rises_then_falls():
    schedule = Schedule.warmup_cosine(0.8, steps=100, warmup=10, final=0.1)
    rates = [schedule.rate(t) for t in range(100)]
    assert rates[:10] == pytest.approx([0.08 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(0.8)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_a_rate_that_depends_on_more_than_the_step_is_refused():
    losses = iter(range(1000))
    with pytest.raises(DataDependentRateError, match="function of the step alone"):
        Schedule.from_function(lambda step: 0.1 / (1 + next(losses)), steps=50)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Schedule.constant(0.1, steps=0), "steps must be a whole number in"),
        (lambda: Schedule.constant(0.1, steps=LARGEST_STEPS + 1), "steps must be a whole number in"),
        (lambda: Schedule.constant(0.0, steps=5), "at least one must be > 0"),
        (lambda: Schedule.constant(-0.1, steps=5), "finite and >= 0"),
        (lambda: Schedule.constant(math.nan, steps=5), "finite and >= 0"),
        (lambda: Schedule.constant(math.inf, steps=5), "finite and >= 0"),
        (lambda: Schedule.piecewise([3, 3], [1.0, 2.0, 3.0], steps=9), "must increase"),
        (lambda: Schedule.piecewise([3, 9], [1.0, 2.0, 3.0], steps=9), "stay below"),
        (lambda: Schedule.piecewise([3], [1.0, 2.0, 3.0], steps=9), "one rate per segment"),
        (lambda: Schedule.from_function(lambda _: 0.1, steps=(1 << 24) + 1), "use piecewise"),
    ],
)
def test_malformed_schedules_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
