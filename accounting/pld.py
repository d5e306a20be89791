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
"""Below this nothing the library says counts as a bound: its transforms are in float64."""
UNIT = 2.0**-53
LARGEST_STEP_GRID = 100_000
LARGEST_GRID = 1 << 23
TRUNCATION = 1e-15
"""Mass that the library may cut off the tails of a composition, and then counts as an infinite loss: its default."""


def engine() -> str:
    return f"dp-accounting {metadata.version('dp-accounting')} PLD"


def is_bound(mechanism: SampledGaussian, delta: float) -> bool:
    """Whether `pld_epsilon` may be used as a bound at this delta; it then allows for rounding."""
    return delta >= SMALLEST_DELTA and 20 * _rounding(mechanism) <= delta


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
            # Against the rounding of the transforms: ask for a little less delta, or a little more when rounding down.
            margin = _rounding(mechanism) * (1 if pessimistic else -1) if is_bound(mechanism, delta) else 0.0
            found = max(
                _compose(pmf, mechanism.steps).get_epsilon_for_delta(delta - margin)
                for pmf in ((one._pmf_remove,) if one._symmetric else (one._pmf_remove, one._pmf_add))
            )
    except (ArithmeticError, AttributeError, ValueError, IndexError, MemoryError) as cause:
        return Unavailable(engine(), f"it refused: {cause}")
    if not math.isfinite(found):
        return Unavailable(engine(), f"it returned {found!r}")
    return max(0.0, found)


def _rounding(mechanism: SampledGaussian) -> float:
    """What rounding does to delta: measured about steps * 2^-53 (a steps-th power of numbers near 1); 16 times that."""
    return 16 * mechanism.steps * UNIT


def _compose(pmf: Any, steps: int) -> Any:
    """One direction composed, after checking how large the result will be.

    PrivacyLossDistribution.self_compose would first raise the grid's size to the power `steps`, exactly, which takes
    minutes for millions of steps, and then allocate whatever its tail bound leaves.
    """
    from dp_accounting.pld import common

    dense = pmf.to_dense_pmf()
    low, high = common.compute_self_convolve_bounds(dense._probs, steps, TRUNCATION)
    if high - low > LARGEST_GRID:
        raise ValueError(f"the composed grid would have {high - low:.2g} cells, more than {LARGEST_GRID:.2g}")
    return dense.self_compose(steps, TRUNCATION)


def _interval(mechanism: SampledGaussian, *, scale: float, cells: int) -> float | Unavailable:
    """Grid spacing: `cells` to the standard deviation of one step's loss, within the limits on memory."""
    q, sigma = mechanism.sampling_rate, mechanism.noise_multiplier
    if q < 1:
        mean, square = StepLoss(q, sigma, True).moments(-math.inf, math.inf)
        deviation = math.sqrt(max(square - mean**2, 0.0))
    else:
        deviation = 1 / sigma
    # The library truncates the noise where its mass is e^-50, ten sigma out.
    exponent = (1 + 20 * sigma) / (2 * sigma**2)
    largest = float(np.logaddexp(math.log1p(-q) if q < 1 else -math.inf, math.log(q) + exponent))
    interval = max(deviation / cells, largest / LARGEST_STEP_GRID)
    if not (math.isfinite(interval) and interval > 0):
        return Unavailable(engine(), f"one step's loss has standard deviation {deviation!r}")
    interval = 2.0 ** math.floor(math.log2(interval))
    if interval > max(scale, 1e-6):
        return Unavailable(engine(), f"its grid would be coarser ({interval:.2g}) than epsilon itself ({scale:.2g})")
    return interval
