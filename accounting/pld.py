"""dp_accounting's privacy loss distributions: the second opinion, with a grid fitted to the mechanism.

The library's default grid of 1e-4 is fine for a few hundred steps of ordinary size; for many small steps it is coarser
than one step's loss and then far too loose, and for large losses it needs gigabytes. Here the grid is a fraction of the
standard deviation of one step's loss.
"""

from __future__ import annotations

import math
import warnings
from importlib import metadata
from typing import Any

import numpy as np

from samelaw.accounting.interval import Unavailable
from samelaw.accounting.losses import StepLoss
from samelaw.accounting.mechanism import SampledGaussian

SMALLEST_DELTA = 1e-8
"""Below this the library's "pessimistic" epsilon can be too small: its float64 transforms leave errors of that "
"order."""
LARGEST_STEP_GRID = 100_000
LARGEST_GRID = 4_000_000


def engine() -> str:
    return f"dp-accounting {metadata.version('dp-accounting')} PLD"


def pld_epsilon(
    mechanism: SampledGaussian, delta: float, *, scale: float, pessimistic: bool = True
) -> float | Unavailable:
    """Epsilon at delta, rounded up (pessimistic) or down, for removal and addition, whichever is larger.

    Args:
        scale: an upper bound on epsilon.
        pessimistic: connect-the-dots, an error of second order in the grid; otherwise losses are rounded down, an error
            of up to one cell a step, so the bound below is loose for many steps.
    """
    from dp_accounting.pld import privacy_loss_distribution

    interval = _interval(mechanism, scale=scale, cells=20 if pessimistic else 200)
    if isinstance(interval, Unavailable):
        return interval
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            one: Any = privacy_loss_distribution.from_gaussian_mechanism(
                mechanism.noise_multiplier,
                sampling_prob=mechanism.sampling_rate,
                pessimistic_estimate=pessimistic,
                value_discretization_interval=interval,
                use_connect_dots=pessimistic,
            )
            found = float(one.self_compose(mechanism.steps).get_epsilon_for_delta(delta))
    except (ValueError, IndexError, ZeroDivisionError, OverflowError, MemoryError) as cause:
        return Unavailable(engine(), f"it refused: {cause}")
    if not math.isfinite(found):
        return Unavailable(engine(), f"it returned {found!r}")
    return max(0.0, found)


def _interval(mechanism: SampledGaussian, *, scale: float, cells: int) -> float | Unavailable:
    """Grid spacing: `cells` to the standard deviation of one step's loss, within the limits on memory."""
    q, sigma = mechanism.sampling_rate, mechanism.noise_multiplier
    if q < 1:
        mean, square = StepLoss(q, sigma, True).moments(-math.inf, math.inf)
        deviation = math.sqrt(max(square - mean**2, 0.0))
        mean = abs(mean)
    else:
        deviation, mean = 1 / sigma, 1 / (2 * sigma**2)
    # The library truncates the noise where its mass is e^-50, ten sigma out.
    exponent = (1 + 20 * sigma) / (2 * sigma**2)
    largest = float(np.logaddexp(math.log1p(-q) if q < 1 else -math.inf, math.log(q) + exponent))
    interval = max(deviation / cells, largest / LARGEST_STEP_GRID)
    if not (math.isfinite(interval) and interval > 0):
        return Unavailable(engine(), f"one step's loss has standard deviation {deviation!r}")
    interval = 2.0 ** math.floor(math.log2(interval))
    # After composition the support is about the mean and 8 standard deviations on either side, both directions alike.
    width = 16 * deviation * math.sqrt(mechanism.steps) + 2 * mean * mechanism.steps + largest
    if width / interval > LARGEST_GRID:
        return Unavailable(engine(), f"its grid would have {width / interval:.2g} cells, more than {LARGEST_GRID:.2g}")
    if interval > max(scale, 1e-6):
        return Unavailable(engine(), f"its grid would be coarser ({interval:.2g}) than epsilon itself ({scale:.2g})")
    return interval
