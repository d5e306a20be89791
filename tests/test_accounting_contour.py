"""The contour integral brackets the truth wherever it answers, and the other accountants agree with it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from samelaw.accounting import contour, pld, prv, rdp
from samelaw.accounting.closed_forms import gaussian_log_delta, single_step_log_delta, solve_epsilon
from samelaw.accounting.composition import Plan
from samelaw.accounting.contour import Composition, Parts, contour_interval
from samelaw.accounting.curve import delta_at
from samelaw.accounting.engines import evaluate, opinions
from samelaw.accounting.interval import Interval, Unavailable
from samelaw.accounting.mechanism import SampledGaussian
from samelaw.accounting.moments import Moments
from samelaw.accounting.pairs import (
    GaussianPair,
    GuaranteePair,
    MixturePair,
    fixed_size,
    poisson_add_remove,
    poisson_replace_one,
)


def directions(q: float, sigma: float, steps: int) -> list[Parts]:
    return [[(pair, steps)] for pair in poisson_add_remove(q, sigma)]


# ------------------------------------------------------------------------------------------------------- the moments


def density(weights: tuple[float, ...], means: tuple[float, ...], sigma: float, x: Any) -> Any:
    scale = mpmath.mpf(sigma)
    shares = [mpmath.mpf(w) for w in weights]
    shares[0] = 1 - sum(shares[1:])  # what is left, exactly
    return sum(
        w * mpmath.exp(-(((x - mpmath.mpf(m)) / scale) ** 2) / 2) for w, m in zip(shares, means, strict=True)
    ) / (scale * mpmath.sqrt(2 * mpmath.pi))


def moment_minus_one(pair: MixturePair, s: complex) -> Any:
    """M(s) - 1 in 40 digits by the trapezoid rule, or by Gauss-Legendre where the pair's loss has a kink."""
    z = mpmath.mpc(s)

    def of(x: Any) -> Any:
        p = density(pair.upper.weights, pair.upper.means, pair.sigma, x)
        q = density(pair.lower.weights, pair.lower.means, pair.sigma, x)
        loss = mpmath.log(p / q)
        if not pair.symmetric:
            return p * mpmath.expm1(z * loss)
        return p * mpmath.expm1(z * loss) + q * mpmath.expm1(-z * loss)

    if pair.symmetric:
        turn = mpmath.mpf(pair.upper.reach) / 2
        return mpmath.quad(of, [turn + k * mpmath.mpf(pair.sigma) for k in range(0, 25, 2)])
    # A step of a twelfth of min(sigma, sigma^2) is exact to 40 digits at these s.
    h = mpmath.mpf(min(pair.sigma, pair.sigma**2)) / 12
    reach = 15 * pair.sigma + (abs(s) + 1) * max(pair.upper.reach, pair.lower.reach)
    count = int(reach / float(h))
    return h * mpmath.fsum(of(k * h) for k in range(-count, count + 1))


PAIRS: list[MixturePair] = [
    pair
    for pair in (
        *poisson_add_remove(0.01, 1.0),
        poisson_add_remove(1e-6, 0.8)[0],
        poisson_add_remove(0.2, 1.5, group=3)[1],
        poisson_replace_one(0.05, 0.9)[0],
        fixed_size(0.03, 1.2, symmetric=True)[0],
    )
    if isinstance(pair, MixturePair)
]


@pytest.mark.parametrize("pair", PAIRS)
def test_the_moments_are_within_their_error_of_forty_digits(pair: MixturePair):
    with mpmath.workdps(40):
        moments = Moments(pair, 2.5)
        values, errors = moments.along(4.0, 3, -50.0)
        for k in (0, 2):
            truth = moment_minus_one(pair, complex(2.5, 4.0 * k))
            off = float(abs(mpmath.mpc(complex(values[k])) - truth))
            assert off <= errors[k]
            assert errors[k] <= 1e-10 * max(float(abs(truth)), 1e-8)
        truth = moment_minus_one(pair, complex(2.5))
        value, error = moments.excess()
        assert abs(value - float(truth.real)) <= error + 1e-16 * abs(value)


@pytest.mark.parametrize("pair", PAIRS)
def test_no_moment_is_above_the_bound_that_ends_the_line(pair: MixturePair):
    moments = Moments(pair, 2.0)
    values, _ = moments.along(0.7, 600, -40.0)
    modulus = np.log(np.abs(1 + values))
    for k in (1, 5, 40, 200):
        bound = moments.log_modulus_beyond(0.7 * k)
        assert modulus[k:].max() <= bound + 1e-9


def test_moments_that_do_not_fit_are_refused_before_anything_is_allocated():
    found = Composition([(poisson_add_remove(0.01, 1e-3)[0], 10)]).epsilon(1e-5)
    assert isinstance(found, Unavailable)
    assert found.reason


