"""The reference accountant: epsilon and delta by inverting the moment generating function of the privacy loss.

delta(eps) = (1/2 pi i) * integral over Re s = c of exp(K(s) - s eps) / (s (s+1)) ds, K the sum of every step's
ln M (moments.py), for any c > 0 at which it is finite. It shares no code with the other engines, and needs no grid of
losses: a million steps cost what one does.

Every error is bounded, so the bracket is one:

- the trapezoid rule along the line with spacing 2 pi / W is off by sums of delta(eps + mW) exp(cmW) and
  delta(eps - mW) exp(-cmW), m >= 1 (Poisson summation), which are never negative and at most what Chernoff says;
- the line ends where |M| is bounded beyond (integration by parts);
- the moments have bounds of their own, and rounding is counted, operation by operation.

Source: the integral is that of a hockey-stick payoff, as in Fourier pricing; for privacy losses see Zhu, Dong and Wang,
    arXiv 2106.08567. The error bounds are derived in docs/accounting.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from samelaw.accounting.interval import Interval, Unavailable
from samelaw.accounting.moments import UNIT, Moments, TooMuchWork, excess
from samelaw.accounting.pairs import GaussianPair, GuaranteePair, Pair
from samelaw.contract.errors import PrivacyError

ENGINE = "contour"
TOLERANCES = (1e-9, 1e-4)
"""Relative errors of delta that are aimed at, in turn: the next where one takes too much work."""
GUESSES = (1.0, 0.2, 0.01)
"""Shares of Chernoff's epsilon at which the first line is planned."""
LARGEST_LINE = 1 << 22
WIDENING = 1e-11
"""Relative widening of a solved epsilon: the last roundings of the solver and of the pairs' weights."""
ORDERS = tuple(float(c) for c in np.geomspace(1e-5, 2e4, 93))
GAUSSIAN_ORDERS = tuple(float(c) for c in np.geomspace(1e-5, 2e12, 172))
"""A Gaussian's moments are closed forms, and where its mu is tiny only large orders say something."""

Parts = Sequence[tuple[Pair, int]]
"""Pairs with how often each is composed."""


@dataclass(frozen=True)
class Line:
    """The integrand on half of the line Re s = c, ready for any epsilon near the one it was planned for.

    Attributes:
        c, spacing: the nodes are c + ik spacing, k = 0, 1, ...
        log_values: ln of the integrand there, without its factor exp(-s eps).
        growth: the modulus may be off by itself times exp(growth) - 1.
        log_tail: ln of what is beyond the line, without exp(-c eps).
        log_alias_below, alias_above: ln of the sum of the aliases below epsilon; and ln of that of those above at
            epsilon 0, with the rate at which it falls.
    """

    c: float
    spacing: float
    log_values: np.ndarray
    growth: np.ndarray
    log_tail: float
    log_alias_below: float
    alias_above: tuple[float, float]

    def delta(self, epsilon: float) -> tuple[float, float, float]:
        """(lower, estimate, upper) of the delta of the finite losses at epsilon."""
        y = self.spacing * np.arange(len(self.log_values))
        log_modulus = np.real(self.log_values) - self.c * epsilon
        if float(log_modulus.max()) > 600:  # far below the epsilon that the line is for
            return 0.0, 1.0, math.inf
        modulus = np.exp(log_modulus)
        value = modulus * np.cos(np.imag(self.log_values) - y * epsilon)
        estimate = self.spacing / math.pi * (math.fsum(value) - float(value[0]) / 2)
        phase = 4 * UNIT * (y * abs(epsilon) + np.abs(np.imag(self.log_values)) + np.abs(log_modulus) + 8)
        grown = np.exp(np.minimum(log_modulus + self.growth, 700.0))
        slip = np.where(self.growth < 1, modulus * np.expm1(np.minimum(self.growth, 1.0)), grown)
        error = self.spacing / math.pi * float((slip + modulus * phase).sum())
        error += math.exp(min(700.0, self.log_tail - self.c * epsilon))
        if not math.isfinite(estimate + error):
            return 0.0, 1.0, math.inf
        log_chernoff, order = self.alias_above
        alias = math.exp(min(700.0, self.log_alias_below)) + math.exp(min(700.0, log_chernoff - order * epsilon))
        lower, upper = estimate - error - alias, estimate + error
        return max(0.0, lower), max(0.0, min(1.0, estimate)), max(0.0, upper)


