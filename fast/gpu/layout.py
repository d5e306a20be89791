"""How lookups are laid out for the kernels: bags end to end and listed by example, occurrences sorted by row.

Integer tensor operations alone (concatenate, stable sort, gather, cumulative count): exact on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from samelaw.contract.trace import Pooling
from samelaw.fast.kernels import LookupCall


@dataclass(frozen=True, repr=False, eq=False)
class Bags:
    """All calls of one table, end to end, in call order.

    Attributes:
        ids: row ids of all bags.
        weights: one weight per id, or None where no call has weights.
        firsts, lengths: bag i is ids[firsts[i]:][:lengths[i]].
        example_of_bag: the example that each bag belongs to.
        counts: the divisor of each bag's gradient: its count for mean pooling (1 when empty), otherwise 1; None
            where every call is a sum.
        gradients: d(loss)/d(pooled vector) of each bag.
        order: bags sorted by example, in call order within an example.
    """

    ids: Int64[Tensor, "ids"]
    weights: Float32[Tensor, "ids"] | None
    firsts: Int64[Tensor, "bags"]
    lengths: Int64[Tensor, "bags"]
    example_of_bag: Int64[Tensor, "bags"]
    counts: Float64[Tensor, "bags"] | None
    gradients: Float32[Tensor, "bags dim"]
    order: Int64[Tensor, "bags"]

    @classmethod
    def of(cls, calls: Sequence[LookupCall], pooled: Sequence[Float32[Tensor, "bags dim"]]) -> Bags:
        """Lay out at least one call."""
        lengths = torch.cat([call.offsets[1:] - call.offsets[:-1] for call in calls])
        example_of_bag = torch.cat([call.example_of_bag for call in calls])
        weights = counts = None
        if any(call.weights is not None for call in calls):
            weights = torch.cat([_weights(call) for call in calls])
        if any(call.pooling is Pooling.MEAN for call in calls):
            counts = torch.cat([_counts(call) for call in calls])
        if len(calls) == 1:  # a call lists its bags by example already
            order = torch.arange(example_of_bag.shape[0], device=example_of_bag.device)
        else:
            order = torch.sort(example_of_bag, stable=True).indices
        return cls(
            ids=torch.cat([call.ids for call in calls]),
            weights=weights,
            firsts=torch.cumsum(lengths, 0) - lengths,
            lengths=lengths,
            example_of_bag=example_of_bag,
            counts=counts,
            gradients=torch.cat([gradient.contiguous() for gradient in pooled]),
            order=order,
        )

    def spans(self, examples: int) -> Int64[Tensor, "examples_plus_1"]:
        """Example b owns the bags order[spans[b]:spans[b + 1]]."""
        bounds = torch.arange(examples + 1, device=self.ids.device)
        return torch.searchsorted(self.example_of_bag[self.order], bounds)

    def occurrences(self) -> Occurrences:
        """Every id of every bag, sorted by row, then example, then bag, then position."""
        bags = torch.arange(self.lengths.shape[0], device=self.ids.device)
        bag_of = torch.repeat_interleave(bags, self.lengths, output_size=self.ids.shape[0])
        by_example = torch.sort(self.example_of_bag[bag_of], stable=True).indices
        sorted_ids, by_row = torch.sort(self.ids[by_example], stable=True)
        position = by_example[by_row]
        bag_of = bag_of[position]
        example = self.example_of_bag[bag_of]
        rows, slots = torch.unique_consecutive(sorted_ids, return_inverse=True)
        begins = torch.ones_like(sorted_ids, dtype=torch.bool)
        begins[1:] = (sorted_ids[1:] != sorted_ids[:-1]) | (example[1:] != example[:-1])
        end = torch.full((1,), sorted_ids.shape[0], device=sorted_ids.device)
        starts = torch.cat([torch.nonzero(begins).squeeze(1), end])
        weights = None if self.weights is None else self.weights[position]
        return Occurrences(rows, slots, starts, bag_of, weights)


@dataclass(frozen=True, repr=False, eq=False)
class Occurrences:
    """Sorted occurrences of rows in bags.

    Attributes:
        rows: the distinct rows, ascending.
        slots: for each occurrence, the place of its row in `rows`.
        starts: where each run of one row and one example starts, and, last, the number of occurrences.
        bag_of: the bag of each occurrence.
        weights: its weight, or None.
    """

    rows: Int64[Tensor, "rows"]
    slots: Int64[Tensor, "occurrences"]
    starts: Int64[Tensor, "groups_plus_1"]
    bag_of: Int64[Tensor, "occurrences"]
    weights: Float32[Tensor, "occurrences"] | None


def first_occurrences(ids: Int64[Tensor, "ids"]) -> Int64[Tensor, "distinct"]:
    """The distinct ids, in order of first occurrence."""
    if ids.shape[0] == 0:
        return ids
    sorted_ids, order = torch.sort(ids, stable=True)
    first = torch.ones_like(sorted_ids, dtype=torch.bool)
    first[1:] = sorted_ids[1:] != sorted_ids[:-1]
    return ids[torch.sort(order[first]).values]


def _weights(call: LookupCall) -> Float32[Tensor, "ids"]:
    if call.weights is None:
        return torch.ones(call.ids.shape[0], dtype=torch.float32, device=call.ids.device)
    return call.weights


def _counts(call: LookupCall) -> Float64[Tensor, "bags"]:
    lengths = call.offsets[1:] - call.offsets[:-1]
    if call.pooling is not Pooling.MEAN:
        return torch.ones(lengths.shape[0], dtype=torch.float64, device=lengths.device)
    return lengths.clamp(min=1).to(torch.float64)
