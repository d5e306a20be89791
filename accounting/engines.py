"""Which accountant answers: a sound one for the parameters, with the reason, and a second one beside it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from samelaw.accounting import pld, prv, rdp
from samelaw.accounting.closed_forms import gaussian_log_delta, single_step_log_delta, solve_epsilon
from samelaw.accounting.contour import contour_interval
from samelaw.accounting.interval import Interval, Unavailable
from samelaw.accounting.mechanism import SampledGaussian
from samelaw.accounting.pairs import poisson_add_remove
from samelaw.contract.errors import InputError, PrivacyError

SLACK = 1e-6
"""Relative difference below which two accountants do not contradict each other: their own float64 rounding."""


@dataclass(frozen=True)
class Answer:
    """Epsilon of a mechanism at one delta.

    Attributes:
        interval: the bracket that is quoted.
        reason: why this engine, in a sentence.
        second_opinion: epsilon by dp_accounting's pessimistic PLD, an upper bound too; or the reason why there is
            none, as where its rounding could make it less than a bound.
        renyi: the bound from Renyi DP.
    """

    interval: Interval
    reason: str
    second_opinion: float | Unavailable
    renyi: float


def evaluate(mechanism: SampledGaussian, delta: float) -> Answer:
    """Bracket epsilon, by the first of these that is sound here:

    1. the closed form: no step at all, q = 1, or a single step;
    2. the contour integral, where it takes a bounded number of points (see contour.py);
    3. prv-accountant, when a grid of bounded size is fine enough and rounding cannot matter (see prv.py);
    4. dp_accounting's PLD, rounded up and down, where its rounding cannot matter;
    5. the Renyi bound above and one step's exact epsilon below.

    Raises:
        InputError: delta is not in (0, 1).
        PrivacyError: two accountants contradict each other; neither number may then be quoted.
    """
    if not 0 < delta < 1:
        raise InputError(f"delta must be in (0, 1), got {delta!r}")
    if mechanism.steps == 0:
        return Answer(Interval(0.0, 0.0, 0.0, "closed form"), "no step was run, so nothing was spent", 0.0, 0.0)
    renyi = rdp.rdp_epsilon(mechanism, delta)
    second = pld.pld_epsilon(mechanism, delta, scale=renyi) if pld.is_bound(mechanism, delta) else _no_bound(delta)
    scale = renyi if isinstance(second, Unavailable) else min(renyi, second)
    interval, reason = _choose(mechanism, delta, renyi, second, scale)
    others = [renyi] if isinstance(second, Unavailable) else [renyi, second]
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
    pairs = poisson_add_remove(mechanism.sampling_rate, mechanism.noise_multiplier)
    inverted = contour_interval([[(pair, mechanism.steps)] for pair in pairs], delta)
    if isinstance(inverted, Interval):
        return inverted, "composition of subsampled steps; every error of the integral is bounded"
    found = prv.prv_interval(mechanism, delta, scale=scale)
    if isinstance(found, Interval):
        return _capped(found, renyi), f"{inverted.engine}: {inverted.reason}"
    one = exact_interval(mechanism.through(1), delta)
    assert one is not None
    floor = one[0].lower  # publishing less cannot cost more
    if not isinstance(second, Unavailable):
        below = pld.pld_epsilon(mechanism, delta, scale=scale, pessimistic=False)
        lower = floor if isinstance(below, Unavailable) else max(floor, below)
        upper = min(second, renyi)
        if lower <= upper:
            interval = Interval(lower, upper, upper, pld.engine(), "the estimate is the upper bound")
            return interval, f"{found.engine}: {found.reason}"
    return Interval(floor, renyi, renyi, rdp.ENGINE, "the lower bound is that of one step"), (
        f"{inverted.engine}: {inverted.reason}; {found.engine}: {found.reason}"
    )


@dataclass(frozen=True)
class Opinion:
    """What one accountant says, whether that is a bound, and what it took."""

    engine: str
    interval: Interval | Unavailable
    seconds: float


def opinions(mechanism: SampledGaussian, delta: float) -> list[Opinion]:
    """Every accountant on one mechanism: closed form, contour, prv-accountant, PLD and RDP.

    PLD's interval runs from its optimistic to its pessimistic value; where it is no bound, its reason says so, with the
    number.
    """
    if not 0 < delta < 1:
        raise InputError(f"delta must be in (0, 1), got {delta!r}")
    renyi = rdp.rdp_epsilon(mechanism, delta)
    whole = mechanism.steps >= 1 and mechanism.sampling_rate < 1
    pairs = poisson_add_remove(mechanism.sampling_rate, mechanism.noise_multiplier)

    def closed() -> Interval | Unavailable:
        found = exact_interval(mechanism, delta)
        return found[0] if found else Unavailable("closed form", "only for q = 1, or a single step")

    def inverted() -> Interval | Unavailable:
        return contour_interval([[(pair, mechanism.steps)] for pair in pairs], delta)

    def prv_grid() -> Interval | Unavailable:
        if not whole:
            return Unavailable(prv.engine(), "it is not used for full batches")
        return prv.prv_interval(mechanism, delta, scale=renyi)

    def loss_distribution() -> Interval | Unavailable:
        upper = pld.pld_epsilon(mechanism, delta, scale=renyi)
        if isinstance(upper, Unavailable):
            return upper
        if not pld.is_bound(mechanism, delta):
            return Unavailable(pld.engine(), f"it says {upper:.6g}, which is no bound: {_no_bound(delta).reason}")
        lower = pld.pld_epsilon(mechanism, delta, scale=renyi, pessimistic=False)
        low = 0.0 if isinstance(lower, Unavailable) else min(lower, upper)
        return Interval(low, upper, upper, pld.engine(), "the estimate is the upper bound")

    if mechanism.steps == 0:
        return [Opinion("closed form", Interval(0.0, 0.0, 0.0, "closed form"), 0.0)]
    found: list[Opinion] = []
    for ask in (closed, inverted, prv_grid, loss_distribution, lambda: rdp.rdp_interval(mechanism, delta)):
        start = time.perf_counter()
        said = ask()
        found.append(Opinion(said.engine, said, time.perf_counter() - start))
    _agree(mechanism, delta, [o.interval for o in found if isinstance(o.interval, Interval)])
    return found


def _agree(mechanism: SampledGaussian, delta: float, intervals: list[Interval]) -> None:
    """Raises PrivacyError unless the intervals overlap, up to rounding."""
    low, high = max(intervals, key=lambda i: i.lower), min(intervals, key=lambda i: i.upper)
    if high.upper < low.lower * (1 - SLACK) - SLACK:
        raise PrivacyError(
            f"two accountants contradict each other on {mechanism} at delta {delta!r}: {low.engine} says at least "
            f"{low.lower!r}, {high.engine} at most {high.upper!r}. Please report this; no epsilon is quoted."
        )


def _no_bound(delta: float) -> Unavailable:
    return Unavailable(pld.engine(), f"rounding in its float64 transforms could matter at delta {delta:g}")


def _capped(interval: Interval, renyi: float) -> Interval:
    """The interval with its upper end lowered to another upper bound."""
    if renyi >= interval.upper or renyi < interval.lower:
        return interval
    note = f"{interval.note}; the upper end is the Renyi bound"
    return Interval(interval.lower, min(interval.estimate, renyi), renyi, interval.engine, note)
