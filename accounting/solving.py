"""Two of noise multiplier, steps and epsilon give the third, for any plan of one phase."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy import optimize

from samelaw.accounting.assumptions import Assumptions
from samelaw.accounting.composition import Plan, Spend, moments_epsilon, price_plan
from samelaw.accounting.engines import exact_interval
from samelaw.accounting.mechanism import LARGEST_STEPS, SampledGaussian
from samelaw.contract.errors import InputError

LARGEST_MULTIPLIER = 1e6
DIGITS = 4


def upper_epsilon(plan: Plan, delta: float) -> float:
    """An upper bound: the statement's own where that is the closed form or the contour integral, and never below it."""
    exact = exact_interval(plan.phases[0], delta) if plan.simple else None
    return exact[0].upper if exact else price_plan(plan, delta).upper


def most_steps(
    target_epsilon: float,
    *,
    sampling_rate: float,
    noise_multiplier: float,
    delta: float,
    assumptions: Assumptions,
    spends: tuple[Spend, ...] = (),
) -> int:
    """The largest number of steps whose upper bound on epsilon is at most the target.

    Raises:
        InputError: not even one step fits; or 2^31 do.
    """
    _check(target_epsilon)

    def fits(steps: int) -> bool:
        mechanism = SampledGaussian(sampling_rate, noise_multiplier, steps)
        return upper_epsilon(Plan((mechanism,), assumptions, spends), delta) <= target_epsilon

    def cheap(steps: int) -> bool:
        plan = Plan((SampledGaussian(sampling_rate, noise_multiplier, steps),), assumptions, spends)
        return assumptions.truncation(plan.phases[0]) == 0 and moments_epsilon(plan, delta) <= target_epsilon

    low = 0
    while cheap(max(1, 2 * low)):  # its bound is a little high, so this many steps do fit
        low = max(1, 2 * low)
        if low > LARGEST_STEPS // 2:
            raise InputError(f"more than {LARGEST_STEPS // 2} steps fit; nothing limits them")
    if low == 0 and not fits(1):
        raise InputError(
            f"not even one step at noise multiplier {noise_multiplier:g} and sampling rate {sampling_rate:g} fits into "
            f"epsilon {target_epsilon:g} at delta {delta:g}: add noise, or accept a larger epsilon"
        )
    low = max(low, 1)
    high = 2 * low
    while high <= LARGEST_STEPS and fits(high):
        low, high = high, 2 * high
    if high > LARGEST_STEPS:
        raise InputError(f"more than {LARGEST_STEPS // 2} steps fit; nothing limits them")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def least_multiplier(
    target_epsilon: float,
    *,
    sampling_rate: float,
    steps: int,
    delta: float,
    assumptions: Assumptions,
    spends: tuple[Spend, ...] = (),
) -> float:
    """A noise multiplier, rounded up to four digits, whose upper bound is at most the target, and by little.

    Raises:
        InputError: none up to 1e6 reaches it.
    """
    _check(target_epsilon)
    if steps < 1:
        raise InputError(f"steps must be >= 1 to calibrate noise, got {steps}")

    def excess(log_sigma: float) -> float:
        mechanism = SampledGaussian(sampling_rate, math.exp(log_sigma), steps)
        found = upper_epsilon(Plan((mechanism,), assumptions, spends), delta)
        return math.log(max(found, 1e-12)) - math.log(target_epsilon)

    low, high = 0.0, math.log(2.0)
    while excess(high) > 0:
        low, high = high, high + math.log(4)
        if high > math.log(LARGEST_MULTIPLIER):
            raise InputError(
                f"no noise multiplier up to {LARGEST_MULTIPLIER:g} reaches epsilon {target_epsilon:g} at delta "
                f"{delta:g} with sampling rate {sampling_rate:g} over {steps} steps: train fewer steps or accept a "
                "larger epsilon"
            )
    while excess(low) <= 0:
        low, high = low - math.log(2), low
        if low < math.log(0.01):
            raise InputError(f"epsilon {target_epsilon:g} holds with next to no noise; ask for a smaller one")
    return _round_up_until(lambda sigma: excess(math.log(sigma)) <= 0, math.exp(_root(excess, low, high)))


def _root(excess: Callable[[float], float], low: float, high: float) -> float:
    """Where a decreasing function crosses 0, from above it, to 1e-5: smooth and nearly straight in logarithms."""
    return float(optimize.root_scalar(excess, bracket=(low, high), method="brentq", xtol=1e-5).root)


def _round_up_until(holds: Callable[[float], bool], value: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - DIGITS + 1)
    count = math.ceil(value / unit * (1 - 1e-6))
    while not holds(round(count * unit, 12)):
        count += 1
    return round(count * unit, 12)


def _check(target: float) -> None:
    if not (math.isfinite(target) and target > 0):
        raise InputError(f"target_epsilon must be finite and > 0, got {target!r}")