class Composition:
    """Some pairs, composed; the order does not matter.

    Args:
        parts: pairs with how often each was used; at least one, counts >= 1.
        certain: delta that is spent whatever epsilon is (the failures of guarantees among the parts are added).
    """

    def __init__(self, parts: Parts, *, certain: float = 0.0) -> None:
        merged: dict[Pair, int] = {}
        for pair, count in parts:
            assert count >= 1
            merged[pair] = merged.get(pair, 0) + count
        self.parts = tuple(merged.items())
        log_kept = math.log1p(-certain) + sum(
            count * math.log1p(-pair.delta) for pair, count in self.parts if isinstance(pair, GuaranteePair)
        )
        self.certain = -math.expm1(log_kept)
        self._real: dict[float, float] = {}
        self._orders = GAUSSIAN_ORDERS if all(isinstance(p, GaussianPair) for p in merged) else ORDERS

    def log_moment(self, c: float) -> float:
        """An upper bound on K(c), good to rounding; infinite where the quadrature does not reach."""
        if c not in self._real:
            total = 0.0
            for pair, count in self.parts:
                try:
                    value, error = excess(pair, c)
                    total += count * math.log1p(value + error)
                except (TooMuchWork, OverflowError):
                    total = math.inf
                    break
            self._real[c] = total if math.isfinite(total) else math.inf
        return self._real[c]

    def chernoff(self, delta: float) -> tuple[float, float]:
        """(epsilon, c): an upper bound on epsilon from one moment, over real orders.

        delta <= exp(K(c) - c eps) c^c / (1+c)^(1+c).

        Source: Canonne, Kamath and Steinke, arXiv 2004.00010, proposition 12, with c = order - 1.
        """

        def epsilon(log_c: float) -> float:
            c = math.exp(log_c)
            return min(1e300, (self.log_moment(c) + _log_payoff(c) - math.log(delta)) / c)

        # The bound is unimodal in c, so every fourth order finds the neighbourhood.
        coarse = {i: epsilon(math.log(self._orders[i])) for i in range(0, len(self._orders), 4)}
        middle = min(coarse, key=lambda i: coarse[i])
        if coarse[middle] >= 1e300:
            return math.inf, 1.0
        near = range(max(0, middle - 3), min(len(self._orders), middle + 4))
        values = {i: epsilon(math.log(self._orders[i])) for i in near}
        best = min(values, key=lambda i: values[i])
        bounds = (
            math.log(self._orders[max(0, best - 1)]),
            math.log(self._orders[min(len(self._orders) - 1, best + 1)]),
        )
        found = optimize.minimize_scalar(epsilon, bounds=bounds, method="bounded", options={"maxiter": 8})
        value, at = min((values[best], math.log(self._orders[best])), (float(found.fun), float(found.x)))
        return max(0.0, value), math.exp(at)

    def line(self, epsilon: float, delta: float, tolerance: float) -> Line:
        """The line for epsilons near this one, whose delta is near this one.

        Raises:
            TooMuchWork: see `Moments.along`, or the line would have more than 2^22 nodes.
        """
        aim = math.log(tolerance * delta)
        heights = self._heights(epsilon)
        if len(heights) < 2:
            raise TooMuchWork("no two moments of the privacy loss could be computed")
        lowest = min(heights.values())
        best: tuple[float, float, float] | None = None
        for c in sorted(heights):
            if heights[c] > lowest + 4:  # further up, the integrand cancels more than it must
                continue
            above = [((self._log_chernoff(a, epsilon) - aim) / (a - c), a) for a in heights if a > c]
            if not above:
                continue
            width, order = min(above)
            width = max(width, -aim / c, 1e-12)
            if best is None or width < best[0]:
                best = (width, c, order)
        if best is None:
            raise TooMuchWork("no two moments of the privacy loss could be computed")
        width, c, order = best
        width *= 1.02
        spacing = 2 * math.pi / width
        moments = [(Moments(pair, c), count) for pair, count in self.parts]
        end = self._end(moments, c, epsilon, aim, spacing)
        count = math.ceil(end / spacing) + 1
        # An error e of every M moves the integrand by about count * e / M times itself.
        times = sum(count for _, count in self.parts)
        log_tolerance = min(-20.0, aim - lowest - 4 - math.log(times) - 3)
        log_values = np.zeros(count, dtype=complex)
        growth = np.zeros(count)
        for part, often in moments:
            above_one, error = part.along(spacing, count, max(log_tolerance, -80.0))
            log_moment = _log1p(above_one)
            size = np.maximum(np.abs(1 + above_one), 1e-300)
            log_values += often * log_moment
            growth += often * (np.log1p(error / size) + _log1p_error(above_one))
        s = c + 1j * spacing * np.arange(count)
        log_values -= np.log(s) + np.log1p(s)
        log_tail = sum(often * part.log_modulus_beyond(spacing * (count - 1)) for part, often in moments)
        log_tail -= math.log(math.pi * spacing * (count - 1))
        return Line(
            c,
            spacing,
            log_values,
            growth,
            log_tail,
            _log_geometric(c * width),
            (self._log_chernoff(order, 0.0) + _log_geometric((order - c) * width), order),
        )

    def _heights(self, epsilon: float) -> dict[float, float]:
        """ln of the integrand at the real point of a line, by c, for the orders around the lowest."""

        def height(index: int) -> float:
            c = self._orders[index]
            return self.log_moment(c) - c * epsilon - math.log(c) - math.log1p(c)

        coarse = {i: height(i) for i in range(0, len(self._orders), 4)}
        middle = min(coarse, key=lambda i: coarse[i])
        near = range(max(0, middle - 8), min(len(self._orders), middle + 9))
        return {self._orders[i]: height(i) for i in near if math.isfinite(height(i))}

    def _log_chernoff(self, c: float, epsilon: float) -> float:
        """ln of an upper bound on delta(epsilon), any real epsilon."""
        return self.log_moment(c) + _log_payoff(c) - c * epsilon

    def _end(self, moments: list[tuple[Moments, int]], c: float, epsilon: float, aim: float, spacing: float) -> float:
        """Where the line may end: what is beyond it is below the aim."""

        def beyond(y: float) -> float:
            total = sum(often * part.log_modulus_beyond(y) for part, often in moments)
            return total - c * epsilon - math.log(math.pi * y)

        low, high = spacing, 16 * spacing
        while beyond(high) > aim:
            low, high = high, 2 * high
            if high > LARGEST_LINE * spacing:
                raise TooMuchWork(
                    f"the moments fall off too slowly: more than {LARGEST_LINE} points would be needed on the line"
                )
        while high > 1.1 * low:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if beyond(middle) <= aim else (middle, high)
        return high

    def epsilon(self, delta: float) -> Interval | Unavailable:
        """The bracket of epsilon at delta."""
        if delta <= self.certain:
            return Unavailable(
                ENGINE, f"delta {delta:g} is not above {self.certain:g}, which is spent at every epsilon"
            )
        finite = (delta - self.certain) / (1 - self.certain)
        first, _ = self.chernoff(finite)
        if not math.isfinite(first):
            return Unavailable(ENGINE, "no moment of the privacy loss could be computed")
        refused = ""
        for tolerance in TOLERANCES:
            for share in GUESSES:
                try:
                    return self._solve(finite, first, share * first, tolerance)
                except TooMuchWork as cause:
                    refused = refused or str(cause)
        return Unavailable(ENGINE, refused)

    def _solve(self, delta: float, chernoff: float, guess: float, tolerance: float) -> Interval:
        """Solve on a line for the guess, then on lines for the solution, while that narrows the bracket."""
        found = _on(self.line(guess, delta, tolerance), delta, chernoff)
        for _ in range(4):
            if found[2] - found[0] <= 1e-8 * max(found[1], 1e-6):
                break
            again = _on(self.line(found[1], delta, tolerance), delta, chernoff)
            better = (max(found[0], again[0]), again[1], min(found[2], again[2]))
            if better[0] > better[2]:
                raise PrivacyError(
                    f"two lines of the contour integral contradict each other: epsilon in {found} and in {again} at "
                    f"delta {delta!r}. Please report this; no epsilon is quoted."
                )
            if better[2] - better[0] > 0.9 * (found[2] - found[0]):
                break
            found = better
        lower, estimate, upper = found
        lower, upper = max(0.0, lower - WIDENING * (1 + lower)), upper + WIDENING * (1 + upper)
        if upper - lower > 0.2 * max(upper, 1e-6) and guess > GUESSES[-1] * chernoff:
            raise TooMuchWork(f"a line for epsilon {guess:.3g} does not reach the solution")
        return Interval(lower, min(max(estimate, lower), upper), upper, ENGINE, f"delta to a relative {tolerance:g}")

    def delta(self, epsilon: float) -> tuple[float, float, float] | Unavailable:
        """(lower, estimate, upper) of delta at epsilon >= 0."""
        bound = self._finite_chernoff(epsilon)
        if bound <= 0:
            return Unavailable(ENGINE, "delta is below the smallest float64")
        refused = ""
        for tolerance in TOLERANCES:
            guess, found = max(bound / 30, 1e-290), None
            try:
                for _ in range(3):  # the moments' bound may be far above delta; then aim again at what was found
                    values = self.line(epsilon, guess, tolerance).delta(epsilon)
                    better = (
                        values if found is None else (max(found[0], values[0]), values[1], min(found[2], values[2]))
                    )
                    if better[0] > better[2]:
                        raise PrivacyError(
                            f"two lines of the contour integral contradict each other: delta in {found} and in "
                            f"{values} at epsilon {epsilon!r}. Please report this; no delta is quoted."
                        )
                    found = better
                    if found[2] - found[0] <= 1e-3 * found[2] or found[1] <= 0:
                        break
                    guess = max(found[1], 1e-290)
            except TooMuchWork as cause:
                refused = str(cause)
            if found is not None:
                lower, estimate, upper = (
                    self.certain + (1 - self.certain) * v for v in (*found[:2], min(found[2], bound))
                )
                return lower, min(max(estimate, lower), upper), upper
        return Unavailable(ENGINE, refused)

    def chernoff_delta(self, epsilon: float) -> float:
        """An upper bound on delta at epsilon from one moment."""
        return self.certain + (1 - self.certain) * self._finite_chernoff(epsilon)

    def _finite_chernoff(self, epsilon: float) -> float:
        coarse = {i: self._log_chernoff(self._orders[i], epsilon) for i in range(0, len(self._orders), 4)}
        middle = min(coarse, key=lambda i: coarse[i])
        near = range(max(0, middle - 3), min(len(self._orders), middle + 4))
        return math.exp(min(0.0, *(self._log_chernoff(self._orders[i], epsilon) for i in near)))


