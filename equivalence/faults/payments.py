"""Ways to patch what a table pays: the seams `pay`, `settle_rows` and the clock of its plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from samelaw.contract.schedule import NoiseClock
from samelaw.equivalence.faults.fault import Table, Trainer, patch, seam, tables_of
from samelaw.equivalence.faults.redrawn import span_std

Pay = Callable[[Any, Any, int], None]
"""pay(rows, since, until) of a table."""


def repay(trainer: Trainer, wrap: Callable[[Table, Pay], Pay]) -> None:
    """Replace every table's `pay` by wrap(table, pay)."""

    def of(table: Table) -> Callable[[Pay], Pay]:
        return lambda pay: wrap(table, pay)

    for table in tables_of(trainer):
        patch(table, "pay", of(table))


def reshape(trainer: Trainer, change: Callable[[Table, Any, np.ndarray, int], Any]) -> None:
    """Let every table pay correctly, then replace what was subtracted by change(table, paid, since, until)."""

    def wrap(table: Table, pay: Pay) -> Pay:
        def paid(rows: Any, since: Any, until: int) -> None:
            before = table.weights[rows]
            pay(rows, since, until)
            noise = before - table.weights[rows]
            table.weights[rows] = before - change(table, noise, since.cpu().numpy(), until)

        return paid

    repay(trainer, wrap)


def rescale(trainer: Trainer, factor: float) -> None:
    """All noise, of tables and dense parameters, times a factor."""
    for table in tables_of(trainer):
        plan = seam(table, "plan")
        table.plan = replace(plan, clock=_scaled_clock(plan.clock, factor))

    def wrap(pay_dense: Callable[[int], None]) -> Callable[[int], None]:
        def paid(step: int) -> None:
            before = {name: value.detach().clone() for name, value in trainer.dense.items()}
            pay_dense(step)
            for name, value in trainer.dense.items():
                value.detach().copy_(before[name] - (before[name] - value.detach()) * factor)

        return paid

    patch(trainer, "pay_dense", wrap)


def _scaled_clock(clock: NoiseClock, factor: float) -> NoiseClock:
    scales = (clock.scales.astype(np.float64) * factor).astype(np.float32)
    exponent = clock.exponent + max(0, math.ceil(math.log2(factor)))  # the whole run must go on fitting in 62 bits
    ticks = np.ceil(np.ldexp(scales.astype(np.float64) ** 2, -2 * exponent)).astype(np.int64)
    lengths = np.diff(np.append(clock.starts, clock.steps))
    elapsed = np.concatenate([[0], np.cumsum(ticks * lengths)[:-1]]).astype(np.int64)
    return replace(clock, scales=scales, ticks=ticks, elapsed=elapsed, exponent=exponent)


def mark_settled(trainer: Trainer) -> None:
    """Say of every row that it has paid for all steps so far. (A padding row stands at the end of the run already.)"""
    for table in tables_of(trainer):
        table.history[table.history < trainer.step_index] = trainer.step_index


def pay_nothing(step: int) -> None:
    """In place of `pay_dense`."""


def std_of(table: Table, since: np.ndarray, until: int) -> np.ndarray:
    """std of what each row of the table owes for since, ..., until - 1."""
    return span_std(table.plan.clock, since, until).astype(np.float64)


def step_scales(table: Table) -> np.ndarray:
    """s_t for every step."""
    clock: NoiseClock = table.plan.clock
    lengths = np.diff([*clock.starts.tolist(), clock.steps])
    return np.repeat(clock.scales.astype(np.float64), lengths)


def scaled(noise: Any, factor: np.ndarray) -> Any:
    """Row i of the noise times factor[i]."""
    return noise * noise.new_tensor(np.nan_to_num(factor, nan=1.0, posinf=1.0).tolist())[:, None]


def ids_of(calls: Any) -> Any:
    """Distinct rows that some calls of one table read, as a tensor."""
    rows = np.unique(np.concatenate([call.ids.cpu().numpy() for call in calls]))
    return calls[0].ids.new_tensor(rows)