# ------------------------------------------------------------------------------------------------------- closed forms


@settings(max_examples=10, deadline=None)
@given(mu=st.floats(0.05, 12), log_delta=st.floats(-300, -0.5), steps=st.integers(1, 10**6))
def test_full_batches_have_the_closed_form(mu: float, log_delta: float, steps: int):
    """Also for delta down to 1e-130: the error of the integral is relative to delta."""
    delta = math.exp(log_delta)
    lower, estimate, upper = solve_epsilon(lambda e: gaussian_log_delta(e, mu), delta)
    found = contour_interval([[(GaussianPair(mu / math.sqrt(steps)), steps)]], delta)
    assert isinstance(found, Interval)
    assert found.lower <= upper
    assert found.upper >= lower
    assert found.upper - found.lower <= 1e-5 * max(estimate, 1e-2)


@pytest.mark.parametrize("removal", [True, False])
@pytest.mark.parametrize(
    ("q", "sigma", "epsilon"),
    [
        (0.3, 0.8, 0.2),
        pytest.param(0.9, 2.0, 0.5, marks=pytest.mark.slow),
        pytest.param(0.05, 1.5, 0.02, marks=pytest.mark.slow),
    ],
)
def test_a_single_step_is_bracketed_where_its_line_is_short_enough(
    q: float, sigma: float, epsilon: float, removal: bool
):
    pair = poisson_add_remove(q, sigma)[0 if removal else 1]
    found = Composition([(pair, 1)]).delta(epsilon)
    if isinstance(found, Unavailable):
        # One addition takes too long a line at these points; removal must always have an answer.
        assert not removal, found.reason
        pytest.skip(found.reason)
    x = np.linspace(-12 * sigma, 1 + 12 * sigma, 400_001)
    absent = stats.norm.pdf(x, 0, sigma)
    present = (1 - q) * absent + q * stats.norm.pdf(x, 1, sigma)
    first, second = (present, absent) if removal else (absent, present)
    truth = float(np.maximum(0, first - math.exp(epsilon) * second).sum() * (x[1] - x[0]))
    assert found[0] <= truth * (1 + 1e-7) + 1e-12
    assert found[2] >= truth * (1 - 1e-7) - 1e-12


def test_a_guarantee_alone_costs_what_it_says():
    """Randomised response at epsilon 1: delta(eps) = (e - e^eps) / (1 + e); its line does not end, so by moments."""
    composition = Composition([(GuaranteePair(1.0, 1e-6), 3)])
    assert composition.certain == pytest.approx(3e-6, rel=1e-5)
    bound, _ = composition.chernoff(1e-5)
    assert 2.9 <= bound <= 3.01
    alone = Composition([(GuaranteePair(1.0, 0.0), 1)])
    for epsilon in (0.0, 0.5, 0.9):
        exact = (math.e - math.exp(epsilon)) / (1 + math.e)
        assert alone.chernoff_delta(epsilon) >= exact


# ------------------------------------------------------------------------------------------------------ long doubles


def long_double_delta(q: float, sigma: float, steps: int, epsilon: float, c: float, width: float) -> float:
    """The same integral for removal, plainly, in 64-bit mantissas: nothing but sums."""
    real = np.longdouble
    spacing = real(sigma) / 80
    x = np.arange(-10 * sigma, c + 1 + 10 * sigma, float(spacing)).astype(real)
    base = spacing * np.exp(-x * x / (2 * real(sigma) ** 2)) / (sigma * np.sqrt(2 * real(np.pi)))
    loss = np.log1p(real(q) * np.expm1((2 * x - 1) / (2 * real(sigma) ** 2)))
    tilted = base * np.exp((c + 1) * loss)
    kept = tilted > 1e-35 * tilted.max()
    loss, base, tilted = loss[kept], base[kept], tilted[kept]
    at_rest = np.sum(base * np.expm1((real(c) + 1) * loss))
    h, total, first = 2 * np.pi / width, real(0), real(0)
    for start in range(0, 400_000, 200):
        s = c + 1j * (h * np.arange(start, start + 200)).astype(real)
        excess = at_rest + np.expm1(1j * np.outer(s.imag, loss)) @ tilted
        values = np.exp(steps * np.log1p(excess) - s * real(epsilon)) / (s * (s + 1))
        first = values[0].real if start == 0 else first
        total += values.real.sum()
        if abs(values[-1]) < 1e-18 * abs(first):
            break
    return float(h / np.pi * (total - first / 2))


