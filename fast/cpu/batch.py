"""All calls of one table in one batch, end to end, with what the clipping and the update kernels need of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from samelaw.contract.errors import InputError
from samelaw.contract.noise import ROW_BITS
from samelaw.contract.trace import Pooling
from samelaw.fast.cpu.bags import (
    BAD_ENDS,
    SOUND,
    copy_single_ids,
    count_multiplicities,
    group_by_row,
    inspect_call,
    table_size,
)
from samelaw.fast.cpu.checks import array
from samelaw.fast.cpu.clipping import first_bags
from samelaw.fast.cpu.compiled import Team
from samelaw.fast.kernels import LookupCall

NO_WEIGHTS = np.empty(0, np.float32)
_IN_ORDER = np.empty(0, np.int64)
_NOTE, _BAGS_NOTE = "cpu", "cpu bags"
_LARGEST_BATCH = 1 << 30  # entries are counted in int32
_BAGS_A_CHUNK = 256


@dataclass(repr=False)
class CheckedCall:
    """A call's arrays, found sound.

    Attributes:
        ids, offsets, example_of_bag, weights: as in LookupCall; no weights are an empty array.
        mean: whether bags are pooled by their mean.
        largest_id: -1 when there is none.
        examples: one more than the largest example.
    """

    ids: np.ndarray
    offsets: np.ndarray
    example_of_bag: np.ndarray
    weights: np.ndarray
    mean: bool
    largest_id: int
    examples: int

    @classmethod
    def of(cls, call: LookupCall, rows: int) -> CheckedCall:
        """Check the call against a table of `rows` rows. The arrays are noted on the call, the check is made anew.

        Raises:
            InputError: offsets, examples, weights or ids are not as LookupCall describes them.
        """
        noted: tuple[np.ndarray, ...] | None = call.notes.get(_NOTE)
        if noted is None:
            noted = call.notes[_NOTE] = _arrays(call)
        ids, offsets, owners, weights = noted
        fault, largest_id, largest_example = inspect_call(ids, offsets, owners, rows)
        if fault != SOUND:
            _refuse(call, ids, fault, rows)
        return cls(ids, offsets, owners, weights, call.pooling is Pooling.MEAN, largest_id, largest_example + 1)


def _arrays(call: LookupCall) -> tuple[np.ndarray, ...]:
    """ids, offsets, example_of_bag and weights (none: empty): the memory of the tensors."""
    ids = array("ids", call.ids, torch.int64, 1)
    offsets = array("offsets", call.offsets, torch.int64, 1)
    owners = array("example_of_bag", call.example_of_bag, torch.int64, 1)
    if call.weights is None:
        return ids, offsets, owners, NO_WEIGHTS
    weights = array("weights", call.weights, torch.float32, 1)
    if call.pooling is Pooling.MEAN or weights.shape != ids.shape:
        raise InputError(f"weights need sum pooling and one weight per id, got {weights.size} in {call!r}")
    return ids, offsets, owners, weights


def _refuse(call: LookupCall, ids: np.ndarray, fault: int, rows: int) -> NoReturn:
    if fault == BAD_ENDS:
        raise InputError(
            f"offsets must have one entry more than the {call.bags} bags and rise from 0 to {ids.shape[0]}, "
            f"got {call.offsets.shape[0]} entries in {call!r}"
        )
    if fault < call.bags:
        raise InputError(f"bag {fault} of {call!r} breaks the order: neither offsets nor example_of_bag may fall")
    place = fault - call.bags
    raise InputError(f"ids[{place}] must be in 0..{rows - 1}, got {int(ids[place])}: the table has {rows} rows")


@dataclass(repr=False)
class Bags:
    """The bags of all calls of one table, in call order, with the distinct rows of each. Owns its memory.

    Attributes:
        offsets: bag i's entries begin at offsets[i]; there are distinct[i] of them.
        example_of_bag: the example of each bag.
        means: whether a bag is pooled by its mean.
        order: the bags sorted by example, call order kept within one; empty when they are in that order already.
        rows, multiplicity, distinct: see `count_multiplicities`.
        largest_id: -1 when there is none.
        examples: one more than the largest example.
    """

    offsets: np.ndarray
    example_of_bag: np.ndarray
    means: np.ndarray
    order: np.ndarray
    rows: np.ndarray
    multiplicity: np.ndarray
    distinct: np.ndarray
    largest_id: int
    examples: int

    @classmethod
    def of(cls, calls: Sequence[LookupCall], team: Team) -> Bags:
        """Check the calls, join them, and count.

        Raises:
            InputError: a call is malformed, or the batch is too large.
        """
        checked = [CheckedCall.of(call, 1 << ROW_BITS) for call in calls]
        joined, order = checked[0], _IN_ORDER
        means = np.zeros(joined.example_of_bag.shape[0], np.bool_)
        means[:] = joined.mean
        if len(checked) > 1:
            joined, means = _joined(checked)
            order = np.argsort(joined.example_of_bag, kind="stable")
        size = joined.ids.shape[0]
        if size > _LARGEST_BATCH:
            raise InputError(f"a batch may hold 2^30 ids a table, got {size}: use a smaller sampling rate")
        rows, multiplicity = np.empty(size, np.int64), np.empty(size, np.float64)
        distinct = np.empty(means.shape[0], np.int64)
        single = joined.weights.shape[0] == 0 and size <= distinct.shape[0]
        if not (single and copy_single_ids(joined.ids, joined.offsets, rows, multiplicity, distinct)):
            team.run(
                10 * size, count_multiplicities, joined.ids, joined.offsets, joined.weights, rows, multiplicity,
                distinct, _BAGS_A_CHUNK,
            )  # fmt: skip
        return cls(
            joined.offsets.copy(), joined.example_of_bag.copy(), means, order, rows, multiplicity, distinct,
            joined.largest_id, joined.examples,
        )  # fmt: skip

    def first_of_example(self, examples: int) -> np.ndarray:
        """Where each example's bags begin in `order`, and the number of bags."""
        first = np.empty(examples + 1, np.int64)
        first_bags(self.example_of_bag, self.order, first)
        return first

    @cached_property
    def groups(self) -> Groups:
        """The entries, linked by row."""
        size = self.rows.shape[0]
        slots = table_size(size)
        group_row, slot_row, slot_group = (
            np.empty(size, np.int64),
            np.empty(slots, np.int64),
            np.full(slots, -1, np.int32),
        )
        first, last, following, bag_of_entry = (np.empty(size, np.int32) for _ in range(4))
        count = group_by_row(
            self.rows, self.offsets, self.distinct, self.order, slot_row, slot_group, group_row, first, last,
            following, bag_of_entry,
        )  # fmt: skip
        return Groups(count, group_row[:count], first, following, bag_of_entry)

    def gradients(self, pooled: Sequence[Tensor]) -> np.ndarray:
        """The pooled gradients of all calls, end to end.

        Raises:
            InputError: the gradients do not fit the bags.
        """
        parts = [array("pooled", gradient, torch.float32, 2) for gradient in pooled]
        found = sum(p.shape[0] for p in parts)
        if found != self.distinct.shape[0] or len({p.shape[1] for p in parts}) != 1 or parts[0].shape[1] == 0:
            raise InputError(
                f"pooled gradients must have one row per bag ({self.distinct.shape[0]}) and one number of columns, "
                f"got shapes {[p.shape for p in parts]}"
            )
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(repr=False)
class Groups:
    """See `group_by_row`."""

    count: int
    row: np.ndarray
    first: np.ndarray
    following: np.ndarray
    bag_of_entry: np.ndarray


