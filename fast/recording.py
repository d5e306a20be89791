"""What a recording trainer keeps for the testbed. Private: for tests and comparisons alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, nn

from samelaw.contract.run import StepRecord
from samelaw.fast.kernels import Kernels, LookupCall
from samelaw.fast.tables import LazyTable


def note_step(
    step: int,
    examples: int,
    tables: Mapping[str, LazyTable],
    kernels: Kernels,
    calls: Mapping[str, Sequence[LookupCall]],
    pooled: Mapping[str, Sequence[Tensor]],
    factors: Tensor,
    dense: Mapping[str, Tensor],
    loss: float | None,
) -> StepRecord:
    """One step as it stands just before its update. Tables that no bag touched are left out."""
    record = StepRecord(step, examples, {}, {}, {}, {name: _copy(value) for name, value in dense.items()}, loss)
    for name in calls:
        rows, sums = kernels.gradient_sums(calls[name], pooled[name], factors, tables[name].exponent)
        if rows.shape[0]:
            record.rows[name], record.sums[name] = _copy(rows), _copy(sums)
            record.reads[name] = _copy(tables[name].weights[rows])
    return record


def table_copies(tables: Mapping[str, LazyTable]) -> dict[str, np.ndarray]:
    return {name: _copy(table.weights) for name, table in tables.items()}


def dense_copies(dense: Mapping[str, nn.Parameter]) -> dict[str, np.ndarray]:
    return {name: _copy(parameter) for name, parameter in dense.items()}


def _copy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