def contour_interval(directions: Sequence[Parts], delta: float, *, certain: float = 0.0) -> Interval | Unavailable:
    """Epsilon at delta: the larger of the directions, bound by bound."""
    if delta <= max((Composition(parts, certain=certain).certain for parts in directions), default=0.0):
        return Unavailable(ENGINE, f"delta {delta:g} is spent at every epsilon")
    compositions = [Composition(parts, certain=certain) for parts in directions]
    bounds = [c.chernoff((delta - c.certain) / (1 - c.certain))[0] for c in compositions]
    lower = estimate = upper = 0.0
    notes: list[str] = []
    for index in sorted(range(len(bounds)), key=lambda i: -bounds[i]):
        if bounds[index] <= lower:
            notes.append("the other direction costs less by its moments alone")
            continue
        found = compositions[index].epsilon(delta)
        if isinstance(found, Unavailable):
            return found
        lower, estimate, upper = max(lower, found.lower), max(estimate, found.estimate), max(upper, found.upper)
        notes.append(found.note)
    return Interval(lower, estimate, upper, ENGINE, "; ".join(dict.fromkeys(notes)))


def _on(line: Line, delta: float, chernoff: float) -> tuple[float, float, float]:
    """(lower, estimate, upper) of epsilon: delta's bracket solved for each; Chernoff's epsilon bounds all."""

    def above(epsilon: float, which: int) -> bool:
        return line.delta(epsilon)[which] > delta

    # The line is only good near the epsilon it was planned for, so each search starts from the bound and walks down.
    step, high, low = 1e-4 * chernoff, chernoff, chernoff
    while low > 0 and not above(low, 1):
        high, low, step = low, max(0.0, low - step), 2 * step
    if high == low == 0.0 or not above(low, 1):
        return 0.0, 0.0, 0.0 if not above(0.0, 2) else chernoff
    estimate = high
    if low < high:

        def excess(epsilon: float) -> float:
            return math.log(min(max(line.delta(epsilon)[1] / delta, 1e-30), 1e300))

        estimate = float(
            optimize.root_scalar(excess, bracket=(low, high), method="brentq", xtol=1e-300, rtol=1e-13).root
        )
    return _walk(lambda e: above(e, 0), estimate, 0.0), estimate, _walk(lambda e: not above(e, 2), estimate, chernoff)


