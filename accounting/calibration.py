"""Find the noise multiplier for a target epsilon."""

from __future__ import annotations

import math

from samelaw.accounting import pld, rdp
from samelaw.accounting.engines import evaluate, exact_interval
from samelaw.accounting.interval import Unavailable
from samelaw.accounting.mechanism import ROUNDING, SampledGaussian
from samelaw.contract.errors import InputError

LARGEST_MULTIPLIER = 1e6
SMALLEST_MULTIPLIER = 0.05
DIGITS = 4


def calibrate(target_epsilon: float, *, sampling_rate: float, steps: int, delta: float) -> float:
    """A noise multiplier whose `price(...).upper` is at most `target_epsilon`, and by little.

    It is rounded up to four significant digits, so that the number in a command is the number that was run, and leaves
    room for the float32 rounding of a step's scales.

    Raises:
        InputError: the target is not positive and finite, or no multiplier up to 1e6 reaches it.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise InputError(f"target_epsilon must be finite and > 0, got {target_epsilon!r}")
    if steps < 1:
        raise InputError(f"steps must be >= 1 to calibrate noise, got {steps}")

    def quick(multiplier: float) -> float:
        return _quick_upper(SampledGaussian(sampling_rate, multiplier, steps), delta)

    low, high = SMALLEST_MULTIPLIER, 1.0
    while quick(high) > target_epsilon:
        low, high = high, 2 * high
        if high > LARGEST_MULTIPLIER:
            raise InputError(
                f"no noise multiplier up to {LARGEST_MULTIPLIER:g} reaches epsilon {target_epsilon:g} at delta "
                f"{delta:g} with sampling rate {sampling_rate:g} over {steps} steps: train fewer steps or accept a "
                "larger epsilon"
            )
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if quick(middle) <= target_epsilon else (middle, high)
    multiplier, factor = _round_up(high), 1.002
    while (
        evaluate(SampledGaussian(sampling_rate, multiplier * (1 - ROUNDING), steps), delta).interval.upper
        > target_epsilon
    ):
        multiplier, factor = _round_up(multiplier * factor), factor * factor  # few tries, however far the truth is
        if multiplier > LARGEST_MULTIPLIER:
            raise InputError(
                f"no noise multiplier up to {LARGEST_MULTIPLIER:g} is certified for epsilon {target_epsilon:g} at "
                f"delta {delta:g}: ask for a larger epsilon"
            )
    return multiplier


def _quick_upper(mechanism: SampledGaussian, delta: float) -> float:
    """A bound that is close to what `evaluate` quotes and takes a fraction of its time."""
    exact = exact_interval(mechanism, delta)
    if exact is not None:
        return exact[0].upper
    renyi = rdp.rdp_epsilon(mechanism, delta)
    second = pld.pld_epsilon(mechanism, delta, scale=renyi)
    return renyi if isinstance(second, Unavailable) else min(renyi, second)


def _round_up(value: float) -> float:
    """The next number of four significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - DIGITS + 1)
    return round(math.ceil(value / unit * (1 - 1e-12)) * unit, 12)
