"""Rows of tables as values: what is read is a copy, and what is written is copied in.

The schedule (lazy_schedule.py) is proved for tables in which a read cannot change afterwards. These classes make that
so for NumPy arrays: an array is only ever indexed by an array of row numbers, which copies; anything that would give
a view of a table is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64

from samelaw.contract.errors import InputError

Rows: TypeAlias = dict[str, Int64[np.ndarray, "_rows"]]
"""Rows of several tables: table name -> row numbers."""
Counts: TypeAlias = dict[str, Int64[np.ndarray, "_rows"]]
"""A number of steps for each of some rows."""
Values: TypeAlias = dict[str, np.ndarray]
"""The values of some rows, one line a row."""


class Weights:
    """The rows of all tables.

    Args:
        arrays: name -> one line per row, (rows, dim); copied.

    Guarantees:
        V1  What `weights[rows]` returns shares no memory with the table, nor does the table with what is assigned.

    Raises:
        InputError: the row numbers are not an int64 vector (a number or a slice would give a view), or there is no such
            row (a negative number would mean another one).
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = {name: np.array(array, order="C") for name, array in arrays.items()}

    def __getitem__(self, rows: Rows) -> Values:
        return {name: self.arrays[name][_indices(name, ids, self.arrays[name])] for name, ids in rows.items()}

    def __setitem__(self, rows: Rows, values: Values) -> None:
        for name, ids in rows.items():
            self.arrays[name][_indices(name, ids, self.arrays[name])] = values[name]


class History:
    """For every row of every table, the number of steps whose noise it has paid."""

    def __init__(self, arrays: Mapping[str, Int64[np.ndarray, "_rows"]]) -> None:
        self.arrays = {name: np.array(array, dtype=np.int64) for name, array in arrays.items()}

    def __getitem__(self, rows: Rows) -> Counts:
        return {name: self.arrays[name][_indices(name, ids, self.arrays[name])] for name, ids in rows.items()}

    def __setitem__(self, rows: Rows, step: int) -> None:
        for name, ids in rows.items():
            self.arrays[name][_indices(name, ids, self.arrays[name])] = step


def distinct(rows: Rows) -> Rows:
    """Every row once."""
    return {name: np.unique(ids) for name, ids in rows.items()}


def each(rows: Rows, step: int) -> Counts:
    """The same number for every one of the rows."""
    return {name: np.full(ids.shape, step, dtype=np.int64) for name, ids in rows.items()}


def _indices(name: str, ids: object, array: np.ndarray) -> Int64[np.ndarray, "rows"]:
    if not isinstance(ids, np.ndarray) or ids.dtype != np.int64 or ids.ndim != 1:
        raise InputError(
            f"rows of table {name!r} must be an int64 vector of row numbers, got {type(ids).__name__}: indexing by "
            "anything else may give a view, and a view that is kept as a read changes when the table does"
        )
    if ids.size and not (ids.min() >= 0 and ids.max() < len(array)):
        raise InputError(
            f"table {name!r} has rows 0..{len(array) - 1}, got row numbers from {ids.min()} to {ids.max()}"
        )
    return ids
