"""Which accountant answers: a sound one for the parameters, with the reason, and a second one beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from samelaw.accounting import pld, prv, rdp
from samelaw.accounting.closed_forms import gaussian_log_delta, single_step_log_delta, solve_epsilon
from samelaw.accounting.interval import Interval, Unavailable
from samelaw.accounting.mechanism import SampledGaussian
from samelaw.contract.errors import InputError, PrivacyError

SLACK = 1e-6
"""Relative difference below which two accountants do not contradict each other: their own float64 rounding."""


@dataclass(frozen=True)
class Answer:
    """Epsilon of a mechanism at one delta.

    Attributes:
        interval: the bracket that is quoted.
        reason: why this engine, in a sentence.
        second_opinion: epsilon by dp_accounting's pessimistic PLD, or the reason why there is none. It is an upper
            bound too, for delta >= 1e-8.
        renyi: the bound from Renyi DP.
    """

    interval: Interval
    reason: str
    second_opinion: float | Unavailable
    renyi: float


def evaluate(mechanism: SampledGaussian, delta: float) -> Answer:
    """Bracket epsilon, by the first of these that is sound here:

    1. the closed form: no step at all, q = 1, or a single step;
    2. prv-accountant, when a grid of bounded size is fine enough and rounding cannot matter (see prv.py);
    3. dp_accounting's PLD, rounded up and down, where its rounding cannot matter;
    4. the Renyi bound above and one step's exact epsilon below.

    Raises:
        InputError: delta is not in (0, 1).
        PrivacyError: two accountants contradict each other; neither number may then be quoted.
    """
    if not 0 < delta < 1:
        raise InputError(f"delta must be in (0, 1), got {delta!r}")
    if mechanism.steps == 0:
        return Answer(Interval(0.0, 0.0, 0.0, "closed form"), "no step was run, so nothing was spent", 0.0, 0.0)
    renyi = rdp.rdp_epsilon(mechanism, delta)
    second = pld.pld_epsilon(mechanism, delta, scale=renyi)
    scale = renyi if isinstance(second, Unavailable) else min(renyi, second)
    interval, reason = _choose(mechanism, delta, renyi, second, scale)
    others = [renyi, second] if not isinstance(second, Unavailable) and pld.is_bound(mechanism, delta) else [renyi]
    for other in others:
        if other < interval.lower * (1 - SLACK) - SLACK:
            raise PrivacyError(
                f"two accountants contradict each other on {mechanism} at delta {delta!r}: {interval.engine} says at "
                f"least {interval.lower!r}, another at most {other!r}. Please report this; no epsilon is quoted."
            )
    return Answer(interval, reason, second, renyi)


def exact_interval(mechanism: SampledGaussian, delta: float) -> tuple[Interval, str] | None:
    """The closed form, where there is one, with the reason."""
    q, sigma, steps = mechanism.sampling_rate, mechanism.noise_multiplier, mechanism.steps
    if q == 1:
        mu = math.sqrt(steps) / sigma
        found = solve_epsilon(lambda epsilon: gaussian_log_delta(epsilon, mu), delta)
        return Interval(*found, "closed form"), "every example is in every batch, so the steps compose to one Gaussian"
    if steps == 1:
        found = solve_epsilon(lambda epsilon: single_step_log_delta(epsilon, q, sigma), delta)
        return Interval(*found, "closed form"), "a single step has a closed form"
    return None


def _choose(
    mechanism: SampledGaussian, delta: float, renyi: float, second: float | Unavailable, scale: float
) -> tuple[Interval, str]:
    exact = exact_interval(mechanism, delta)
    if exact is not None:
        return exact
    found = prv.prv_interval(mechanism, delta, scale=scale)
    if isinstance(found, Interval):
        return _capped(found, renyi), "composition of subsampled steps"
    one = exact_interval(mechanism.through(1), delta)
    assert one is not None
    floor = one[0].lower  # publishing less cannot cost more
    if not isinstance(second, Unavailable) and pld.is_bound(mechanism, delta):
        below = pld.pld_epsilon(mechanism, delta, scale=scale, pessimistic=False)
        lower = floor if isinstance(below, Unavailable) else max(floor, below)
        upper = min(second, renyi)
        if lower <= upper:
            interval = Interval(lower, upper, upper, pld.engine(), "the estimate is the upper bound")
            return interval, f"{found.engine}: {found.reason}"
    upper = renyi
    estimate = upper if isinstance(second, Unavailable) else min(max(second, floor), upper)
    note = "the lower bound is that of one step" + (
        "" if isinstance(second, Unavailable) else f"; the estimate is {pld.engine()}, which is no bound at this delta"
    )
    return Interval(floor, estimate, upper, rdp.ENGINE, note), f"{found.engine}: {found.reason}"


def _capped(interval: Interval, renyi: float) -> Interval:
    """The interval with its upper end lowered to another upper bound."""
    if renyi >= interval.upper or renyi < interval.lower:
        return interval
    note = f"{interval.note}; the upper end is the Renyi bound"
    return Interval(interval.lower, min(interval.estimate, renyi), renyi, interval.engine, note)
