"""Gaps of a stated size, planted in the noise that a correct run received: what the power of a suite is measured with.

The run is real; its standardised noise is then changed by exactly the gap, and every test sees the changed noise. (The
faults of the catalogue are planted in the trainer instead: they have no size.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from samelaw.equivalence.received import Received
from samelaw.equivalence.spans import Noise, Spans

Change = Callable[[Noise, np.random.Generator], Noise]


@dataclass(frozen=True)
class Gap:
    """A gap, and the test that is meant to see it.

    Attributes:
        name: in the table's words.
        test: name of the leading test; its `detectable` is the promise.
        size: in the unit of that test; None where the test has no size to compare with.
        change: what happens to the noise of one table.
        idle: planted in idle rows, or in touched ones.
    """

    name: str
    test: str
    size: float | None
    change: Change
    idle: bool = False

    def plant(self, received: Received, *, seed: int) -> Received:
        """The run's noise with the gap; only its own kind of rows is changed."""
        rng = np.random.default_rng(seed)
        kind = received.idle if self.idle else received.touched
        changed = {name: self.change(noise, rng) for name, noise in kind.items()}
        return replace(received, idle=changed) if self.idle else replace(received, touched=changed)

    def promised(self, detectable: float | None) -> bool:
        """Whether a test that claims this detectable gap promises to see this one."""
        if self.size is None or detectable is None:
            return False
        return self.size <= detectable if self.test.startswith("largest") else self.size >= detectable


def gaps(dim: int) -> list[Gap]:
    """The catalogue, for tables of so many columns."""
    touched, idle = "touched rows", "idle rows"
    neighbours = f"correlation, dimensions 1 apart, {touched}"
    found = [
        Gap(f"std {100 * gap:g} % too small, {touched}", f"scale, {touched}", gap, _scaled(1 - gap))
        for gap in (0.005, 0.01, 0.02, 0.05)
    ]
    found.append(Gap(f"std 2 % too small, {idle}", f"scale, {idle}", 0.02, _scaled(0.98), idle=True))
    found += [Gap(f"mean {m:g} std, {touched}", f"mean, {touched}", m, _shifted(m)) for m in (0.01, 0.03)]
    found += [Gap(f"correlation {r:g} of dimensions", neighbours, r, _along_dims(r)) for r in (0.01, 0.03)]
    found += [
        Gap(f"correlation {r:g} of a row's spans", f"correlation, a row's spans 1 apart, {touched}", r, _along_spans(r))
        for r in (0.02, 0.1)
    ]
    found += [Gap(f"tails cut at {cut:g} std", f"largest, {touched}", cut, _cut(cut)) for cut in (5.0, 4.0, 3.0)]
    found += [
        Gap("uniform noise of the same std", f"Anderson-Darling, {touched}", None, _uniform),
        Gap("one row's noise given to another too", f"repeated noise, dimension {dim}", 1.0, _copied),
        Gap("one row unpaid", f"rows left as they were, {touched}, dimension {dim}", 1.0, _unpaid),
        Gap("one row unpaid at release", f"rows left as they were, {idle}, dimension {dim}", 1.0, _unpaid, idle=True),
        Gap("a step too few where two were owed", f"scale, {touched} that owed 2 steps", None, _one_step_less(2)),
        Gap("std grows with steps, not their root", f"scale, {touched}", None, _linear),
    ]
    return found


def _samples(noise: Noise, samples: np.ndarray) -> Noise:
    return Noise(noise.spans, samples)


def _scaled(factor: float) -> Change:
    return lambda noise, rng: _samples(noise, factor * noise.samples)


def _shifted(mean: float) -> Change:
    return lambda noise, rng: _samples(noise, noise.samples + mean)


def _along_dims(r: float) -> Change:
    def change(noise: Noise, rng: np.random.Generator) -> Noise:
        z = noise.samples.copy()
        for d in range(1, z.shape[1]):
            z[:, d] = r * z[:, d - 1] + math.sqrt(1 - r * r) * z[:, d]
        return _samples(noise, z)

    return change


def _along_spans(r: float) -> Change:
    def change(noise: Noise, rng: np.random.Generator) -> Noise:
        order = np.lexsort((noise.spans.until, noise.spans.row))
        z, row = noise.samples[order], noise.spans.row[order]
        for i in range(1, len(z)):
            if row[i] == row[i - 1]:
                z[i] = r * z[i - 1] + math.sqrt(1 - r * r) * z[i]
        mixed = np.empty_like(z)
        mixed[order] = z
        return _samples(noise, mixed)

    return change


def _cut(at: float) -> Change:
    """The normal law conditioned to lie within `at` stds, by quantiles."""
    low = special.ndtr(-at)

    def change(noise: Noise, rng: np.random.Generator) -> Noise:
        return _samples(noise, special.ndtri(low + (1 - 2 * low) * special.ndtr(noise.samples)))

    return change


def _uniform(noise: Noise, rng: np.random.Generator) -> Noise:
    return _samples(noise, math.sqrt(3) * (2 * special.ndtr(noise.samples) - 1))


def _copied(noise: Noise, rng: np.random.Generator) -> Noise:
    if len(noise.spans) < 2:
        return noise
    first, second = rng.choice(len(noise.spans), 2, replace=False)
    z = noise.samples.copy()
    z[second] = z[first]
    return _samples(noise, z)


def _unpaid(noise: Noise, rng: np.random.Generator) -> Noise:
    """A row that got nothing keeps its weights; what is read off it is the dither alone, far below one std."""
    if not len(noise.spans):
        return noise
    i = int(rng.integers(len(noise.spans)))
    z, after = noise.samples.copy(), noise.spans.after.copy()
    z[i], after[i] = 0.0, noise.spans.before[i]
    return Noise(replace(noise.spans, after=after), z)


def _one_step_less(owed: int) -> Change:
    """Spans that owed so many steps got one less, at the same rate."""

    def change(noise: Noise, rng: np.random.Generator) -> Noise:
        short = noise.spans.owed == owed
        return _samples(noise, np.where(short[:, None], math.sqrt((owed - 1) / owed), 1.0) * noise.samples)

    return change


def _linear(noise: Noise, rng: np.random.Generator) -> Noise:
    spans: Spans = noise.spans
    return _samples(noise, np.sqrt(spans.owed)[:, None] * noise.samples)
