"""How far is the law of one BM32 normal from the normal law?

The radius has 2^40 equally likely inputs and the angle 2^22 (times four quadrants), so the law can be added up
rather than sampled: every number below is a sum over all inputs, up to float64 rounding of the sums. The one
approximation is that an output which falls exactly between two float32 numbers counts as rounded up.

Run: python tools/measure_bm32.py [--points N]     (about 3 GB of memory and a few minutes)
It prints the table of docs/noise.md as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys

import numpy as np
from scipy import stats

from samelaw.reference import noise

RADIUS_INPUTS = 2**40
ANGLES = 2**22


def radius_inputs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Every float32 value of u + 1/2 and how many of the 2^40 integers u round to it, one binade at a time."""
    exact = np.arange(2**23, dtype=np.float64) + 0.5
    binades = [(exact, np.ones(exact.size))]
    # Spacing 1: every u + 1/2 is a tie and goes to the even neighbour, so 2k takes u = 2k - 1 and u = 2k.
    ties = np.arange(2**23, 2**24, 2, dtype=np.float64)
    counts = np.full(ties.size, 2.0)
    counts[0] = 1  # u = 2^23 - 1 is exact
    binades.append((ties, counts))
    for j in range(1, 17):
        spacing = 2.0**j
        values = np.arange(2**23, 2**24, dtype=np.float64) * spacing
        counts = np.full(values.size, spacing)
        # The first value of a binade has neighbours at half the distance below it (and a tie when that is 1).
        counts[0] = 2 if j == 1 else spacing / 2 + spacing / 4
        binades.append((values, counts))
    binades.append((np.array([2.0**40]), np.array([2.0**15])))
    assert sum(float(c.sum()) for _, c in binades) == RADIUS_INPUTS
    return binades


def words_for(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Words (a, b) whose 40-bit integer rounds to `value` (u = value is always one such, or value - 1/2)."""
    u = np.minimum(np.floor(value), RADIUS_INPUTS - 1).astype(np.uint64)
    return (u >> np.uint64(8)).astype(np.uint32), (u & np.uint64(255)).astype(np.uint32)


class RadiusLaw:
    """P(radius >= r) for every float32 r, from all 2^40 inputs."""

    def __init__(self) -> None:
        self.smallest = np.float32(1e-4).view(np.uint32)  # below the smallest radius that is not zero
        mass = np.zeros(int(np.float32(7.6).view(np.uint32) - self.smallest))
        self.zero = 0.0
        self.second_moment = 0.0
        self.log_error = 0.0
        self.largest = 0.0
        for values, counts in radius_inputs():
            for part in np.array_split(np.arange(values.size), max(1, values.size >> 20)):
                a, b = words_for(values[part])
                squared = noise.minus_two_log_uniform(a, b)
                radius = np.sqrt(squared)
                weight = counts[part] / RADIUS_INPUTS
                self.second_moment += float((squared.astype(np.float64) * weight).sum())
                true = -2 * np.log(values[part] / RADIUS_INPUTS)
                known = true > 0
                relative = np.abs(squared[known].astype(np.float64) / true[known] - 1)
                self.log_error = max(self.log_error, float(relative.max(initial=0)))
                self.largest = max(self.largest, float(radius.max()))
                self.zero += float(weight[radius == 0].sum())
                index = (radius.view(np.uint32) - self.smallest).astype(np.int64)[radius > 0]
                np.add.at(mass, index, weight[radius > 0])
        self.survival = np.append(np.cumsum(mass[::-1])[::-1], 0.0)

    def at_least(self, r: np.ndarray) -> np.ndarray:
        """P(radius >= r), r float64 > 0."""
        single = r.astype(np.float32)
        up = np.where(single.astype(np.float64) < r, np.nextafter(single, np.float32(np.inf)), single)
        index = up.view(np.uint32).astype(np.int64) - int(self.smallest)
        return self.survival[np.clip(index, 0, self.survival.size - 1)]


def angle_factors() -> tuple[np.ndarray, np.ndarray]:
    """|sine| and cosine factors for half of the angles; the other half has the same absolute values."""
    k = np.arange(ANGLES // 2, ANGLES, dtype=np.float32)
    return noise.sine_and_cosine((k - np.float32(2097151.5)) * noise.ANGLE_STEP)


def tail(radius: RadiusLaw, factors: np.ndarray, x: float) -> float:
    """P(|z| > x): the mean over both factors of P(fl(radius * factor) > x)."""
    single = np.float32(x)
    midpoint = (float(single) + float(np.nextafter(single, np.float32(np.inf)))) / 2
    return float(radius.at_least(midpoint / factors).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1000, help="points per unit of z below 1 (default 1000)")
    points = parser.parse_args().points
    radius = RadiusLaw()
    sine, cosine = angle_factors()
    k = np.arange(ANGLES // 2, dtype=np.float64) + 0.5
    exact = math.pi / 2 * k / ANGLES
    factors = np.concatenate([sine, cosine]).astype(np.float64)

    x = np.unique(
        np.concatenate([np.logspace(-6, 0, points // 2), np.arange(1, points) / points, np.arange(64, 483) / 64])
        .astype(np.float32)
        .astype(np.float64)
    )
    found = np.array([tail(radius, factors, v) for v in x])
    ideal = 2 * stats.norm.sf(x)
    # Bins of width 1/64 from 0 on, for the ratio of probabilities.
    edges = np.arange(1, 483) / 64
    at_edges = np.array([tail(radius, factors, v) for v in edges])
    ratio = -np.diff(at_edges) / -np.diff(2 * stats.norm.sf(edges)) - 1
    report = {
        "largest_radius": radius.largest,
        "largest_normal": float(np.float32(radius.largest) * cosine.max()),
        "mass_beyond_largest_normal_of_the_ideal_law": 2
        * float(stats.norm.sf(np.float32(radius.largest) * cosine.max())),
        "probability_of_radius_zero": radius.zero,
        "relative_error_of_minus_two_log": radius.log_error,
        "relative_error_of_sine": float(np.abs(sine / np.sin(exact) - 1).max()),
        "relative_error_of_cosine": float(np.abs(cosine / np.cos(exact) - 1).max()),
        "variance_minus_one": radius.second_moment * float((factors**2).mean()) - 1,
        "mean_square_radius_minus_two": radius.second_moment - 2,
        "ks_distance": float(np.abs(found - ideal).max() / 2),
        "ks_points": int(x.size),
        "ks_at": float(x[np.abs(found - ideal).argmax()]),
        "relative_error_of_bin_probability": {
            f"|z| < {limit}": float(np.abs(ratio[edges[1:] <= limit]).max()) for limit in (1, 2, 3, 4, 5, 6, 7, 7.5)
        },
        "relative_error_of_tail_probability": {
            f"|z| > {limit}": tail(radius, factors, limit) / (2 * float(stats.norm.sf(limit))) - 1
            for limit in (1, 2, 3, 4, 5, 6, 7, 7.25, 7.5)
        },
    }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
