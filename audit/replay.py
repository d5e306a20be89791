"""The run executed again: NumPy reference, escrowed key, recorded gradient sums.

Rows do not depend on one another once the gradient sums are given, so any choice of rows can be executed alone. In
replay mode the eager definition is executed; in bridge and aggregate mode the lazy one, since there the dates of the
settlements, which are those of the reads, decide the rounding or the draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int64

from samelaw.audit.folder import RunFolder
from samelaw.audit.tensors import TensorFile
from samelaw.contract.errors import UntrustedFileError
from samelaw.contract.noise import NoiseStream, Purpose
from samelaw.contract.spec import Mode, PrivacySpec
from samelaw.contract.transcript import RecordedStep
from samelaw.reference.noise import normals
from samelaw.reference.settlement import Settlement

Chosen = Mapping[str, Int64[np.ndarray, "_rows"]]
"""Rows to execute: table -> row numbers, ascending."""


@dataclass(repr=False)
class _Table:
    """The chosen rows of one table on their way through the run."""

    settlement: Settlement
    rows: Int64[np.ndarray, "rows"]
    weights: Float32[np.ndarray, "rows dim"]
    paid: Int64[np.ndarray, "rows"]
    owes: np.ndarray


@dataclass(repr=False)
class Differences:
    """Where the released weights differ from the re-execution.

    Attributes:
        compared: rows of tables that were executed.
        rows: per table, the rows that differ. Private.
        parameters: dense parameters that differ.
    """

    compared: int = 0
    rows: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    parameters: list[str] = field(default_factory=list[str])


class Replay:
    """Re-executes some rows of every table, and all dense parameters.

    Args:
        folder: initial and released weights, in agreement with the ledger.
        spec: the law of the run.
        stream: the escrowed key.
        chosen: which rows.
    """

    def __init__(self, folder: RunFolder, spec: PrivacySpec, stream: NoiseStream, chosen: Chosen) -> None:
        assert folder.initial is not None
        self._spec, self._stream, self._released = spec, stream, folder.weights
        self._tables = {
            name: _table(folder, folder.initial, spec, stream, number, name, chosen[name])
            for number, name in enumerate(folder.table_names())
        }
        self._dense = {name: folder.initial.whole(name) for name in sorted(folder.opened["dense"])}
        self.steps = 0

    def step(self, record: RecordedStep) -> None:
        """Execute one step."""
        step, spec = record.step, self._spec
        assert step == self.steps
        rate = np.float32(spec.schedule.rate(step) / spec.expected_batch_size)
        for name, table in self._tables.items():
            if name in record.rows:
                here, there = _common(table.rows, record.rows[name])
                if spec.mode is not Mode.REPLAY:
                    self._pay(table, here, step)
                gradient = np.ldexp(record.sums[name][there].astype(np.float32), spec.contribution_exponent)
                table.weights[here] = table.weights[here] - rate * gradient
            if spec.mode is Mode.REPLAY:
                self._pay(table, np.flatnonzero(table.owes), step + 1)
        scale = spec.clock.scale(step)
        for number, (name, weights) in enumerate(self._dense.items()):
            if name in record.dense_sum:
                weights = weights - rate * record.dense_sum[name].reshape(weights.shape)
            noise = normals(self._stream, Purpose.DENSE, number, np.zeros(1, np.int64), step, dim=max(1, weights.size))
            self._dense[name] = weights - scale * noise[0, : weights.size].reshape(weights.shape)
        self.steps = step + 1

    def differences(self) -> Differences:
        """Settle everything, and compare with what was released."""
        found = Differences()
        for name, table in self._tables.items():
            self._pay(table, np.flatnonzero(table.owes), self.steps)
            released = self._released.take(f"{name}.weight", table.rows)
            wrong = (released.view(np.uint32) != table.weights.view(np.uint32)).any(axis=1)
            found.compared += table.rows.size
            if wrong.any():
                found.rows[name] = table.rows[wrong].tolist()
        for name, weights in self._dense.items():
            if self._released.whole(name).tobytes() != weights.tobytes():
                found.parameters.append(name)
        return found

    @staticmethod
    def _pay(table: _Table, which: Int64[np.ndarray, "n"], until: int) -> None:
        """Settle some of a table's chosen rows, given by their place among them."""
        due = which[table.owes[which] & (table.paid[which] < until)]
        table.weights[due] = table.settlement.settle(table.weights[due], table.rows[due], table.paid[due], until)
        table.paid[due] = until