def _walk(holds: Callable[[float], bool], start: float, end: float) -> float:
    """A point near `start` on the way to `end` where the condition holds; `end` if none is met."""
    step = 1e-12 * max(start, 1e-6)
    sign = 1 if end > start else -1
    last, reached = start, start
    while not holds(reached):
        last, reached, step = reached, reached + sign * step, 2 * step
        if (reached - end) * sign >= 0:
            return end
    for _ in range(6):
        middle = (last + reached) / 2
        last, reached = (last, middle) if holds(middle) else (middle, reached)
    return reached


def _log1p(z: np.ndarray) -> np.ndarray:
    """ln(1 + z) for complex z, also where z is tiny: numpy's is off by 1e-16 however small z is.

    Where 1 + z is 0 to rounding, the real part ends at -690; `Line.growth` covers that, like any error of z.
    """
    size = np.abs(1 + z)
    plain = (size < 0.5) | (np.abs(z) > 1e8)  # 1 + Re z is exact in the first case
    near = np.where(plain, 0.0, z)
    real = np.where(
        plain,
        np.log(np.maximum(size, 1e-300)),
        0.5 * np.log1p(2 * np.real(near) + (np.real(near) ** 2 + np.imag(near) ** 2)),
    )
    return real + 1j * np.arctan2(np.imag(z), 1 + np.real(z))


def _log1p_error(z: np.ndarray) -> np.ndarray:
    """A bound on the rounding error of `_log1p`: of 2x + x^2 + y^2 against |1 + z|^2 >= 1/4, and of the logarithm."""
    size = np.minimum(np.abs(z), 1e8)
    square = np.clip(np.abs(1 + np.where(np.abs(z) > 1e8, 1e8, z)), 0.5, None) ** 2
    return 8 * UNIT * (size * (2 + size) / square + np.abs(_log1p(z)))


def _log_payoff(c: float) -> float:
    """ln max over x of (1 - e^-x) e^-cx."""
    return c * math.log(c) - (c + 1) * math.log1p(c)


def _log_geometric(x: float) -> float:
    """ln of the sum of exp(-mx), m >= 1."""
    return -x - math.log(-math.expm1(-x)) if x > 0 else math.inf
