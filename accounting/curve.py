"""delta as a function of epsilon, with bounds: the whole privacy profile of a plan."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from samelaw.accounting.closed_forms import gaussian_log_delta, single_step_log_delta
from samelaw.accounting.composition import Plan
from samelaw.accounting.contour import Composition
from samelaw.accounting.interval import Unavailable
from samelaw.contract.errors import InputError

SLACK = 1e-9
"""Relative widening of a closed form, beside its rounding."""
ROUNDING = 2.0**-47
"""What 64 roundings may do to a logarithm, for each unit of its size."""
SMALLEST = 1e-300
"""An upper bound on delta is never shown below this: it is not zero."""


class DeltaAtEpsilon(NamedTuple):
    """delta at one epsilon; the larger of the directions, bound by bound."""

    epsilon: float
    lower: float
    estimate: float
    upper: float
    engine: str


def privacy_curve(plan: Plan, *, largest_epsilon: float, points: int = 21) -> list[DeltaAtEpsilon]:
    """Points from epsilon 0 to `largest_epsilon`, evenly spaced.

    Where the contour integral takes too much work, `upper` is the bound from moments and `lower` is 0.
    """
    if not (math.isfinite(largest_epsilon) and largest_epsilon > 0):
        raise InputError(f"largest epsilon of the curve must be finite and > 0, got {largest_epsilon!r}")
    if not 2 <= points <= 10_000:
        raise InputError(f"points of the curve must be in 2..10000, got {points}")
    return [delta_at(plan, float(epsilon)) for epsilon in np.linspace(0, largest_epsilon, points)]


def delta_at(plan: Plan, epsilon: float) -> DeltaAtEpsilon:
    """delta of a plan at epsilon >= 0."""
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise InputError(f"epsilon must be finite and >= 0, got {epsilon!r}")
    cut = sum(plan.assumptions.truncation(phase) for phase in plan.phases)
    directions = [parts for parts in plan.directions() if parts]
    if not directions:
        return DeltaAtEpsilon(epsilon, 0.0, 0.0, 0.0, "closed form")
    exact = _closed(plan, epsilon)
    if exact is not None:
        return DeltaAtEpsilon(epsilon, *exact, "closed form")
    lower = estimate = upper = 0.0
    engine = "contour"
    for parts in directions:
        composition = Composition(parts)
        found = composition.delta(epsilon)
        if isinstance(found, Unavailable):
            engine = "moments"
            bound = max(composition.chernoff_delta(epsilon), SMALLEST)
            found = (0.0, bound, bound)
        lower, estimate, upper = max(lower, found[0]), max(estimate, found[1]), max(upper, found[2])
    lost = (1 + math.exp(min(700.0, epsilon))) * cut
    return DeltaAtEpsilon(
        epsilon, max(0.0, lower - lost), min(1.0, estimate + lost), min(1.0, max(upper, SMALLEST) + lost), engine
    )


def _closed(plan: Plan, epsilon: float) -> tuple[float, float, float] | None:
    """(lower, estimate, upper) of the closed form."""
    if not plan.simple or plan.phases[0].steps == 0:
        return None
    phase = plan.phases[0]
    q, sigma = phase.sampling_rate, phase.noise_multiplier
    if q == 1:
        mu = math.sqrt(phase.steps) / sigma
        log_delta, shift = gaussian_log_delta(epsilon, mu), mu
    elif phase.steps == 1:
        log_delta, shift = single_step_log_delta(epsilon, q, sigma), 1 / sigma
    else:
        return None
    exact = math.exp(log_delta)
    # delta is a difference of two probabilities, each at most the normal tail beyond the place where they meet, and
    # that is at most delta / shift or so: what cancels is in proportion to 1 / shift.
    size = 1 + epsilon + abs(math.log(q)) + (abs(log_delta) if math.isfinite(log_delta) else 750.0)
    slack = SLACK + ROUNDING * size * (1 + size / shift)
    return max(0.0, exact * (1 - slack)), exact, min(1.0, max(SMALLEST, exact * (1 + slack)))
