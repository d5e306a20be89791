"""Evidence that may be looked at after every batch, and merged across tests that depend on each other: e-values.

An e-value is a number >= 0 whose mean is at most 1 for a correct trainer. An *e-process* is a sequence of them, one for
each batch of samples so far, which is an e-value at every stopping time too: by Ville's inequality

    P(it ever reaches 1 / alpha) <= alpha

however often somebody looks, and whatever they decide from it. A p-value allows neither. Use these for a stream of runs
(a trainer that is run again and again), for a stop as soon as it is clear, and to merge tests whose dependence nobody
knows; use the tests of laws/ and Holm for one suite of a fixed size: they are stronger there.

    stream = Together(ScaleEProcess(), MeanEProcess())
    for noise in runs:
        stream.update(noise)
        if stream.rejected(1e-9):
            break

Each process here is a ratio of likelihoods, mixed over alternatives by a fixed prior: a martingale of mean 1 under the
null, in closed form. Merging: an average of e-values is one, whatever their dependence; so is a product of independent
ones, or of ones each valid given the earlier.

Sources: Ville (1939); Robbins, "Statistical methods related to the law of the iterated logarithm" (1970), for the
mixtures; Vovk and Wang, "E-values: calibration, combination, and applications", Annals of Statistics 49 (2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64
from scipy import special

from samelaw.contract.errors import InputError
from samelaw.equivalence.laws import check_rate

_SCALE_SHAPES = (8.0, 200.0, 5000.0, 125_000.0)  # prior std of the precision: 35 %, 7 %, 1.4 %, 0.28 %
_EFFECTS = (0.5, 0.1, 0.02, 0.004)  # prior std of a mean, or of a slope
_COUNT_SIZES = (10.0, 1e3, 1e5)  # prior "examples seen" of a rate


@runtime_checkable
class EProcess(Protocol):
    """What monitors a stream: `update` with each batch; `rejected` at any time."""

    @property
    def log_e_value(self) -> float:
        """ln of the present e-value."""
        ...

    @property
    def highest_log_e_value(self) -> float:
        """ln of the highest e-value so far: what `rejected` looks at."""
        ...

    def rejected(self, alpha: float) -> bool:
        """Whether the null was ever refused at level alpha; it stays so."""
        ...


class _Tracked:
    """Keeps the present and the highest e-value. Samples that are not finite are refused for good."""

    def __init__(self) -> None:
        self.samples = 0
        self.log_e_value = 0.0
        self.highest_log_e_value = 0.0

    @property
    def e_value(self) -> float:
        return _exp(self.log_e_value)

    def rejected(self, alpha: float) -> bool:
        """Whether the e-process ever reached 1 / alpha: of probability <= alpha for a correct trainer.

        Raises:
            InputError: alpha is not in (0, 0.5].
        """
        check_rate("alpha", alpha, type(self).__name__)
        return self.highest_log_e_value >= -math.log(alpha)

    def _note(self, log_e_value: float, samples: int) -> float:
        self.samples += samples
        broken = self.log_e_value == math.inf or math.isnan(log_e_value)
        self.log_e_value = math.inf if broken else float(log_e_value)
        self.highest_log_e_value = max(self.highest_log_e_value, self.log_e_value)
        return self.e_value

    def __repr__(self) -> str:
        return f"{type(self).__name__}(samples={self.samples}, log_e_value={self.log_e_value:.4g})"


class ScaleEProcess(_Tracked):
    """Is the std of a stream of normals 1? The mean is known to be 0.

    For precision tau ~ Gamma(a, a) the mixed likelihood ratio of n samples with sum of squares S is
    a^a Gamma(a + n/2) / (Gamma(a) (a + S/2)^(a + n/2)) e^(S/2); averaged over several a, so that both a std far off and
    one off by half a percent are noticed near the best possible time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._square = 0.0

    def update(self, samples: Float64[np.ndarray, "*n"]) -> float:
        """Take in more samples; the e-value of all so far."""
        self._square += float(np.vdot(samples, samples))
        n, half = self.samples + samples.size, self._square / 2
        logs = (
            [
                a * math.log(a)
                - special.gammaln(a)
                + special.gammaln(a + n / 2)
                - (a + n / 2) * math.log(a + half)
                + half
                for a in _SCALE_SHAPES
            ]
            if math.isfinite(half)
            else [math.inf]
        )
        return self._note(_log_average(logs), samples.size)


class MeanEProcess(_Tracked):
    """Is the mean of a stream of normals 0? Their std is known to be 1.

    For a mean ~ N(0, r^2): (1 + n r^2)^(-1/2) exp(r^2 T^2 / (2 (1 + n r^2))), T the sum; averaged over several r.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sum = 0.0

    def update(self, samples: Float64[np.ndarray, "*n"]) -> float:
        """Take in more samples; the e-value of all so far."""
        self._sum += float(samples.sum())
        log_e = _log_slope(self._sum, float(self.samples + samples.size))
        return self._note(log_e, samples.size)


class CorrelationEProcess(_Tracked):
    """Are the second values of pairs of normals independent of the first, with mean 0 and std 1?

    Given the first, the second is N(slope * first, 1) under the alternative, with slope ~ N(0, r^2). Pairs may depend
    on each other through their first values: only the second must be fresh.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cross = self._square = 0.0

    def update(self, first: Float64[np.ndarray, "*n"], second: Float64[np.ndarray, "*m"]) -> float:
        """Take in more pairs; the e-value of all so far.

        Raises:
            InputError: the two differ in shape.
        """
        if first.shape != second.shape:
            raise InputError(
                f"first and second must have one shape, got {first.shape} and {second.shape} in CorrelationEProcess: "
                "value i of one is paired with value i of the other"
            )
        self._cross += float(np.vdot(first, second))
        self._square += float(np.vdot(first, first))
        return self._note(_log_slope(self._cross, self._square), first.size)


