"""Lazy DP-SGD in plain NumPy: the eager trainer with noise paid when a row is read, and at release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from samelaw.contract.errors import ResumeError
from samelaw.contract.ledger import Ledger
from samelaw.contract.noise import NoiseStream
from samelaw.contract.oracle import GradientOracle
from samelaw.contract.run import Release
from samelaw.contract.spec import PrivacySpec
from samelaw.contract.trace import Batch, GradientSums
from samelaw.reference.eager import EagerTrainer, Found
from samelaw.reference.lazy_schedule import Model, lazy_step, release, settle_rows
from samelaw.reference.rows import History, Rows, Values, Weights


@dataclass(frozen=True, repr=False)
class Pause:
    """A run between two steps. Private: the weights owe noise, and the history shows who was read when."""

    step: int
    weights: Mapping[str, Float32[np.ndarray, "_rows _dim"]]
    history: Mapping[str, Int64[np.ndarray, "_rows"]]
    dense: Mapping[str, np.ndarray]
    ledger: Ledger

    def __repr__(self) -> str:
        return f"Pause(step={self.step}, tables={len(self.weights)})"


class LazyTrainer(EagerTrainer):
    """The definition of the lazy trainer, as EagerTrainer is of the eager one.

    Both call lazy_schedule.py, whose eager and lazy steps docs/proofs.md proves the same; the trainers are tested.

    Guarantees:
        E1  In replay: the bits of an EagerTrainer everywhere: every read, released table and dense parameter.
        R1  Weights leave through release(), with every row settled.
        R2  A run that is paused after any step and resumed in another trainer goes on as if it had not been.

    Source: LazyDP, arXiv 2404.08847.
    """

    def __init__(
        self,
        tables: Mapping[str, np.ndarray],
        oracle: GradientOracle,
        spec: PrivacySpec,
        stream: NoiseStream,
        *,
        examples: int,
        padding: Mapping[str, int] = {},
        ledger: Ledger | None = None,
        record: bool = False,
    ) -> None:
        self._history = History({name: np.zeros(len(weights), dtype=np.int64) for name, weights in tables.items()})
        self._announced: Rows = {}
        super().__init__(tables, oracle, spec, stream, examples=examples, padding=padding, ledger=ledger, record=record)

    def _make_step(self, step: int, model: Model[GradientSums, Found]) -> Found:
        ahead, self._announced = self._announced, {}
        return lazy_step(self._weights, self._history, step, model, ahead, self._updated, self._settled)

    def announce(self, rows: Mapping[str, Int64[np.ndarray, "_rows"]]) -> None:
        """Rows to settle right after the coming step: those of the batch after it, say."""
        self._announced = dict(rows)

    @property
    def tables(self) -> dict[str, Float32[np.ndarray, "_rows _dim"]]:
        """The weights as they would be if every row paid now, as copies; what is owed stays owed."""
        weights, history = Weights(self._tables), History(self._history.arrays)
        release(weights, history, self.step_index, self._everyone, self._settled)
        return weights.arrays

    def gradient_sums(self, batch: Batch) -> GradientSums:
        """Clipped sums of `batch` at the present weights; changes nothing, not even what rows owe."""
        weights, history = Weights(self._tables), History(self._history.arrays)

        def read(asked: Rows) -> Values:
            settle_rows(weights, history, self.step_index, asked, self._settled)
            return weights[asked]

        return self._sums_and_losses(batch, read)[0]

    def settle(self) -> None:
        """Pay everything that every row owes for the steps so far."""
        release(self._weights, self._history, self.step_index, self._everyone, self._settled)

    def release(self) -> Release:
        """Settle every row, then publish."""
        self.settle()
        return super().release()

    def pause(self) -> Pause:
        """Everything that a fresh trainer of the same run needs to go on, as copies."""
        self.ledger.append("checkpoint", {"step": self.step_index})
        weights, history = Weights(self._tables).arrays, History(self._history.arrays).arrays
        return Pause(self.step_index, weights, history, self._dense(), self.ledger)

    def resume(self, pause: Pause) -> None:
        """Go on from a pause of this run.

        Raises:
            ResumeError: this trainer has made a step already, or the pause is of another law, key or model.
        """
        mine, theirs = self.ledger.entries[0].data, pause.ledger.entries[0].data
        if self.step_index != 0 or mine != theirs:
            raise ResumeError(
                f"a pause at step {pause.step} was handed to a trainer at step {self.step_index}"
                + (" of another run" if mine != theirs else "")
                + ": resume in a fresh trainer with the same law, key, tables and model"
            )
        self._weights, self._history = Weights(pause.weights), History(pause.history)
        self._tables = self._weights.arrays
        for name, value in pause.dense.items():
            self.oracle.dense[name][...] = value
        last = pause.ledger.entries[-1]
        self.ledger = pause.ledger
        self.ledger.append("resume", {"step": pause.step, "seq": last.seq, "head": last.hash})
        self.step_index = pause.step
