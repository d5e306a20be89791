"""All calls of one table in one batch, end to end, with what the clipping and the update kernels need of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samelaw.contract.errors import InputError
from samelaw.contract.trace import Pooling
from samelaw.fast.cpu.bags import count_multiplicities, group_by_row, table_size
from samelaw.fast.cpu.checks import array, check_call, check_pooled, check_rows
from samelaw.fast.kernels import LookupCall

NO_WEIGHTS = np.empty(0, np.float32)
IN_ORDER = np.empty(0, np.int64)
BAGS_A_CHUNK = 128


@dataclass(frozen=True, repr=False)
class TableBatch:
    """One table's bags in call order, their gradients, and each bag's distinct rows with multiplicities.

    Attributes:
        offsets: bag i's entries begin at offsets[i]; there are distinct[i] of them.
        example_of_bag: the example of each bag.
        order: the bags sorted by example, call order kept within one; empty when they are in that order already.
        means: whether a bag is pooled by its mean.
        gradients: d(loss)/d(pooled) per bag, float32.
        rows, multiplicity, distinct: see `count_multiplicities`.
    """

    offsets: np.ndarray
    example_of_bag: np.ndarray
    order: np.ndarray
    means: np.ndarray
    gradients: np.ndarray
    rows: np.ndarray
    multiplicity: np.ndarray
    distinct: np.ndarray

    @classmethod
    def of(
        cls, calls: Sequence[LookupCall], pooled: Sequence[Tensor], *, examples: int, table_rows: int | None = None
    ) -> TableBatch:
        """Check the calls and join them.

        Raises:
            InputError: a call or a gradient is malformed, or an id lies outside the table.
        """
        check_pooled(calls, pooled)
        parts = [_Call.of(call, gradient, examples) for call, gradient in zip(calls, pooled, strict=True)]
        if len(parts) == 1:
            joined, order = parts[0], IN_ORDER
        else:
            joined = _join(parts)
            order = np.argsort(joined.example_of_bag, kind="stable")
        # Without a table at hand, 2^48 rows bound what an address can hold.
        check_rows("ids", joined.ids, table_rows if table_rows is not None else 1 << 48)
        rows, multiplicity = np.empty_like(joined.ids), np.empty(joined.ids.shape[0], np.float64)
        distinct = np.empty(joined.example_of_bag.shape[0], np.int64)
        count_multiplicities(joined.ids, joined.offsets, joined.weights, rows, multiplicity, distinct, BAGS_A_CHUNK)
        return cls(
            joined.offsets, joined.example_of_bag, order, joined.means, joined.gradients, rows, multiplicity, distinct
        )

    def groups(self) -> Groups:
        """The entries, linked by row."""
        size = self.rows.shape[0]
        group_of_slot = np.full(table_size(size), -1, np.int64)
        group_row, first, last = (np.empty(size, np.int64) for _ in range(3))
        following, bag_of_entry = np.empty(size, np.int64), np.empty(size, np.int64)
        count = group_by_row(
            self.rows, self.offsets, self.distinct, self.order, group_of_slot, group_row, first, following, last,
            bag_of_entry,
        )  # fmt: skip
        return Groups(count, group_row, first, following, bag_of_entry)


@dataclass(frozen=True, repr=False)
class Groups:
    """See `group_by_row`."""

    count: int
    row: np.ndarray
    first: np.ndarray
    following: np.ndarray
    bag_of_entry: np.ndarray


@dataclass(frozen=True, repr=False)
class _Call:
    ids: np.ndarray
    offsets: np.ndarray
    example_of_bag: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    gradients: np.ndarray

    @classmethod
    def of(cls, call: LookupCall, gradient: Tensor, examples: int) -> _Call:
        ids, offsets, bag_examples, weights = call_arrays(call, examples)
        means = np.full(bag_examples.shape[0], call.pooling is Pooling.MEAN)
        return cls(ids, offsets, bag_examples, weights, means, array("pooled", gradient, torch.float32, 2))


def call_arrays(call: LookupCall, examples: int = -1) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """ids, offsets, example_of_bag and weights (none: empty) of a call, checked against each other."""
    ids = array("ids", call.ids, torch.int64, 1)
    offsets = array("offsets", call.offsets, torch.int64, 1)
    bag_examples = array("example_of_bag", call.example_of_bag, torch.int64, 1)
    check_call(call, ids, offsets, bag_examples, examples)
    if call.weights is None:
        return ids, offsets, bag_examples, NO_WEIGHTS
    weights = array("weights", call.weights, torch.float32, 1)
    if weights.shape != ids.shape or call.pooling is not Pooling.SUM:
        raise InputError(f"weights need sum pooling and one weight per id, got {weights.shape[0]} weights in {call!r}")
    return ids, offsets, bag_examples, weights


def _join(parts: Sequence[_Call]) -> _Call:
    """Calls end to end. If any has weights, the others get ones, which are the same arithmetic."""
    starts = np.cumsum([0, *(p.ids.shape[0] for p in parts)])
    weighted = any(p.weights.shape[0] for p in parts)
    return _Call(
        np.concatenate([p.ids for p in parts]),
        np.concatenate([*(p.offsets[:-1] + start for p, start in zip(parts, starts[:-1], strict=True)), starts[-1:]]),
        np.concatenate([p.example_of_bag for p in parts]),
        np.concatenate([p.weights if p.weights.shape[0] else np.ones(p.ids.shape[0], np.float32) for p in parts])
        if weighted
        else NO_WEIGHTS,
        np.concatenate([p.means for p in parts]),
        np.concatenate([p.gradients for p in parts]),
    )
