"""Learning rates as declared functions of the step, and the integer clock that adds up the variance they owe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from samelaw.contract.errors import DataDependentRateError, InputError

LARGEST_STEPS = 1 << 31
SMALLEST_SCALE = np.float32(2.0**-126)


@dataclass(frozen=True)
class Schedule:
    """A learning rate that depends on the step alone, piecewise constant.

    Segment i covers steps starts[i] .. starts[i+1]-1 at rates[i]; the last one ends at `steps`.
    A rate that is chosen while looking at the data (a plateau scheduler, an adaptive optimiser) has no place here:
    noise that is drawn later must know the rate that was in force, and the accountant must know it before the run.
    """

    starts: tuple[int, ...]
    rates: tuple[float, ...]
    steps: int
    name: str

    def __post_init__(self) -> None:
        if type(self.steps) is not int or not 1 <= self.steps <= LARGEST_STEPS:
            raise InputError(f"steps must be a whole number in 1..2^31, got {self.steps!r}")
        if len(self.starts) != len(self.rates) or not self.starts or self.starts[0] != 0:
            raise InputError("a schedule needs one rate per segment, and its first segment starts at step 0")
        if any(a >= b for a, b in zip(self.starts, self.starts[1:], strict=False)) or self.starts[-1] >= self.steps:
            raise InputError(f"segment starts must increase and stay below steps={self.steps}")
        if not all(math.isfinite(r) and r >= 0 for r in self.rates) or not any(r > 0 for r in self.rates):
            raise InputError("learning rates must be finite and >= 0, and at least one must be > 0")

    @classmethod
    def constant(cls, rate: float, *, steps: int) -> Schedule:
        return cls((0,), (float(rate),), steps, f"constant({rate!r})")

    @classmethod
    def piecewise(cls, boundaries: Sequence[int], rates: Sequence[float], *, steps: int) -> Schedule:
        """rates[i] from boundaries[i-1] on; `rates` has one more entry than `boundaries`."""
        return cls((0, *boundaries), tuple(map(float, rates)), steps, f"piecewise({list(boundaries)}, {list(rates)})")

    @classmethod
    def from_function(cls, rate_of: Callable[[int], float], *, steps: int, name: str | None = None) -> Schedule:
        """Tabulate rate_of(step) for every step, before training. Up to 2^24 steps.

        Raises:
            DataDependentRateError: two calls with the same step give two rates.
        """
        if not 1 <= steps <= 1 << 24:
            raise InputError(f"a tabulated schedule has 1..2^24 steps, got {steps}; use piecewise for longer runs")
        rates = [float(rate_of(step)) for step in range(steps)]
        for step in {0, steps // 2, steps - 1}:
            if float(rate_of(step)) != rates[step]:
                raise DataDependentRateError(
                    f"learning rate at step {step} was {rates[step]!r} and is now {float(rate_of(step))!r}: "
                    "a schedule must be a function of the step alone. Declare it with Schedule.piecewise or "
                    "Schedule.from_function(pure_function)."
                )
        return cls(tuple(range(steps)), tuple(rates), steps, name or getattr(rate_of, "__name__", "function"))

    @classmethod
    def warmup_cosine(cls, peak: float, *, steps: int, warmup: int = 0, final: float = 0.0) -> Schedule:
        """Linear from 0 over `warmup` steps, then a cosine from `peak` to `final`."""

        def rate_of(step: int) -> float:
            if step < warmup:
                return peak * (step + 1) / warmup
            progress = (step - warmup) / max(1, steps - warmup)
            return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))

        return cls.from_function(
            rate_of, steps=steps, name=f"warmup_cosine({peak!r}, warmup={warmup}, final={final!r})"
        )

    def rate(self, step: int) -> float:
        """The rate of one step, 0 <= step < steps."""
        return self.rates[self.segment(step)]

    def segment(self, step: int) -> int:
        if not 0 <= step < self.steps:
            raise InputError(f"step must be in 0..{self.steps - 1}, got {step}: the schedule ends there")
        return int(np.searchsorted(self._starts, step, side="right")) - 1

    @cached_property
    def _starts(self) -> Int64[np.ndarray, "segments"]:
        return np.array(self.starts, dtype=np.int64)


@dataclass(frozen=True)
class NoiseClock:
    """How much noise variance each step owes, added up in exact integers.

    Step t owes std s_t = fl32(lr_t * sigma * C / B) to every coordinate. Its variance is stored as
    v_t = ceil(s_t^2 / 2^(2k)) ticks with k chosen so that the whole run fits in 62 bits; time on the clock is
    V(t) = v_0 + ... + v_{t-1}, an exact int64. Rounding is upwards, so a row never gets less than it is owed; the
    excess is below one tick a step (docs/modes.md states it).

    Attributes:
        scales: s_t per segment, float32.
        ticks: v_t per segment, int64.
        starts: first step of each segment, int64.
        elapsed: V at each segment's start, int64.
        exponent: k; one tick is a variance of 4^k.
    """

    scales: np.ndarray
    ticks: np.ndarray
    starts: np.ndarray
    elapsed: np.ndarray
    exponent: int
    steps: int

    @classmethod
    def of(
        cls, schedule: Schedule, *, noise_multiplier: float, clip_norm: float, expected_batch_size: float
    ) -> NoiseClock:
        """The clock of a run. noise_multiplier 0 (no noise: tests only) gives a clock that stands still."""
        factor = noise_multiplier * clip_norm / expected_batch_size
        with np.errstate(over="raise"):
            try:
                scales = np.array([rate * factor for rate in schedule.rates], dtype=np.float64).astype(np.float32)
            except FloatingPointError as cause:
                raise InputError("lr * noise_multiplier * clip_norm / expected_batch_size overflows float32") from cause
        if noise_multiplier > 0 and any(
            rate > 0 and scale < SMALLEST_SCALE for rate, scale in zip(schedule.rates, scales, strict=True)
        ):
            raise InputError(
                "lr * noise_multiplier * clip_norm / expected_batch_size must be at least 2^-126 where lr > 0, got "
                f"{min(float(s) for r, s in zip(schedule.rates, scales, strict=True) if r > 0)!r}: it is too small for "
                "float32, and those steps would pay less noise than the ledger says. Rescale the model or set lr to 0"
            )
        squares = scales.astype(np.float64) ** 2  # exact: a float32 has 24 bits
        starts = np.array(schedule.starts, dtype=np.int64)
        lengths = np.diff(np.append(starts, schedule.steps))
        total = math.fsum(float(s) * int(n) for s, n in zip(squares, lengths, strict=True))
        exponent = 0 if total == 0 else math.ceil((math.frexp(total)[1] - 61) / 2)
        # Each of up to 2^31 steps rounds up by less than one tick, so the sum stays below 2^61 + 2^31 < 2^62.
        ticks = np.ceil(np.ldexp(squares, -2 * exponent)).astype(np.int64)
        elapsed = np.concatenate([[0], np.cumsum(ticks * lengths)[:-1]]).astype(np.int64)
        return cls(scales, ticks, starts, elapsed, exponent, schedule.steps)

    def scale(self, step: int) -> np.float32:
        """s_t, the std that step `step` owes to every coordinate."""
        return np.float32(self.scales[self._segment(np.array([step]))[0]])

    def at(self, steps: Int64[np.ndarray, "*n"]) -> Int64[np.ndarray, "*n"]:
        """V(step): ticks owed by all steps before `step`, 0 <= step <= self.steps."""
        steps = np.asarray(steps, dtype=np.int64)
        if steps.size and not (steps.min() >= 0 and steps.max() <= self.steps):
            raise InputError(f"clock steps must be in 0..{self.steps}, got {steps.min()}..{steps.max()}")
        segment = self._segment(steps)
        return np.asarray(self.elapsed[segment] + (steps - self.starts[segment]) * self.ticks[segment])

    def std(self, ticks: np.ndarray) -> np.ndarray:
        """Standard deviation of a span of `ticks`: fl32(2^k * fl64(sqrt(fl64(ticks))))."""
        return np.ldexp(np.sqrt(np.asarray(ticks, dtype=np.int64).astype(np.float64)), self.exponent).astype(np.float32)

    def _segment(self, steps: np.ndarray) -> np.ndarray:
        return np.asarray(np.searchsorted(self.starts, steps, side="right") - 1)