LONG = [  # q, sigma, steps, epsilon, c, width
    pytest.param(1.4996796338672769e-05, 0.5, 66_681, 3.2095035, 3.0, 18.0, marks=pytest.mark.slow),
    (1e-6, 1.0, 10**6, 0.0065, 12.0, 4.0),
    pytest.param(0.01, 1.0, 10_000, 10.3466898, 4.0, 12.0, marks=pytest.mark.slow),
    (0.2, 0.9, 40, 9.0, 2.0, 90.0),
]


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long doubles are doubles here")
@pytest.mark.parametrize(("q", "sigma", "steps", "epsilon", "c", "width"), LONG)
def test_long_doubles_agree(q: float, sigma: float, steps: int, epsilon: float, c: float, width: float):
    """numpy's complex log1p, naive about the real part, cost 1e-10 of the integrand in doubles: the second point hunts
    that bug."""
    truth = long_double_delta(q, sigma, steps, epsilon, c, width)
    found = Composition([(poisson_add_remove(q, sigma)[0], steps)]).delta(epsilon)
    assert not isinstance(found, Unavailable)
    # At the second point the long doubles themselves cancel: 1e-19 * 1e6 steps of 5e-3, against 1e-10.
    slack = 2e-6 * truth
    assert found[0] <= truth + slack
    assert found[2] >= truth - slack
    assert found[2] - found[0] <= 1e-3 * truth


# ------------------------------------------------------------------------------------------- lines check one another


@settings(max_examples=8, deadline=None)
@given(
    q=st.floats(1e-5, 0.8),
    sigma=st.floats(0.6, 8),
    steps=st.integers(60, 10**6),
    log_delta=st.floats(math.log(1e-13), math.log(1e-2)),
    removal=st.booleans(),
)
def test_two_lines_never_contradict_each_other(q: float, sigma: float, steps: int, log_delta: float, removal: bool):
    """The integral is the same on every line Re s = c, and its errors are not: brackets of delta must overlap."""
    delta = math.exp(log_delta)
    composition = Composition([(poisson_add_remove(q, sigma)[0 if removal else 1], steps)])
    found = composition.epsilon(delta)
    if isinstance(found, Unavailable) or found.estimate < 1e-6:
        return
    at = found.estimate
    brackets: list[tuple[float, float, float]] = []
    for guess in (at, 1.2 * at, 0.8 * at):
        try:
            brackets.append(composition.line(guess, delta, 1e-9).delta(at))
        except ArithmeticError:
            continue
    for one, other in itertools.combinations(brackets, 2):
        assert one[0] <= other[2]
    assert found.upper <= composition.chernoff(delta)[0] * (1 + 1e-9) + 1e-9
    assert found.upper <= rdp.rdp_epsilon(SampledGaussian(q, sigma, steps), delta) * (1 + 1e-6) + 1e-9


# ---------------------------------------------------------------------------------------------------------- the traps

TRAPS = [  # what is known to break other accountants, and what is true
    ((1.0, 0.3, 1000, 1e-5), 6004.1342),
    ((1e-6, 1.0, 10**6, 1e-10), 0.006502),
    ((0.001, 1.0, 10**6, 1e-14), 10.63175),
    ((0.01, 1.0, 10**4, 1e-14), 11.303559),
    ((0.2, 0.3, 10, 1e-3), 34.707697),
    ((0.01, 1.0, 10**4, 1e-12), 10.346690),
]


@pytest.mark.parametrize(("point", "truth"), TRAPS, ids=[str(p) for p, _ in TRAPS])
def test_where_other_accountants_break_an_answer_is_given_and_tight(
    point: tuple[float, float, int, float], truth: float
):
    q, sigma, steps, delta = point
    found = evaluate(SampledGaussian(q, sigma, steps), delta).interval
    assert found.engine in ("contour", "closed form")
    assert found.lower <= truth * (1 + 1e-4)
    assert found.upper >= truth * (1 - 1e-4)
    assert found.upper - found.lower <= 1e-3 * truth


# ----------------------------------------------------------------------------------------------------------- the grid

GRID = [
    (q, sigma, steps, delta)
    for q in (1e-4, 0.01, 0.2, 0.9)
    for sigma in (0.5, 1.0, 3.0)
    for steps in (1, 30, 1000, 30_000)
    for delta in (1e-3, 1e-6, 1e-9, 1e-12, 1e-15)
]
SAMPLE = [GRID[i] for i in (71, 126)]


