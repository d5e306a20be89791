"""Exact delta and epsilon where the integral has a closed form: full batches (q = 1), and a single step.

Probabilities are taken in logarithms, and every epsilon is rounded outwards by more than the error of the functions
used, so `lower` and `upper` bracket the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy import special

SLACK = 1e-9
"""Relative and absolute widening of a solved epsilon: scipy's log_ndtr is good to about 1e-14."""


def gaussian_log_delta(epsilon: float, mu: float) -> float:
    """ln delta of the Gaussian mechanism with sensitivity mu in units of its std.

    delta = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu).

    Source: Balle and Wang, arXiv 1805.06530, Theorem 8.
    """
    return _log_difference(
        float(special.log_ndtr(mu / 2 - epsilon / mu)), epsilon + float(special.log_ndtr(-mu / 2 - epsilon / mu))
    )


def single_step_log_delta(epsilon: float, sampling_rate: float, noise_multiplier: float) -> float:
    """ln delta of one step of the Poisson-subsampled Gaussian, for removal and addition, whichever is larger.

    With P = (1-q) N(0, sigma^2) + q N(1, sigma^2) and Q = N(0, sigma^2): removal is the hockey-stick divergence of P
    from Q, addition of Q from P. Both events are half-lines, since the likelihood ratio is monotone.
    """
    q, sigma = sampling_rate, noise_multiplier
    # Removal: P - e^eps Q = q N(1) - (e^eps - 1 + q) N(0), positive above x.
    excess = math.log(q) + math.log1p(math.expm1(epsilon) / q) if epsilon < 700 else epsilon
    x = sigma**2 * (excess - math.log(q)) + 0.5
    removal = _log_difference(
        math.log(q) + float(special.log_ndtr((1 - x) / sigma)), excess + float(special.log_ndtr(-x / sigma))
    )
    # Addition: Q - e^eps P = (1 - e^eps (1-q)) N(0) - e^eps q N(1), positive below x if the first factor is.
    exponent = epsilon + math.log1p(-q) if q < 1 else -math.inf
    if exponent >= 0:
        return removal
    left = -math.expm1(exponent)
    x = sigma**2 * (math.log(left) - epsilon - math.log(q)) + 0.5
    addition = _log_difference(
        math.log(left) + float(special.log_ndtr(x / sigma)),
        epsilon + math.log(q) + float(special.log_ndtr((x - 1) / sigma)),
    )
    return max(removal, addition)


def solve_epsilon(log_delta: Callable[[float], float], delta: float) -> tuple[float, float, float]:
    """(lower, estimate, upper) for the epsilon >= 0 at which a decreasing ln delta(epsilon) reaches ln delta."""
    target = math.log(delta)
    if log_delta(0.0) <= target:
        return 0.0, 0.0, 0.0
    low, high = 0.0, 1.0
    while log_delta(high) > target:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if log_delta(middle) > target else (low, middle)
    margin = SLACK * (1 + high)
    return max(0.0, low - margin), (low + high) / 2, high + margin


def _log_difference(a: float, b: float) -> float:
    """ln(e^a - e^b), -inf when that is not positive."""
    return a + math.log(-math.expm1(b - a)) if b < a else -math.inf
