"""What the noise generator's cut tail may add to delta, and what is left to assumption.

A BM32 normal ends at 7.539 sigma (docs/noise.md). Its law is compared with the normal law cut there, which is bounded
here, and with nothing finer: that within the cut, and after rounding to float32, nobody can tell it from the cut normal
is an assumption that the statement spells out. docs/noise.md derives the bounds and says why the rest has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special

from samelaw.accounting.assumptions import Adjacency, Assumptions, Sampler
from samelaw.accounting.mechanism import SampledGaussian
from samelaw.contract.figures import rounded_up

CUT = 7.5391
"""Rounded down: the largest value is 7.53910208."""
TAIL = 2 * float(special.ndtr(-CUT)) * (1 + 1e-9)
"""P(|N| > CUT), rounded up."""

ASSUMPTION = (
    "Within 7.539 sigma, and after rounding to float32, the generator's noise cannot be told from normal noise that is "
    "cut there: its bins of 1/64 sigma are within 7.2e-6 of the normal law's up to 6 sigma, but no bound on delta "
    "follows from that for weights published as floats (docs/noise.md)."
)


@dataclass(frozen=True)
class Generator:
    """What the cut tail adds.

    Attributes:
        delta: to be added to the statement's delta; 1 where the bound says nothing.
        total_variation: of all the normals of the run from normal ones by the density error alone, at most 4e-6 a
            draw: the plain bound, shown because it is useless for any run of ordinary size.
        words: what was bounded, for a reader.
    """

    delta: float
    total_variation: float
    words: str


@dataclass(frozen=True)
class Coordinates:
    """How many numbers of a model get noise: in tables, and in dense parameters."""

    tables: int
    dense: int


@dataclass(frozen=True)
class Drawn:
    """What one run drew noise for, and in which mode."""

    mechanism: SampledGaussian
    mode: str
    size: Coordinates


def cut_tail(runs: Sequence[Drawn], assumptions: Assumptions, *, epsilon: float, delta: float) -> Generator:
    """The cost of the cut for all these runs together, at the epsilon and delta that they have together.

    Dense parameters, and in replay tables too, get one draw a step and coordinate: there a hole in the support shows
    only where an example's shift meets the cut (`hole`). In aggregate and bridge one draw serves a span of steps that
    depends on the data, so all draws count, and the worse side is multiplied by e^epsilon.
    """
    counted = spans = draws = 0
    by_step = 0.0
    for run in runs:
        steps, size = run.mechanism.steps, run.size
        stepwise = size.dense + (size.tables if run.mode == "replay" else 0)
        spans += 0 if run.mode == "replay" else size.tables * (steps if run.mode == "aggregate" else 4 * steps)
        counted += steps * stepwise
        by_step += steps * _per_step(run.mechanism, assumptions, stepwise, epsilon)
        draws += steps * (size.tables + size.dense)
    factor = math.expm1(min(700.0, TAIL * (1 + 1e-9) * (counted + spans)))
    by_span = math.exp(min(700.0, epsilon + math.log(spans) + math.log(TAIL))) if spans else 0.0
    # 1e-9: what the sums and exponentials above may have lost.
    found = min(1.0, ((1 + factor) * (by_step + by_span) + factor * delta) * (1 + 1e-9))
    variation = min(1.0, 4e-6 * draws)
    words = (
        f"The cut of the noise at {CUT} sigma adds at most {rounded_up(found, 2)} to delta"
        + ("; the bound for spans of steps is crude" if spans else "")
        + f". The density error of {draws:.3g} normals is a total variation of at most {variation:.2g}"
        + (", which says nothing" if variation >= 1 else "")
        + ", and is not in delta."
    )
    return Generator(found, variation, words)


def hole(shift: float, coordinates: int) -> float:
    """P(a cut normal vector, moved by `shift` in norm, lies outside the box of the unmoved one); at most.

    A coordinate moved by v leaves with probability f(v) = Phi(CUT) - Phi(CUT - v) = phi(CUT) (v + h(v)), with h(v)/v^2
    increasing for v <= CUT - 1; so the sum over coordinates of norm `shift` is at most
    phi(CUT) sqrt(n) shift + f(shift).
    """
    if coordinates == 0:
        return 0.0
    if shift > CUT - 1:
        return 1.0
    density = math.exp(-(CUT**2) / 2) / math.sqrt(2 * math.pi)
    leaves = float(special.ndtr(-(CUT - shift)) - special.ndtr(-CUT))
    return min(1.0, (density * math.sqrt(coordinates) * shift + leaves) * (1 + 1e-9))


def _per_step(mechanism: SampledGaussian, assumptions: Assumptions, coordinates: int, epsilon: float) -> float:
    """What one step adds to delta where every coordinate has its own draw."""
    q, sigma, k = mechanism.sampling_rate, mechanism.noise_multiplier, assumptions.examples_per_unit
    if assumptions.adjacency is Adjacency.REPLACE_ONE or assumptions.sampler is Sampler.FIXED_SIZE:
        return 2 * hole(2 * k / sigma, coordinates)
    drawn = -math.expm1(k * math.log1p(-q)) if q < 1 else 1.0
    outside = hole(k / sigma, coordinates)
    removal = drawn * outside
    addition = min(outside, math.exp(min(700.0, epsilon)) * drawn * coordinates * TAIL)
    return max(removal, addition)
