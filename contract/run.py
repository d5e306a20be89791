"""What a trainer hands over: transcripts for comparison (private) and releases (public)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from samelaw.contract.trace import Batch, GradientSums


@dataclass(frozen=True)
class Release:
    """Settled weights, fit to leave: every row has all the noise that the ledger charges for.

    Attributes:
        tables: name -> (rows, dim) float32.
        dense: name -> float32 array.
        step: steps that were run; every row is settled through it.
        ledger_head: hash of the ledger entry that records this release.
    """

    tables: Mapping[str, Float32[np.ndarray, "_rows _dim"]]
    dense: Mapping[str, np.ndarray]
    step: int
    ledger_head: str


@dataclass(repr=False)
class StepRecord:
    """What one step read and added. Private: for tests and replays, never for a manifest.

    Attributes:
        step: 0-based.
        examples: number of examples drawn.
        rows: per table, distinct rows read, ascending.
        reads: per table, the settled values of those rows before the update, (len(rows), dim) float32.
        sums: per table, the integer gradient sum of those rows.
        dense_sum: the clipped dense sum, float32, before noise.
        loss: mean loss over the drawn examples, or None for an empty batch.
    """

    step: int
    examples: int
    rows: dict[str, Int64[np.ndarray, "_rows"]]
    reads: dict[str, Float32[np.ndarray, "_rows _dim"]]
    sums: dict[str, Int64[np.ndarray, "_rows _dim"]]
    dense_sum: dict[str, np.ndarray]
    loss: float | None

    def __repr__(self) -> str:
        return f"StepRecord(step={self.step}, tables={len(self.rows)})"


@dataclass(repr=False)
class Transcript:
    """A whole run as the testbed compares it: initial and final weights, and every step's record."""

    initial_tables: dict[str, np.ndarray]
    initial_dense: dict[str, np.ndarray]
    steps: list[StepRecord] = field(default_factory=list)
    final_tables: dict[str, np.ndarray] = field(default_factory=dict)
    final_dense: dict[str, np.ndarray] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Transcript(tables={len(self.initial_tables)}, steps={len(self.steps)})"


@runtime_checkable
class Trainer(Protocol):
    """What the testbed needs of a trainer: take a drawn batch, publish at the end, and answer one probe."""

    @property
    def step_index(self) -> int:
        """Steps run so far."""
        ...

    def train_batch(self, batch: Batch) -> float | None:
        """Run one step on exactly these examples (possibly none); returns the mean loss, None when empty."""
        ...

    def gradient_sums(self, batch: Batch) -> GradientSums:
        """Clipped integer sums for `batch` at the current weights; changes nothing."""
        ...

    def release(self) -> Release:
        """Settle every row and publish."""
        ...