def bags_of(calls: Sequence[LookupCall], pooled: Sequence[Tensor], examples: int, team: Team) -> Bags:
    """The bags of `calls`, whose examples are 0..examples-1: noted on the first call, for whoever asks next.

    Raises:
        InputError: as `Bags.of`; or an example is out of range; or there is not one gradient per call.
    """
    if not calls or len(calls) != len(pooled):
        raise InputError(f"one pooled gradient per call is needed, got {len(calls)} calls, {len(pooled)} gradients")
    # An in-place change of a tensor raises its version, and makes what was noted stale. Holding on to the other calls
    # keeps their ids from being used again; holding on to the first one would be a cycle.
    state = [item for call in calls for item in _state(call)]
    noted: tuple[list[int], Sequence[LookupCall], Bags] | None = calls[0].notes.get(_BAGS_NOTE)
    if noted is None or noted[0] != state:
        noted = calls[0].notes[_BAGS_NOTE] = state, tuple(calls[1:]), Bags.of(calls, team)
    bags = noted[2]
    if bags.examples > examples:
        raise InputError(f"example_of_bag must stay in 0..{examples - 1}, got {bags.examples - 1}")
    return bags


def _state(call: LookupCall) -> tuple[int, ...]:
    """Changes when the call does; two calls that live at once never have the same."""
    tensors = (call.ids, call.offsets, call.example_of_bag, call.weights)
    return id(call), *(-1 if t is None or t.is_inference() else t._version for t in tensors)


def _joined(calls: Sequence[CheckedCall]) -> tuple[CheckedCall, np.ndarray]:
    """Calls end to end, and whether each bag is a mean. If any has weights, the others get ones: the same numbers."""
    starts = np.cumsum([0, *(c.ids.shape[0] for c in calls)])
    weights = NO_WEIGHTS
    if any(c.weights.shape[0] for c in calls):
        weights = np.concatenate(
            [c.weights if c.weights.shape[0] else np.ones(c.ids.shape[0], np.float32) for c in calls]
        )
    joined = CheckedCall(
        np.concatenate([c.ids for c in calls]),
        np.concatenate([*(c.offsets[:-1] + s for c, s in zip(calls, starts[:-1], strict=True)), starts[-1:]]),
        np.concatenate([c.example_of_bag for c in calls]),
        weights,
        mean=False,
        largest_id=max(c.largest_id for c in calls),
        examples=max(c.examples for c in calls),
    )
    return joined, np.concatenate([np.full(c.example_of_bag.shape[0], c.mean) for c in calls])
