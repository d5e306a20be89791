"""Kernels whose every draw goes through one function, so that a fault can sit in the generator or in an address.

Compiled kernels draw inside; there is no seam in there that would cost nothing. Here the draws of a settlement, of the
dense noise and of the golden vectors all come from `normals` of the same backend, called from Python, and what is done
with them is docs/arithmetic.md again. With `normals` unaltered no bit changes (tests/test_faults_redrawn.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from samelaw.contract.noise import Purpose
from samelaw.contract.schedule import NoiseClock
from samelaw.contract.spec import Mode
from samelaw.equivalence.faults.fault import Trainer, seam, tables_of

Draw = Callable[..., Any]
"""normals(stream, purpose, table, rows, steps, dim) of a backend: tensors in, a tensor out."""

_BRIDGE_BITS = 30


class Redrawn:
    """A backend with another `normals`; everything else is the backend's own."""

    def __init__(self, kernels: Any, wrap: Callable[[Draw], Draw]) -> None:
        self._kernels = kernels
        self.normals: Draw = wrap(seam(kernels, "normals"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def subtract_noise(self, param: Any, stream: Any, purpose: Any, table: int, step: int, scale: float) -> None:
        row = param.new_tensor([0]).long()
        z = self.normals(stream, purpose, table, row, step, int(param.shape[0]))[0]
        param.copy_(param - z * scale)

    def settle(self, weights: Any, rows: Any, since: Any, until: int, plan: Any) -> None:
        if plan.mode is Mode.REPLAY:
            for step in range(int(since.min()) if len(since) else until, until):
                due = rows[since <= step]
                z = self.normals(plan.stream, Purpose.REPLAY, plan.table, due, step, plan.dim)
                weights[due] = weights[due] - z * float(plan.clock.scale(step))
            return
        owing = since < until
        rows, since = rows[owing], since[owing]
        if plan.mode is Mode.AGGREGATE:
            std = span_std(plan.clock, since.cpu().numpy(), until)
            z = self.normals(plan.stream, Purpose.AGGREGATE, plan.table, rows, until - 1, plan.dim)
            weights[rows] = weights[rows] - z * z.new_tensor(std)[:, None]
            return
        path = Path(self.normals, plan)
        for start in sorted(set(since.tolist())):
            due = rows[since == start]
            weights[due] = weights[due] - weights.new_tensor(path.owed(due, start, until))


def span_std(clock: NoiseClock, since: np.ndarray, until: int) -> np.ndarray:
    """float32 std of what each row owes for the steps since, ..., until - 1."""
    return clock.std(clock.at(np.full_like(since, until)) - clock.at(since))


class Path:
    """The Brownian path of each row in bridge mode, by bisection."""

    def __init__(self, normals: Draw, plan: Any) -> None:
        self._normals, self._plan, self._clock = normals, plan, plan.clock
        self._unit = math.frexp(float(self._clock.scales.max()))[1] - 1 - _BRIDGE_BITS

    def owed(self, rows: Any, since: int, until: int) -> np.ndarray:
        """float32 noise of the steps since, ..., until - 1."""
        horizon = 1 << (self._clock.steps - 1).bit_length()
        whole = np.rint(self._std(float(self._at(horizon))) * self._draw(rows, 0))
        units = self._share(rows, 0, horizon, whole, since, until)
        return np.ldexp(units, self._unit).astype(np.float32)

    def _share(self, rows: Any, low: int, high: int, whole: np.ndarray, since: int, until: int) -> np.ndarray:
        if since <= low and min(high, self._clock.steps) <= until:
            return whole
        if high <= since or until <= low:
            return np.zeros_like(whole)
        middle = (low + high) // 2
        before, after = float(self._at(middle) - self._at(low)), float(self._at(high) - self._at(middle))
        if after == 0 or before == 0:
            left = whole if after == 0 else np.zeros_like(whole)
        else:
            both = before + after
            spread = self._std(before * after / both)
            left = np.rint(whole * (before / both) + self._draw(rows, middle) * spread)
        return self._share(rows, low, middle, left, since, until) + self._share(
            rows, middle, high, whole - left, since, until
        )

    def _at(self, step: int) -> int:
        return int(self._clock.at(np.array([min(step, self._clock.steps)]))[0])

    def _std(self, ticks: float) -> float:
        return math.ldexp(math.sqrt(ticks), self._clock.exponent - self._unit)

    def _draw(self, rows: Any, step: int) -> np.ndarray:
        plan = self._plan
        return self._normals(plan.stream, Purpose.BRIDGE, plan.table, rows, step, plan.dim).cpu().numpy().astype(float)


def redraw(trainer: Trainer, wrap: Callable[[Draw], Draw]) -> None:
    """Let everything that the trainer draws as noise come from wrap(normals)."""
    trainer.kernels = Redrawn(seam(trainer, "kernels"), wrap)
    for table in tables_of(trainer):
        seam(table, "kernels")
        table.kernels = trainer.kernels