def check_point(q: float, sigma: float, steps: int, delta: float) -> None:
    """`upper` is at least every accountant's lower bound, and `lower` at most every accountant's upper bound."""
    mechanism = SampledGaussian(q, sigma, steps)
    answer = evaluate(mechanism, delta).interval
    asked = {o.engine: o.interval for o in opinions(mechanism, delta) if isinstance(o.interval, Interval)}
    for engine, other in asked.items():
        assert other.lower <= answer.upper * (1 + 1e-6) + 1e-9, (engine, other, answer)
        assert other.upper >= answer.lower * (1 - 1e-6) - 1e-9, (engine, other, answer)
    # Below 1e-10 rounding may widen the bracket where the integrand cancels (rare large losses): to 2 % at
    # (1e-4, 1, 30000, 1e-12). It stays a bracket.
    if answer.engine in ("contour", "closed form") and delta >= 1e-10:
        assert answer.upper - answer.lower <= 1e-3 * answer.upper + 1e-7
    # Two-sided: prv-accountant's estimate and PLD's pessimistic value are close where they are sound.
    grid = asked.get(prv.engine())
    if grid is not None and answer.upper > 0.05:
        assert grid.lower - 1e-9 <= answer.estimate <= grid.upper + 1e-9
        assert grid.estimate == pytest.approx(answer.estimate, rel=5e-3, abs=5e-3)
    dots = asked.get(pld.engine())
    if dots is not None and answer.upper > 0.05:
        assert answer.estimate * (1 - 1e-6) <= dots.upper <= answer.estimate * 1.02 + 1e-2


@pytest.mark.parametrize("point", SAMPLE, ids=[str(p) for p in SAMPLE])
def test_the_accountants_agree_on_a_sample_of_the_grid(point: tuple[float, float, int, float]):
    check_point(*point)


@pytest.mark.slow
@pytest.mark.parametrize("point", GRID, ids=[str(p) for p in GRID])
def test_the_accountants_agree_on_the_grid(point: tuple[float, float, int, float]):
    check_point(*point)


def test_the_single_step_closed_form_and_the_direction_rule():
    """Addition can cost more than removal only where neither does much; both are always asked."""
    q, sigma = 0.4, 3.0
    exact = optimize.brentq(lambda e: single_step_log_delta(e, q, sigma) - math.log(1e-3), 1e-6, 5)
    found = contour_interval(directions(q, sigma, 1), 1e-3)
    if isinstance(found, Interval):
        assert found.lower <= exact * (1 + 1e-6)
        assert found.upper >= exact * (1 - 1e-6)


def test_a_gaussian_with_a_tiny_shift_takes_no_long_line():
    """mu = 1e-9 needs orders far above those of mixtures; with less, the line had millions of points."""
    truth = solve_epsilon(lambda e: gaussian_log_delta(e, 1e-9), 1e-12)[1]
    line = Composition([(GaussianPair(1e-9), 1)]).line(truth, 1e-12, 1e-9)
    assert len(line.log_values) < 10_000
    found = Composition([(GaussianPair(1e-9), 1)]).epsilon(1e-12)
    assert isinstance(found, Interval)
    assert found.lower <= truth <= found.upper


@pytest.mark.parametrize(("q", "sigma"), [(1.0, 1e9), (1.0, 1e7), (0.3, 1e8), (1.0, 0.5), (1e-6, 3.0)])
def test_the_closed_form_of_the_curve_is_widened_by_what_cancels(q: float, sigma: float):
    """At a shift of 1e-9, delta is the difference of two probabilities that agree in nine digits."""
    with mpmath.workdps(60):
        for epsilon in (0.0, 0.25 * q / sigma, 1.5):
            grown, shift, share = mpmath.exp(epsilon), 1 / mpmath.mpf(sigma), mpmath.mpf(q)
            place = mpmath.log((grown - 1 + share) / share) / shift + shift / 2
            removal = share * mpmath.ncdf(shift - place) - (grown - 1 + share) * mpmath.ncdf(-place)
            found = delta_at(Plan((SampledGaussian(q, sigma, 1),)), epsilon)
            assert found.lower <= removal * (1 + mpmath.mpf(10) ** -40)
            assert found.upper >= removal
            if removal > 1e-200:
                assert found.upper - found.lower <= 0.05 * removal


def test_no_upper_end_of_the_curve_is_zero():
    for steps in (1, 40):
        assert delta_at(Plan((SampledGaussian(0.2, 3.0, steps),)), 4000.0).upper > 0


def test_lines_that_contradict_are_an_error(monkeypatch: pytest.MonkeyPatch):
    """A fault in one of two lines must not become a number."""
    from samelaw.contract.errors import PrivacyError

    original = Composition.line
    calls = itertools.count()

    def skewed(self: Composition, epsilon: float, delta: float, tolerance: float) -> contour.Line:
        line = original(self, epsilon, delta, tolerance)
        if next(calls) == 1:
            object.__setattr__(line, "log_values", line.log_values + 0.1)
        return line

    monkeypatch.setattr(Composition, "line", skewed)
    with pytest.raises(PrivacyError, match="contradict"):
        Composition([(poisson_add_remove(1e-6, 1.0)[0], 10**6)]).epsilon(1e-10)
