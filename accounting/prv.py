"""prv-accountant, with its grid bounded beforehand and its inputs computed without cancellation.

The algorithm and its error theorem are those of Gopi, Lee and Wutschitz (arXiv 2106.02848, theorem 5.5), in the
package's own domain, discretiser, composer and search. Three things are ours: the masses and the mean of one step
(losses.py), the reach of the grid (rdp.py), and the other direction: the package composes removal alone, and addition
is not known to be the easier one under composition.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from samelaw.accounting import rdp
from samelaw.accounting.interval import Interval, Unavailable
from samelaw.accounting.losses import StepLoss
from samelaw.accounting.mechanism import SampledGaussian

LARGEST_GRID = 1 << 20
"""Cells of the grid: a composition then takes a few seconds and a quarter of a gigabyte."""
UNIT = 2.0**-63
"""Relative error of one operation in the long doubles of the composition."""


@dataclass(frozen=True)
class Grid:
    """A grid chosen before anything is computed on it.

    Attributes:
        reach: losses from -reach to reach are kept.
        mesh: distance between two cells.
        error: the error of discretising in epsilon, exceeded with probability below delta_error.
        delta_error: what truncating and that exception may add to delta.
    """

    reach: float
    mesh: float
    error: float
    delta_error: float

    @property
    def cells(self) -> int:
        return math.ceil(2 * self.reach / self.mesh)


class PrvComposer:
    """Both directions of one step on a grid that is good for up to `mechanism.steps` of them.

    Args:
        mechanism: 0 < q < 1, steps >= 1.
        delta: in (0, 1).
        grid: from `plan`.

    Raises:
        PrvRefusal: the package does not accept the step on this grid.
    """

    def __init__(self, mechanism: SampledGaussian, delta: float, grid: Grid) -> None:
        domain_type, discretiser, composer = _package()
        self.mechanism, self.delta, self.grid = mechanism, delta, grid
        self._directions: list[Any] = []
        with _refusals():
            for removal in (True, False):
                domain = domain_type.create_aligned(-grid.reach, grid.reach, grid.mesh)
                loss = _Truncated(StepLoss(mechanism.sampling_rate, mechanism.noise_multiplier, removal), domain)
                self._directions.append(composer([discretiser().discretise(loss, domain)]))

    def interval(self, steps: int) -> Interval | Unavailable:
        """Epsilon after `steps` of the steps: each bound is the larger one of the two directions."""
        assert 1 <= steps <= self.mechanism.steps
        try:
            with _refusals():
                found = [self._direction(direction, steps) for direction in self._directions]
        except PrvRefusal as cause:
            return Unavailable(engine(), str(cause))
        lower, estimate, upper = (max(0.0, *values) for values in zip(*found, strict=True))
        if not (math.isfinite(upper) and lower <= estimate <= upper):
            return Unavailable(engine(), f"it returned no bracket: {lower!r}, {estimate!r}, {upper!r}")
        return Interval(lower, estimate, upper, engine(), f"{self.grid.cells} cells")

    def _direction(self, direction: Any, steps: int) -> tuple[float, float, float]:
        """(lower, estimate, upper) of one direction; the first two may be negative."""
        composed = direction.compute_composition([steps])
        rounding = _rounding(math.sqrt(composed.pmf.size) * float(np.linalg.norm(composed.pmf.astype(float))), steps)
        if rounding > self.delta / 2:
            raise PrvRefusal(_too_coarse(rounding, self.delta))
        return composed.compute_epsilon(self.delta, self.grid.delta_error + rounding, self.grid.error)


class PrvRefusal(ArithmeticError):
    """The package raised, or its answer would not be sound."""


def engine() -> str:
    return f"prv-accountant {metadata.version('prv-accountant')}"


def prv_interval(mechanism: SampledGaussian, delta: float, *, scale: float) -> Interval | Unavailable:
    """Epsilon of a composition with 0 < q < 1, in an interval about 1 % of `scale` wide, or why there is none.

    Args:
        scale: an upper bound on epsilon, from which the precision is chosen.
    """
    composer = prv_composer(mechanism, delta, scale=scale)
    return composer if isinstance(composer, Unavailable) else composer.interval(mechanism.steps)


def prv_composer(
    mechanism: SampledGaussian, delta: float, *, scale: float, cells: int | None = None
) -> PrvComposer | Unavailable:
    """A composer within `cells` cells (LARGEST_GRID by default), or why there is none."""
    grid = plan(mechanism, delta, scale=scale, cells=cells)
    if isinstance(grid, Unavailable):
        return grid
    try:
        return PrvComposer(mechanism, delta, grid)
    except PrvRefusal as cause:
        return Unavailable(engine(), str(cause))


def plan(mechanism: SampledGaussian, delta: float, *, scale: float, cells: int | None = None) -> Grid | Unavailable:
    """The finest useful grid within `cells`: an error of scale / 200, or more where that needs too many."""
    if np.finfo(np.longdouble).eps > 2 * UNIT:
        return Unavailable(engine(), "long doubles have no more than 53 bits on this machine")
    delta_error = delta / 1000
    spread = math.sqrt(mechanism.steps / 2 * math.log(12 / delta_error))  # theorem 5.5: mesh = error / spread
    reach = rdp.reach(mechanism, delta_error / 8 / mechanism.steps)
    if not math.isfinite(reach):
        return Unavailable(engine(), "the bound on the privacy loss is not finite")
    cells = LARGEST_GRID if cells is None else cells
    # Twice the error is added to the reach, so cells * error = 2 * (reach + 2 * error) * spread.
    finest = 2 * reach * spread / (cells - 4 * spread) if cells > 4 * spread else math.inf
    error, coarsest = max(min(0.1, max(1e-4, scale / 200)), finest), max(0.1, scale / 10)
    if error > coarsest:
        needed = 2 * (reach + 2 * coarsest) * spread / coarsest
        return Unavailable(engine(), f"a useful grid would need {needed:.2g} cells, more than {cells:.2g}")
    reach += 2 * error
    # Known beforehand but for the shape of the composed law, which is about normal.
    mean, square = StepLoss(mechanism.sampling_rate, mechanism.noise_multiplier, True).moments(-math.inf, math.inf)
    deviation = math.sqrt(mechanism.steps * max(square - mean**2, 0.0))
    rounding = _rounding(math.sqrt(2 * reach / (2 * math.sqrt(math.pi) * max(deviation, 1e-300))), mechanism.steps)
    if rounding > delta:
        return Unavailable(engine(), _too_coarse(rounding, delta))
    return Grid(reach, error / spread, error, delta_error)


def _rounding(spread: float, steps: int) -> float:
    """A bound on the total error of the composed masses from rounding.

    Every frequency of the transform is off by a few units (64 allows for the levels of the transform and the power's
    own rounding), so its steps-th power by 64 * steps units; Parseval turns the sum of squares of those into that of
    the masses' errors, and Cauchy-Schwarz that into their sum, at most `spread` = sqrt(cells) * (sum of squared
    masses)^(1/2).
    """
    return 64 * steps * UNIT * spread


def _too_coarse(rounding: float, delta: float) -> str:
    return f"rounding could move delta by {rounding:.1g}, which is too much for delta {delta:.1g}"


class _Truncated:
    """One step's loss given that it lies in the domain, in the form that prv-accountant's discretiser asks for."""

    pm_inf = 0.0

    def __init__(self, loss: StepLoss, domain: Any) -> None:
        self.loss = loss
        self.low, self.high = float(domain.t_min()), float(domain.t_max())
        self.kept = float(loss.mass(np.array([self.low]), np.array([self.high]))[0])

    def probability(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        low, high = (np.clip(np.asarray(v, dtype=np.float64), self.low, self.high) for v in (low, high))
        return (self.loss.mass(low, high) / self.kept).astype(np.longdouble)

    def mean(self) -> float:
        return self.loss.moments(self.low, self.high)[0]


def _package() -> tuple[Any, Any, Any]:
    """The package's domain, discretiser and composer; it is not typed well enough to check calls against."""
    from prv_accountant.composers import Fourier
    from prv_accountant.discretisers import CellCentred
    from prv_accountant.domain import Domain

    return Domain, CellCentred, Fourier


@contextmanager
def _refusals() -> Generator[None]:
    """Silence the package's floating-point warnings, and turn what it raises into PrvRefusal."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    except PrvRefusal:
        raise
    except (ValueError, RuntimeError, IndexError, AssertionError, ArithmeticError) as cause:
        raise PrvRefusal(f"it refused: {cause}") from cause
