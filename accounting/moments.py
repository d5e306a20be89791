"""The moment generating function of a pair's privacy loss on a line of the complex plane, with an error for each value.

M(s) = E_P exp(s ln(P/Q)) = integral of P^(s+1) Q^-s, at s = c + iy. The integrand is analytic in a strip, so the
trapezoid rule with spacing h is off by at most 2 B / (exp(2 pi a / h) - 1), where B bounds the integral of its modulus
on the lines at distance a. B is computed, h follows from it. What is returned is M - 1, from exp(z) - 1, so that
nothing cancels where a step says very little.

Source: Trefethen and Weideman, "The exponentially convergent trapezoidal rule", SIAM Review 56 (2014), theorem 5.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from samelaw.accounting.pairs import GaussianPair, GuaranteePair, Mixture, MixturePair, Pair

UNIT = 2.0**-53
DROPPED = 75.0
"""Nodes whose weight is below exp(-75) of the largest are left out, and charged to the error."""
LARGEST_NODES = 200_000
LARGEST_WORK = 1e9
"""Complex multiplications along one line: a few seconds."""


class TooMuchWork(ArithmeticError):
    """The quadrature would need more nodes than its limit."""


@dataclass(frozen=True)
class Branch:
    """A part of the integral, in a variable t that runs over the whole line.

    Attributes:
        pair: where it comes from.
        mirrored: of a symmetric pair, whether this is the part of losses below 0.
    """

    pair: MixturePair
    mirrored: bool = False

    @property
    def strip(self) -> float:
        """Half-width of the strip of t in which the integrand is analytic.

        P / N(0, sigma^2) is a polynomial with positive coefficients in exp(x / sigma^2), of degree `reach`, which has
        no zero at an angle below pi / reach. On the half-line of a symmetric pair, x = turn + sigma exp(t), the zero
        nearest in angle is that of (1-q) + q exp(2 (x - turn) / sigma^2).
        """
        reach = max(self.pair.upper.reach, self.pair.lower.reach)
        if not self.pair.symmetric:
            return math.pi * self.pair.sigma**2 / reach
        q = self.pair.upper.weights[1]
        return min(math.pi / 4, math.atan2(math.pi, math.log((1 - q) / q)))

    def at(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ln of the density of t under P, the loss there, and a bound on the loss's rounding error."""
        sigma = self.pair.sigma
        x = self.turn + sigma * np.exp(t) if self.pair.symmetric else t
        above, above_error = _log_ratio(self.pair.upper, x, sigma)
        below, below_error = _log_ratio(self.pair.lower, x, sigma)
        base = -((x / sigma) ** 2) / 2 - math.log(sigma * math.sqrt(2 * math.pi))
        if self.pair.symmetric:
            base = base + t + math.log(sigma)
        loss = above - below
        error = above_error + below_error
        return (base + below, -loss, error) if self.mirrored else (base + above, loss, error)

    @property
    def turn(self) -> float:
        """Where the loss of a symmetric pair is 0."""
        return self.pair.upper.reach / 2

    def ends(self, c: float) -> tuple[float, float]:
        """A range of t beyond which both the density and its tilt by exp(c loss) are below exp(-78) of their peaks.

        sigma^2 times the slope of ln P/N(0, sigma^2) lies between its least and its largest mean, so beyond the tilted
        means the logarithm falls like that of a normal density.
        """
        p, q, sigma = self.pair.upper.means, self.pair.lower.means, self.pair.sigma
        if self.mirrored:
            p, q = q, p
        low = min(*p, (1 + c) * min(p) - c * max(q)) - 12.5 * sigma
        high = max(*p, (1 + c) * max(p) - c * min(q)) + 12.5 * sigma
        if self.pair.symmetric:
            return -45.0, math.log(max(high - self.turn, sigma) / sigma)
        return low, high


@dataclass(frozen=True)
class Nodes:
    """A branch on a trapezoid grid: weights of the tilted density, losses, and their rounding errors."""

    weight: np.ndarray
    weight_error: np.ndarray
    loss: np.ndarray
    loss_error: np.ndarray
    excess: float
    excess_error: float


