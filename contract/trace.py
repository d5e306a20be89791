"""Batches as lookups: what a step reads, and which example each read belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from jaxtyping import Float32, Float64, Int64

from samelaw.contract.errors import InputError


class Pooling(StrEnum):
    SUM = "sum"
    MEAN = "mean"


@dataclass(frozen=True, repr=False)
class Lookup:
    """One call of one embedding table: bags of row ids, already stripped of padding.

    A plain (unpooled) embedding is the case of one id a bag. Bags belong to examples through `example_of_bag`.

    Attributes:
        table: the table's name.
        ids: row ids of all bags, end to end, int64.
        offsets: bag i is ids[offsets[i]:offsets[i+1]]; int64, one more entry than bags; bags may be empty.
        example_of_bag: the example (0-based, within the batch) that each bag belongs to, non-decreasing.
        pooling: how a bag's rows become one vector.
        weights: one float32 weight per id (sum pooling only), or None.
    """

    table: str
    ids: Int64[np.ndarray, "ids"]
    offsets: Int64[np.ndarray, "bags_plus_1"]
    example_of_bag: Int64[np.ndarray, "bags"]
    pooling: Pooling = Pooling.SUM
    weights: Float32[np.ndarray, "_ids"] | None = None

    def __post_init__(self) -> None:
        lengths = np.diff(self.offsets)
        if self.offsets.size == 0 or self.offsets[0] != 0 or self.offsets[-1] != self.ids.size or (lengths < 0).any():
            raise InputError(f"offsets of table {self.table!r} must rise from 0 to the number of ids ({self.ids.size})")
        if (
            self.example_of_bag.size != lengths.size
            or (self.example_of_bag < 0).any()
            or (np.diff(self.example_of_bag) < 0).any()
        ):
            raise InputError(f"example_of_bag of table {self.table!r} must name one example per bag, in order")
        if self.weights is not None and (self.pooling is not Pooling.SUM or self.weights.size != self.ids.size):
            raise InputError(f"weights of table {self.table!r} need sum pooling and one weight per id")

    @property
    def bags(self) -> int:
        return int(self.example_of_bag.size)

    def check_rows(self, rows: int) -> None:
        """Raise InputError unless every id is in 0..rows-1."""
        if self.ids.size and not (self.ids.min() >= 0 and self.ids.max() < rows):
            bad = int(np.flatnonzero((self.ids < 0) | (self.ids >= rows))[0])
            raise InputError(
                f"table {self.table!r} has {rows} rows; id {int(self.ids[bad])} at position {bad} "
                f"is out of range 0..{rows - 1}"
            )

    def __repr__(self) -> str:  # traces are sensitive: shapes only
        return f"Lookup(table={self.table!r}, ids={self.ids.size}, bags={self.bags}, pooling={self.pooling})"


@dataclass(frozen=True, repr=False)
class FeatureBags:
    """The ids of one categorical feature for a batch: bag i belongs to example i."""

    ids: Int64[np.ndarray, "ids"]
    offsets: Int64[np.ndarray, "examples_plus_1"]

    def __repr__(self) -> str:
        return f"FeatureBags(ids={self.ids.size}, bags={self.offsets.size - 1})"


@dataclass(frozen=True, repr=False)
class Batch:
    """Examples of a batch, as a recommender model takes them.

    Attributes:
        dense: continuous features, (examples, width) float32; width may be 0.
        features: one FeatureBags per categorical feature, in the workload's order.
        labels: click labels, float32, 0 or 1.
        indices: positions of the examples in the training set, int64.
    """

    dense: Float32[np.ndarray, "examples width"]
    features: tuple[FeatureBags, ...]
    labels: Float32[np.ndarray, "examples"]
    indices: Int64[np.ndarray, "examples"]

    def __len__(self) -> int:
        return int(self.labels.size)

    def __repr__(self) -> str:
        return f"Batch(examples={len(self)}, dense={self.dense.shape[1]}, features={len(self.features)})"


@dataclass(frozen=True)
class Feature:
    """A categorical feature of a workload: features that name the same table share it."""

    name: str
    table: str
    rows: int
    pooling: Pooling = Pooling.SUM


@dataclass(repr=False)
class GradientSums:
    """Clipped contributions of a batch, summed in exact integers on the grid 2^exponent.

    Attributes:
        rows: per table, the distinct rows that any example touched, ascending int64.
        sums: per table, the integer sum for each of those rows, (len(rows), dim) int64.
        dense: per dense parameter, the clipped sum, float32.
        factors: clip factor per example, float64 (private; never leaves the process).
    """

    exponent: int
    rows: dict[str, Int64[np.ndarray, "_rows"]] = field(default_factory=dict)
    sums: dict[str, Int64[np.ndarray, "_rows _dim"]] = field(default_factory=dict)
    dense: Mapping[str, Float32[np.ndarray, "..."]] = field(default_factory=dict)
    factors: Float64[np.ndarray, "examples"] | None = None

    def __repr__(self) -> str:
        return f"GradientSums(tables={len(self.rows)}, dense={len(self.dense)})"