class CountEProcess(_Tracked):
    """Does an event happen with a known probability? For tails, collisions, and samplers.

    The mixture is over a rate ~ Beta(s rate, s (1 - rate)), averaged over several s.

    Raises:
        InputError: rate is not in (0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 < rate < 1:
            raise InputError(f"rate must be in (0, 1), got {rate!r} in CountEProcess: an event of a known probability")
        self.rate = rate
        self._count = 0

    def update(self, events: int, trials: int) -> float:
        """Take in more trials; the e-value of all so far.

        Raises:
            InputError: not 0 <= events <= trials.
        """
        if not 0 <= events <= trials:
            raise InputError(f"events must be in 0..trials, got {events} of {trials} in CountEProcess.update")
        self._count += events
        hit, miss = self._count, self.samples + trials - self._count
        null = hit * math.log(self.rate) + miss * math.log1p(-self.rate)
        logs = [
            float(special.betaln(s * self.rate + hit, s * (1 - self.rate) + miss))
            - float(special.betaln(s * self.rate, s * (1 - self.rate)))
            - null
            for s in _COUNT_SIZES
        ]
        return self._note(_log_average(logs), trials)


class Together(_Tracked):
    """The average of several e-processes of one stream: an e-process, however they depend on each other.

    Args:
        parts: fresh processes, each updated with the same samples; or none: then hand e-processes of your own to
            `note` after updating them.
    """

    def __init__(self, *parts: ScaleEProcess | MeanEProcess) -> None:
        super().__init__()
        self.parts = parts

    def update(self, samples: Float64[np.ndarray, "*n"]) -> float:
        """Take in more samples; the average e-value of all so far."""
        for part in self.parts:
            part.update(samples)
        return self.note(self.parts, samples.size)

    def note(self, parts: Sequence[EProcess], samples: int = 0) -> float:
        """The average of processes that were updated elsewhere; always the same ones.

        Raises:
            InputError: no parts.
        """
        if not parts:
            raise InputError("parts must hold at least one e-process, got none in Together")
        return self._note(_log_average([part.log_e_value for part in parts]), samples)


class Batches(_Tracked):
    """The running product of e-values of independent batches (or each valid given the earlier ones)."""

    def update(self, e_value: float) -> float:
        """Take in the e-value of the next batch.

        Raises:
            InputError: it is negative or NaN.
        """
        if not e_value >= 0:
            raise InputError(f"e_value must be >= 0, got {e_value!r} in Batches.update")
        log_e = math.log(e_value) if e_value > 0 else -math.inf
        return self._note(self.log_e_value + log_e if self.log_e_value > -math.inf else -math.inf, 1)


def average(e_values: Sequence[float]) -> float:
    """One e-value from several whose dependence nobody knows.

    Raises:
        InputError: none, or one is negative or NaN.
    """
    return sum(_checked(e_values, "average")) / len(e_values)


def product(e_values: Sequence[float]) -> float:
    """One e-value from several that are independent.

    Raises:
        InputError: none, or one is negative or NaN.
    """
    return math.prod(_checked(e_values, "product"))


def from_p_value(p_value: float, *, power: float = 0.5) -> float:
    """An e-value from a p-value: power * p^(power - 1), which has mean 1 for a uniform p.

    The price of a common currency: p = 1e-9 becomes 1.6e4. Fix `power` before looking.

    Raises:
        InputError: p_value is not in [0, 1], or power not in (0, 1).
    """
    if not 0 <= p_value <= 1:
        raise InputError(f"p_value must be in [0, 1], got {p_value!r} in from_p_value")
    if not 0 < power < 1:
        raise InputError(f"power must be in (0, 1), got {power!r} in from_p_value; 0.5 is the usual one")
    return math.inf if p_value == 0 else power * p_value ** (power - 1)


def to_p_value(e_value: float) -> float:
    """A p-value from an e-value, by Markov's inequality: min(1, 1 / e)."""
    return 1.0 if e_value <= 1 else 1 / e_value


def _log_slope(cross: float, square: float) -> float:
    """ln of the mixed likelihood ratio of N(slope x, 1) against N(0, 1): cross = sum x y, square = sum x^2."""
    if not (math.isfinite(cross) and math.isfinite(square)):
        return math.inf
    widths = [(r * r, 1 + r * r * square) for r in _EFFECTS]
    return _log_average([v * cross**2 / (2 * width) - 0.5 * math.log(width) for v, width in widths])


def _log_average(logs: Sequence[float]) -> float:
    most = max(logs)
    if math.isinf(most):
        return most
    return most + math.log(sum(math.exp(log - most) for log in logs) / len(logs))


def _exp(log_value: float) -> float:
    return math.exp(log_value) if log_value < 700 else math.inf


def _checked(e_values: Sequence[float], place: str) -> Sequence[float]:
    if not e_values or not all(e >= 0 for e in e_values):
        raise InputError(f"e_values must be one or more numbers >= 0, got {list(e_values)!r} in {place}")
    return e_values