GRID_ALLOWANCE = 1e-3
"""Relative allowance for taking variations and masses on a grid of 6000 cells instead of exactly."""


@dataclass(frozen=True)
class Spectrum:
    """How fast a branch's share of |M(c + iv)| must fall with v.

    Attributes:
        mass: the share at v = 0.
        rest, variation: by thresholds of the loss's slope, the mass where it is flatter, and the total variation of
            (weight / slope) where it is steeper, ends included: integrating by parts bounds the share by
            rest + variation / v.
        places, cumulative: losses in order with the running sums of weight, weight * loss and weight * loss^2.
    """

    mass: float
    rest: np.ndarray
    variation: np.ndarray
    places: np.ndarray
    cumulative: np.ndarray

    @classmethod
    def of(cls, branch: Branch, support: tuple[float, float], c: float) -> Spectrum:
        t = np.linspace(*support, 6001)
        step = float(t[1] - t[0])
        base, loss, _ = branch.at(t)
        weight = np.exp(np.minimum(base + c * loss, 700.0))
        slope = np.abs(np.gradient(loss, t))
        with np.errstate(divide="ignore", over="ignore"):
            quotient = np.where(slope > 0, weight / slope, np.inf)
        rest: list[float] = []
        variation: list[float] = []
        for threshold in float(slope.max()) * np.geomspace(1e-14, 0.9, 80):
            steep = slope > threshold
            # Jumps at the ends of a steep stretch are its boundary terms; inside they add up to the variation.
            padded = np.concatenate([[0.0], np.where(steep, quotient, 0.0), [0.0]])
            edges = int(np.abs(np.diff(np.concatenate([[0], steep.astype(np.int8), [0]]))).sum())
            rest.append(float(weight[~steep].sum() * step) + edges * float(weight.max()) * step)
            variation.append(float(np.abs(np.diff(padded)).sum()))
        order = np.argsort(loss)
        places, share = loss[order], weight[order] * step
        centred = places - places[len(places) // 2]
        cumulative = np.cumsum([share, share * centred, share * centred**2], axis=1)
        mass = float(share.sum())
        return cls(mass, np.array(rest), np.array(variation), places, np.pad(cumulative, ((0, 0), (1, 0))))

    def beyond(self, v: float) -> float:
        """A bound on the share at every frequency from v on."""
        return min(self.mass, float((self.rest + self.variation / v).min())) * (1 + GRID_ALLOWANCE)

    def within_octave(self, v: float) -> float:
        """A bound on the share at every frequency from v to 2v.

        For losses in a window of width pi / (2v), 1 - cos(z) >= 2 z^2 / pi^2 for |z| <= pi makes |integral of
        weight * exp(ivL)|^2 at most W^2 (1 - (4 / pi^2) v^2 variance), W the window's mass; the rest counts in full.
        """
        width = math.pi / (2 * v)
        quantiles = self.cumulative[0, -1] * np.linspace(0.02, 0.98, 49)
        starts = np.unique(np.searchsorted(self.cumulative[0], quantiles))
        starts = np.unique(np.concatenate([[0], np.minimum(starts, len(self.places) - 1)]))
        stops = np.searchsorted(self.places, self.places[starts] + width, side="right")
        weight, first, second = self.cumulative[:, stops] - self.cumulative[:, starts]
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.where(weight > 0, second / weight - (first / weight) ** 2, 0.0)
        variance = np.maximum(0.0, variance * (1 - GRID_ALLOWANCE))
        saved = weight * (1 - np.sqrt(np.maximum(0.0, 1 - (4 / math.pi**2) * v * v * variance)))
        # Cancellation in the running sums is far below a saving that counts.
        return self.mass - float(np.nan_to_num(saved).max()) * (1 - GRID_ALLOWANCE)


class Moments:
    """M(c + iy) - 1 of one pair for one c > 0."""

    def __init__(self, pair: Pair, c: float) -> None:
        self.pair, self.c = pair, c
        self._branches = _branches(pair)
        self._support = [_support(branch, c) for branch in self._branches]
        self._coarse: list[Nodes] | None = None
        self._spectrum: list[Spectrum] | None = None

    def excess(self) -> tuple[float, float]:
        """M(c) - 1 and a bound on its error."""
        if isinstance(self.pair, GaussianPair):
            exponent = self.c * (self.c + 1) / 2 * self.pair.mu**2
            value = math.expm1(exponent) if exponent < 700 else math.inf
            return value, 8 * UNIT * (1 + exponent) * (1 + value)
        if isinstance(self.pair, GuaranteePair):
            if (self.c + 1) * self.pair.epsilon > 600:
                raise TooMuchWork("the moment is above exp(600)")
            value = complex(_guarantee(self.pair.epsilon, np.array([complex(self.c)]))[0]).real
            return value, 16 * UNIT * (1 + self.c * self.pair.epsilon) * (1 + abs(value))
        nodes = self._at_rest()
        return sum(n.excess for n in nodes), sum(n.excess_error for n in nodes)

    def log_modulus_beyond(self, y: float) -> float:
        """ln of an upper bound on |M(c + iv)| for every v >= y > 0; decreasing in y.

        Octave by octave, until what holds for all larger v is no worse than what was found.
        """
        if isinstance(self.pair, GaussianPair):
            return (self.c * (self.c + 1) - y * y) / 2 * self.pair.mu**2
        whole = 1 + sum(self.excess())
        if isinstance(self.pair, GuaranteePair):
            return math.log(whole)
        if self._spectrum is None:
            self._spectrum = [
                Spectrum.of(branch, support, self.c)
                for branch, support in zip(self._branches, self._support, strict=True)
            ]
        atom = max(0.0, whole - sum(s.mass for s in self._spectrum))  # of a symmetric pair
        found = 0.0
        for octave in range(64):
            v = y * 2.0**octave
            beyond = sum(s.beyond(v) for s in self._spectrum)
            if beyond <= found:
                break
            found = max(found, sum(min(s.beyond(v), s.within_octave(v)) for s in self._spectrum))
        return min(math.log(whole), math.log((found + atom) * (1 + 1e-9)))

    def along(self, spacing: float, count: int, log_tolerance: float) -> tuple[np.ndarray, np.ndarray]:
        """M - 1 at y = 0, spacing, ..., (count - 1) spacing, and a bound on the error of each.

        Raises:
            TooMuchWork: the integrand oscillates too fast for the limit on nodes.
        """
        y = spacing * np.arange(count)
        if isinstance(self.pair, GaussianPair):
            s = self.c + 1j * y
            exponent = s * (s + 1) / 2 * self.pair.mu**2
            value = np.expm1(exponent)
            return value, 16 * UNIT * (1 + np.abs(exponent)) * (1 + np.abs(value))
        if isinstance(self.pair, GuaranteePair):
            s = self.c + 1j * y
            value = _guarantee(self.pair.epsilon, s)
            return value, 16 * UNIT * (1 + np.abs(s) * self.pair.epsilon) * (1 + np.exp(self.c * self.pair.epsilon))
        value, error = np.empty(count, dtype=complex), np.empty(count)
        segments = list(_segments(count))
        plans = [self._spacings(spacing * (stop - 1), log_tolerance) for _, stop in segments]
        work = sum(
            (stop - start) * sum((high - low) / h for (low, high), h in zip(self._support, plan, strict=True))
            for (start, stop), plan in zip(segments, plans, strict=True)
        )
        if work > LARGEST_WORK:
            raise TooMuchWork(f"the contour would need {work:.1g} evaluations, more than {LARGEST_WORK:.1g}")
        for (start, stop), plan in zip(segments, plans, strict=True):
            value[start:stop], error[start:stop] = 0.0, len(plan) * math.exp(log_tolerance)
            for branch, support, h in zip(self._branches, self._support, plan, strict=True):
                part, part_error = _sum(_nodes(branch, support, h, self.c), y[start:stop])
                value[start:stop] += part
                error[start:stop] += part_error
        return value, error

    def _at_rest(self) -> list[Nodes]:
        if self._coarse is None:
            plan = self._spacings(0.0, math.log(UNIT) - 20)
            self._coarse = [
                _nodes(branch, support, h, self.c)
                for branch, support, h in zip(self._branches, self._support, plan, strict=True)
            ]
        return self._coarse

    def _spacings(self, y: float, log_tolerance: float) -> list[float]:
        return [
            _spacing(branch, support, self.c, y, log_tolerance)
            for branch, support in zip(self._branches, self._support, strict=True)
        ]


@lru_cache(maxsize=4096)
def excess(pair: Pair, c: float) -> tuple[float, float]:
    """`Moments(pair, c).excess()`, remembered.

    Raises:
        TooMuchWork: the law does not fit the quadrature, or the moment float64.
    """
    return Moments(pair, c).excess()


def _branches(pair: Pair) -> list[Branch]:
    if not isinstance(pair, MixturePair):
        return []
    return [Branch(pair), Branch(pair, mirrored=True)] if pair.symmetric else [Branch(pair)]


def _log_ratio(mixture: Mixture, x: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """ln of (mixture / N(0, sigma^2)) at real or complex x, analytic in the strip, and its rounding error's bound."""
    moved = [(w, m) for w, m in zip(mixture.weights, mixture.means, strict=True) if m != 0]
    if not moved:
        return np.zeros_like(x), np.zeros(x.shape)
    weights = np.array([w for w, _ in moved])
    means = np.array([m for _, m in moved])
    exponent = np.multiply.outer(x, means / sigma**2) - means**2 / (2 * sigma**2)
    largest = np.real(exponent).max(axis=-1)
    near = ((np.real(exponent) + np.log(weights)).max(axis=-1) < 0) & (largest < 600)
    value, error = np.empty(x.shape, dtype=exponent.dtype), np.empty(x.shape)
    gentle = exponent[near]
    from_one = np.expm1(gentle)
    value[near] = np.log1p(from_one @ weights)
    error[near] = (np.abs(from_one) + np.abs(gentle) * np.exp(np.real(gentle))) @ weights
    # Far out, the largest term is taken out: with its phase where it is the only one, so that the branch is kept.
    steep = exponent[~near]
    top = steep[..., 0] if len(moved) == 1 else np.maximum(largest[~near], 0.0)
    rest = max(0.0, 1.0 - math.fsum(weights))
    value[~near] = top + np.log(np.exp(steep - top[..., None]) @ weights + rest * np.exp(-top))
    error[~near] = 1 + np.abs(steep).max(axis=-1, initial=0.0)
    return value, 8 * UNIT * (np.abs(value) + error)


def _support(branch: Branch, c: float) -> tuple[float, float]:
    """The range of t that matters, cut where all is below exp(-75) of the peak."""
    low, high = branch.ends(c)
    sigma = branch.pair.sigma
    count = math.ceil((high - low) / (0.1 if branch.pair.symmetric else sigma / 4)) + 1
    if count > 5 * LARGEST_NODES:
        raise TooMuchWork(f"the tilted law would reach from {low:.3g} to {high:.3g} clip norms")
    t = np.linspace(low, high, count)
    base, loss, _ = branch.at(t)
    height = base + np.maximum(0.0, c * loss)
    kept = np.flatnonzero(height > height.max() - DROPPED)
    first, last = max(0, int(kept[0]) - 1), min(count - 1, int(kept[-1]) + 1)
    return float(t[first]), float(t[last])


def _spacing(branch: Branch, support: tuple[float, float], c: float, y: float, log_tolerance: float) -> float:
    """The largest spacing whose error bound at c + iv, 0 <= v <= y, is within the tolerance."""
    low, high = support
    width = branch.strip
    natural = 1.0 if branch.pair.symmetric else branch.pair.sigma
    best = 0.0
    t = np.linspace(low, high, 501)
    modulus = abs(complex(c, y))
    for a in {min(0.95 * width, natural * f) for f in (0.03, 0.2, 0.7, 2.0, 5.0, 9.0)}:
        base, loss, _ = branch.at(t + 1j * a)
        grown = c * np.real(loss) + y * np.abs(np.imag(loss))
        with np.errstate(divide="ignore"):
            factor = np.maximum(0.0, grown) + np.minimum(math.log(2), np.log(modulus * np.abs(loss) + 1e-300))
        log_height = np.real(base) + factor
        top = float(log_height.max())
        log_bound = top + math.log(float(np.exp(log_height - top).sum()) * (t[1] - t[0])) + 0.1
        best = max(best, 2 * math.pi * a / max(1.0, log_bound - log_tolerance + math.log(2.1)))
    if (high - low) / best > LARGEST_NODES:
        raise TooMuchWork(f"one moment would need {(high - low) / best:.2g} nodes, more than {LARGEST_NODES:.2g}")
    return best


def _nodes(branch: Branch, support: tuple[float, float], h: float, c: float) -> Nodes:
    t = np.arange(support[0], support[1] + h, h)
    base, loss, loss_error = branch.at(t)
    weight = h * np.exp(np.minimum(base + c * loss, 601.0))
    relative = 8 * UNIT * (1 + np.abs(base) + c * np.abs(loss) + (t / branch.pair.sigma) ** 2) + (c + 1) * loss_error
    plain = h * np.exp(base)
    if float((base + c * loss).max()) > 600:
        raise TooMuchWork("the moment is above exp(600)")
    terms = np.where(c * loss < 600, plain * np.expm1(np.minimum(c * loss, 600.0)), weight)
    left_out = (support[1] - support[0]) * float(weight.max()) / h * math.exp(-DROPPED + 2)
    # expm1 is off by its argument's error times exp of it; the sum by one unit a term at most.
    slip = relative * np.abs(terms) + c * loss_error * weight + UNIT * np.abs(terms)
    excess_error = float(slip.sum()) + len(t) * UNIT * float(np.abs(terms).sum()) + left_out
    return Nodes(weight, weight * relative, loss, loss_error, math.fsum(terms), excess_error)


def _sum(nodes: Nodes, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """excess + sum of w (exp(iyL) - 1), for equally spaced y, as products of two small tables.

    exp(i(a+b)L) - 1 = A B + A + B with A = exp(iaL) - 1 and B = exp(ibL) - 1, so rounding is in proportion to how far
    exp(iyL) is from 1.
    """
    fast = math.ceil(math.sqrt(len(y)))
    slow = math.ceil(len(y) / fast)
    spacing = y[1] - y[0] if len(y) > 1 else 0.0
    inner, outer = spacing * np.arange(fast), y[0] + spacing * fast * np.arange(slow)
    total = np.zeros((slow, fast), dtype=complex)
    error = np.zeros((slow, fast))
    chunk = max(64, int(2e6 / max(fast, slow)))
    for start in range(0, len(nodes.loss), chunk):
        loss, weight = nodes.loss[start : start + chunk], nodes.weight[start : start + chunk]
        a, b = np.expm1(1j * np.outer(inner, loss)), np.expm1(1j * np.outer(outer, loss))
        alone_a, alone_b = a @ weight, b @ weight
        total += (b * weight) @ a.T + alone_b[:, None] + alone_a[None, :]
        size_a, size_b = np.abs(a) ** 2 @ weight, np.abs(b) ** 2 @ weight
        flat_a, flat_b = np.abs(a) @ weight, np.abs(b) @ weight
        units = (len(loss) + 16) * UNIT
        error += units * (np.sqrt(np.outer(size_b, size_a)) + flat_b[:, None] + flat_a[None, :])
    value, bound = total.reshape(-1)[: len(y)], error.reshape(-1)[: len(y)]
    rounding = np.abs(nodes.loss) * 4 * UNIT + nodes.loss_error
    bound = bound + y * float((nodes.weight * rounding).sum())
    bound = bound + np.minimum(
        2 * float(nodes.weight_error.sum()), y * float((nodes.weight_error * np.abs(nodes.loss)).sum())
    )
    return nodes.excess + value, nodes.excess_error + bound


def _segments(count: int) -> Iterator[tuple[int, int]]:
    """0 ... count in stretches that double: the rule's spacing is chosen for the end of each."""
    start, stop = 0, min(count, 256)
    while start < count:
        yield start, stop
        start, stop = stop, min(count, 2 * stop)


def _guarantee(epsilon: float, s: np.ndarray) -> np.ndarray:
    """M - 1 of the loss +-epsilon with odds exp(epsilon) to 1."""
    return (np.exp(epsilon) * np.expm1(s * epsilon) + np.expm1(-s * epsilon)) / (1 + np.exp(epsilon))
