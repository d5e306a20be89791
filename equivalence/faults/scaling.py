"""Faults of scale: of the noise, and of the update against it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from samelaw.equivalence.faults.fault import Fault, Kind, Scenario, Table, Trainer, by_mode, patch, tables_of
from samelaw.equivalence.faults.payments import rescale, reshape, scaled, std_of, step_scales


def _linear_std(trainer: Trainer) -> None:
    def change(table: Table, noise: Any, since: np.ndarray, until: int) -> Any:
        total = np.concatenate([[0.0], np.cumsum(step_scales(table))])
        with np.errstate(divide="ignore", invalid="ignore"):
            return scaled(noise, (total[until] - total[since]) / std_of(table, since, until))

    reshape(trainer, change)


def _fourth_root_std(trainer: Trainer) -> None:
    """A root too many: the std of k steps is k^(1/4) times that of one."""
    reshape(trainer, lambda table, noise, since, until: scaled(noise, (until - since).astype(np.float64) ** -0.25))


def _stale_learning_rate(trainer: Trainer) -> None:
    def change(table: Table, noise: Any, since: np.ndarray, until: int) -> Any:
        latest = step_scales(table)[until - 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            return scaled(noise, latest * np.sqrt(until - since) / std_of(table, since, until))

    reshape(trainer, change)


def _batch_size_from_data(trainer: Trainer) -> None:
    def wrap(update: Callable[..., None]) -> Callable[..., None]:
        def updated(calls: Any, pooled: Any, factors: Any, rate: float) -> None:
            drawn = rate * trainer.spec.expected_batch_size / max(1, len(factors))
            update(calls, pooled, factors, float(np.float32(drawn)))

        return updated

    for table in tables_of(trainer):
        patch(table, "update", wrap)


_SCALE = by_mode("E1, L1", "E2, L1", "L1, L1 with key")

FAULTS = (
    Fault(
        "linear-std",
        Kind.SCALING,
        "The std of a settlement grows with the steps owed instead of their square root.",
        _SCALE,
        _linear_std,
    ),
    Fault(
        "fourth-root-std",
        Kind.SCALING,
        "The std of a settlement grows with the fourth root of the steps owed: a square root too many.",
        _SCALE,
        _fourth_root_std,
    ),
    Fault(
        "stale-learning-rate",
        Kind.SCALING,
        "Past steps are paid at today's learning rate instead of their own.",
        _SCALE,
        _stale_learning_rate,
        seen="the public LazyDP code",
    ),
    Fault(
        "clip-norm-missing",
        Kind.SCALING,
        "The noise has std sigma instead of sigma times the clip norm.",
        _SCALE,
        lambda trainer: rescale(trainer, 1 / trainer.spec.clip_norm),
    ),
    Fault(
        "clip-norm-squared",
        Kind.SCALING,
        "The noise has std sigma times the clip norm squared.",
        _SCALE,
        lambda trainer: rescale(trainer, trainer.spec.clip_norm),
    ),
    Fault(
        "batch-size-missing",
        Kind.SCALING,
        "The noise is not divided by the expected batch size.",
        _SCALE,
        lambda trainer: rescale(trainer, trainer.spec.expected_batch_size),
    ),
    Fault(
        "batch-size-squared",
        Kind.SCALING,
        "The noise is divided by the expected batch size twice.",
        _SCALE,
        lambda trainer: rescale(trainer, 1 / trainer.spec.expected_batch_size),
    ),
    Fault(
        "scale-1-percent-low",
        Kind.SCALING,
        "The noise is 1 % too small.",
        by_mode("L1", "L1", "L1"),
        partial(rescale, factor=0.99),
        scenario=Scenario.WIDE,
    ),
    Fault(
        "scale-half-percent-low",
        Kind.SCALING,
        "The noise is 0.5 % too small.",
        by_mode("L1", "L1", "L1"),
        partial(rescale, factor=0.995),
        scenario=Scenario.WIDE,
    ),
    Fault(
        "batch-size-from-data",
        Kind.SCALING,
        "The update divides by the number of examples drawn, which is private, not by the constant B.",
        by_mode("E1", "E2", "L1 with key"),  # an update of the wrong size drowns in the noise of so small a run
        _batch_size_from_data,
        seen="reported of Opacus (issues 571 and 819)",
    ),
)
