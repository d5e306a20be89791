"""The privacy loss of one step: its law on a grid, and its mean, without cancellation.

With P = (1-q) N(0, sigma^2) + q N(1, sigma^2) (the example is there) and Q = N(0, sigma^2), the loss is y(x) = ln
P(x)/Q(x) with x from P for removal, and -y(x) with x from Q for addition. y increases with x, so the mass of an
interval of losses is that of an interval of x. prv-accountant computes the same masses as differences of a distribution
function near 1, which loses every loss rarer than 1e-16 a step, and its mean by quadrature to 1e-8; both errors grow
with the number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special


@dataclass(frozen=True)
class StepLoss:
    """The loss of one step in one direction.

    Attributes:
        sampling_rate, noise_multiplier: q in (0, 1) and sigma > 0.
        removal: whether the second data set lacks the example (x from P), or has one more (x from Q).
    """

    sampling_rate: float
    noise_multiplier: float
    removal: bool

    def mass(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """P(low < loss <= high), with small relative error in both tails."""
        low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        q, sigma = self.sampling_rate, self.noise_multiplier
        if not self.removal:
            return _normal_mass(self.place(-high) / sigma, self.place(-low) / sigma)
        left, right = self.place(low), self.place(high)
        return (1 - q) * _normal_mass(left / sigma, right / sigma) + q * _normal_mass(
            (left - 1) / sigma, (right - 1) / sigma
        )

    def moments(self, low: float, high: float) -> tuple[float, float]:
        """Mean and mean square of the loss given that it lies in (low, high].

        Gauss-Legendre on panels of a fraction of the law's scale; 40 sigma beyond either mean the density is below
        e^-800.
        """
        q, sigma = self.sampling_rate, self.noise_multiplier
        ends = (low, high) if self.removal else (-high, -low)
        left, right = (float(v) for v in self.place(np.array(ends)))
        left, right = max(left, -40 * sigma), min(right, 1 + 40 * sigma)
        panels = int(np.clip(np.ceil((right - left) / (min(sigma, sigma**2) / 2)), 64, 20_000))
        nodes, weights = np.polynomial.legendre.leggauss(16)
        edges = np.linspace(left, right, panels + 1)
        half = np.diff(edges)[:, None] / 2
        x = edges[:-1, None] + half * (nodes + 1)
        density = np.exp(-0.5 * (x / sigma) ** 2)
        if self.removal:
            density = (1 - q) * density + q * np.exp(-0.5 * ((x - 1) / sigma) ** 2)
        density = density * half * weights
        loss = self.loss(x) if self.removal else -self.loss(x)
        total = density.sum()
        return float((density * loss).sum() / total), float((density * loss**2).sum() / total)

    def loss(self, x: np.ndarray) -> np.ndarray:
        """y(x) = ln((1-q) + q e^u), u = (2x - 1) / (2 sigma^2)."""
        q = self.sampling_rate
        u = (2 * x - 1) / (2 * self.noise_multiplier**2)
        small = np.log1p(q * np.expm1(np.minimum(u, 1.0)))
        return np.where(u < 1, small, np.logaddexp(np.log1p(-q), np.log(q) + u))

    def place(self, loss: np.ndarray) -> np.ndarray:
        """The x at which y(x) is `loss`; minus infinity at and below the smallest loss, ln(1-q)."""
        q, sigma = self.sampling_rate, self.noise_multiplier
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            small = np.log1p(np.expm1(np.minimum(loss, 1.0)) / q)
            large = loss - np.log(q) + np.log1p(-(1 - q) * np.exp(-np.maximum(loss, 1.0)))
            u = np.where(loss < 1, small, large)
        return np.where(np.isnan(u), -np.inf, sigma**2 * u + 0.5)


def _normal_mass(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Phi(high) - Phi(low), taken in the tail where both are small."""
    upper = low > -high
    return np.where(upper, special.ndtr(-low) - special.ndtr(-high), special.ndtr(high) - special.ndtr(low))
