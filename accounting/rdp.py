"""Renyi DP of the sampled Gaussian at integer orders: a bound that cannot fail, only be loose."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import special

from samelaw.accounting.interval import Interval
from samelaw.accounting.mechanism import SampledGaussian

ENGINE = "RDP"
ORDERS = np.unique(np.concatenate([np.arange(2, 65), np.rint(np.geomspace(65, 1 << 14, 80))]).astype(np.int64))


@lru_cache(maxsize=256)
def _log_moments(sampling_rate: float, noise_multiplier: float) -> tuple[float, ...]:
    """ln A_a at ORDERS; (a - 1) times the Renyi divergence of one step, of removal from addition's side and conversely.

    A_a = sum over k of C(a, k) (1-q)^(a-k) q^k exp((k^2 - k) / (2 sigma^2)). The terms k = 0 and 1 have exponent 0 and
    the weights sum to 1, so A_a - 1 is the sum over k >= 2 with exp - 1: nothing cancels, however small q is.

    Source: Mironov, Talwar and Zhang, arXiv 1908.10530, sections 3.3 (integer orders) and 3.1 (which direction is
        worse).
    """
    q, sigma = sampling_rate, noise_multiplier
    found: list[float] = []
    for order in ORDERS:
        k = np.arange(2, order + 1, dtype=np.float64)
        exponent = (k * k - k) / (2 * sigma**2)
        log_expm1 = np.where(exponent > 30, exponent, np.log(np.expm1(np.minimum(exponent, 30))))
        choose = special.gammaln(order + 1) - special.gammaln(k + 1) - special.gammaln(order - k + 1)
        rest = (order - k) * math.log1p(-q) if q < 1 else np.where(k == order, 0.0, -np.inf)
        log_excess = _log_sum(choose + k * math.log(q) + rest + log_expm1)
        # 1e-9 covers gammaln's rounding: about 1e-14 of values up to 1.6e5, so a relative 2e-9 of a term at most.
        found.append(float(np.logaddexp(0.0, log_excess + 4e-9)) if log_excess > -30 else math.exp(log_excess + 4e-9))
    return tuple(found)


def rdp_epsilon(mechanism: SampledGaussian, delta: float) -> float:
    """An upper bound on epsilon at delta, for removal and addition.

    Source: Canonne, Kamath and Steinke, arXiv 2004.00010, proposition 12: epsilon = R + ln((a-1)/a) - (ln delta + ln
        a)/(a-1).
    """
    if mechanism.steps == 0:
        return 0.0
    a = ORDERS.astype(np.float64)
    moments = np.array(_log_moments(mechanism.sampling_rate, mechanism.noise_multiplier))
    renyi = mechanism.steps * moments / (a - 1)
    epsilon = renyi + np.log1p(-1 / a) - (math.log(delta) + np.log(a)) / (a - 1)
    return max(0.0, float(np.min(epsilon)))


def rdp_interval(mechanism: SampledGaussian, delta: float) -> Interval:
    """The bound with nothing below it but zero."""
    upper = rdp_epsilon(mechanism, delta)
    return Interval(0.0, upper, upper, ENGINE, "an upper bound alone; the estimate is that bound")


def reach(mechanism: SampledGaussian, mass: float) -> float:
    """L such that the loss of one step and that of all of them lie beyond -L..L with probability at most `mass` each.

    P(loss > eps + c) <= delta(eps) / (1 - e^-c), and the losses of addition under the other law have the tail of
    removal's
    lower end: P(loss < -L) <= e^-L P'(loss' > L) <= P'(loss' > L).

    Source: Gopi, Lee and Wutschitz, arXiv 2106.02848, remark 5.6, with c free instead of 3.
    """
    one = mechanism.through(1)
    return min(
        max(rdp_epsilon(m, -mass * math.expm1(-c)) for m in (mechanism, one)) + c
        for c in (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    )


def _log_sum(terms: np.ndarray) -> float:
    largest = float(terms.max())
    return largest + math.log(float(np.exp(terms - largest).sum()))