def _table(
    folder: RunFolder, initial: TensorFile, spec: PrivacySpec, stream: NoiseStream, number: int, name: str,
    rows: Int64[np.ndarray, "rows"],
) -> _Table:  # fmt: skip
    _, dim, padding = folder.opened["tables"][name]
    owes = np.ones(rows.size, dtype=bool) if padding is None else rows != padding
    settlement = Settlement(spec.mode, stream, spec.clock, table=number, dim=dim)
    return _Table(settlement, rows, initial.take(f"{name}.weight", rows), np.zeros(rows.size, np.int64), owes)


def _common(
    chosen: Int64[np.ndarray, "n"], read: Int64[np.ndarray, "m"]
) -> tuple[Int64[np.ndarray, "k"], Int64[np.ndarray, "k"]]:
    """Places, in both ascending lists, of the rows that are in both."""
    _, here, there = np.intersect1d(chosen, read, assume_unique=True, return_indices=True)
    return here, there


def checked_steps(steps: Iterator[RecordedStep], folder: RunFolder) -> Iterator[RecordedStep]:
    """The steps of a transcript, each with the tables, widths and parameters of the ledger's model.

    Raises:
        UntrustedFileError: a step names a row, table or parameter that the model does not have, or is out of order.
    """
    tables, dense = folder.opened["tables"], folder.opened["dense"]
    sizes = {name: math.prod(shape) for name, shape in dense.items()}
    for number, record in enumerate(steps):
        wrong = [name for name in record.rows if name not in tables or record.sums[name].shape[1] != tables[name][1]]
        wrong += [name for name, rows in record.rows.items() if rows.size and not rows[-1] < tables.get(name, [0])[0]]
        wrong += [name for name, rows in record.rows.items() if (rows == tables.get(name, [0, 0, None])[2]).any()]
        wrong += [name for name, value in record.dense_sum.items() if sizes.get(name) != value.size]
        wrong += [name for name, value in record.dense_sum.items() if not np.isfinite(value).all()]
        if wrong or record.step != number:
            raise UntrustedFileError(
                f"the transcript's step {number} does not fit the ledger's model"
                + (f" at {wrong[0]!r}" if wrong else "")
            )
        yield record


def normals_needed(folder: RunFolder, spec: PrivacySpec, rows: int) -> float:
    """About how many normals it takes to execute `rows` rows of the model's mean width."""
    tables = folder.opened["tables"].values()
    width = sum(size[0] * size[1] for size in tables) / max(1, sum(size[0] for size in tables))
    draws = {Mode.REPLAY: float(spec.schedule.steps), Mode.BRIDGE: 2.0 * math.log2(spec.schedule.steps + 1)}
    return rows * max(width, 16.0) * draws.get(spec.mode, 1.0)


def sampled_rows(folder: RunFolder, rows: int, rng: np.random.Generator) -> dict[str, Int64[np.ndarray, "_rows"]]:
    """`rows` of all rows of all tables, uniformly and without repeats."""
    names = folder.table_names()
    starts = np.cumsum([0, *(folder.opened["tables"][name][0] for name in names)])
    total = int(starts[-1])
    if rows >= total:
        return {name: np.arange(folder.opened["tables"][name][0], dtype=np.int64) for name in names}
    drawn = np.sort(rng.choice(total, size=rows, replace=False))
    return {
        name: (drawn[(drawn >= starts[i]) & (drawn < starts[i + 1])] - starts[i]).astype(np.int64)
        for i, name in enumerate(names)
    }


def most_wrong(total: int, sampled: int, confidence: float) -> int:
    """The largest number of wrong rows among `total` that a clean sample does not rule out at this confidence.

    With m wrong rows, all `sampled` ones are right with probability C(total - m, sampled) / C(total, sampled); this is
    the largest m for which that exceeds 1 - confidence.
    """

    def missed(wrong: int) -> float:
        if wrong > total - sampled:
            return -math.inf
        return (
            math.lgamma(total - wrong + 1) - math.lgamma(total - wrong - sampled + 1)
            - math.lgamma(total + 1) + math.lgamma(total - sampled + 1)
        )  # fmt: skip

    low, high = 0, total - sampled
    while low < high:
        middle = (low + high + 1) // 2
        if missed(middle) > math.log1p(-confidence):
            low = middle
        else:
            high = middle - 1
    return low
