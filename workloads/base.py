"""What every workload is: examples as arrays, features with declared sizes, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer

from samelaw.contract.errors import DataError, InputError
from samelaw.contract.trace import Batch, Feature, FeatureBags

UNIT_OF_PRIVACY = "one example, which is one rating or one line: a person who gave several is not one unit"

Bags = tuple[Integer[np.ndarray, "..."], Int64[np.ndarray, "examples_plus_1"]]


class DatasetUnavailable(DataError):
    """A data set can neither be found in the cache nor fetched."""


@dataclass(frozen=True, repr=False)
class Dataset:
    """Examples in rows: dense values, one list of bags per feature, labels.

    Attributes:
        dense: (examples, width) float32; width may be 0.
        features: per feature (ids, offsets); the bag of example i is ids[offsets[i]:offsets[i+1]], and may be empty.
            ids may be of any integer type; batches are int64.
        labels: 0 or 1, float32.
    """

    dense: Float32[np.ndarray, "examples width"]
    features: tuple[Bags, ...]
    labels: Float32[np.ndarray, "examples"]

    def __post_init__(self) -> None:
        examples = self.labels.size
        if self.dense.ndim != 2 or len(self.dense) != examples:
            raise InputError(f"dense must have one row per label ({examples}), got shape {self.dense.shape} in Dataset")
        for number, (ids, offsets) in enumerate(self.features):
            well_formed = (
                offsets.size == examples + 1
                and offsets[0] == 0
                and offsets[-1] == ids.size
                and not (np.diff(offsets) < 0).any()
            )
            if not well_formed:
                raise InputError(
                    f"offsets of feature {number} must be {examples + 1} numbers that rise from 0 to {ids.size}, "
                    f"the number of its ids, in Dataset"
                )

    def __len__(self) -> int:
        return int(self.labels.size)

    def __repr__(self) -> str:  # examples are sensitive: shapes only
        return f"Dataset(examples={len(self)}, dense={self.dense.shape[1]}, features={len(self.features)})"

    @cached_property
    def _one_id_each(self) -> tuple[bool, ...]:
        """Per feature: does every bag hold exactly one id? Then a gather needs no offsets."""
        return tuple(bool((np.diff(offsets) == 1).all()) for _, offsets in self.features)

    def take(self, indices: Integer[np.ndarray, "chosen"]) -> Dataset:
        """The chosen examples, in that order, as a Dataset of their own."""
        chosen = self._checked(indices)
        features = tuple(self._gather(number, chosen) for number in range(len(self.features)))
        return Dataset(self.dense[chosen], features, self.labels[chosen])

    def batch(self, indices: Integer[np.ndarray, "chosen"]) -> Batch:
        """The chosen examples (possibly none) as the trainers take them.

        Guarantees:
            W1  Bag b of each feature holds exactly the ids of example indices[b], in order, repeats included.

        Raises:
            InputError: an index is outside 0..len(self)-1.
        """
        chosen = self._checked(indices)
        gathered = (self._gather(number, chosen) for number in range(len(self.features)))
        bags = tuple(FeatureBags(ids.astype(np.int64, copy=False), offsets) for ids, offsets in gathered)
        return Batch(self.dense[chosen], bags, self.labels[chosen], chosen)

    def _checked(self, indices: Integer[np.ndarray, "chosen"]) -> Int64[np.ndarray, "chosen"]:
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(self)):
            bad = int(chosen[(chosen < 0) | (chosen >= len(self))][0])
            raise InputError(f"indices must lie in 0..{len(self) - 1}, got {bad} in Dataset")
        return chosen

    def _gather(self, number: int, chosen: Int64[np.ndarray, "chosen"]) -> Bags:
        ids, offsets = self.features[number]
        if self._one_id_each[number]:
            return ids[chosen], np.arange(chosen.size + 1, dtype=np.int64)
        starts = offsets[chosen]
        lengths = offsets[chosen + 1] - starts
        ends = np.cumsum(lengths)
        taken = np.concatenate([np.zeros(1, dtype=np.int64), ends])
        # Position j of the result lies in the bag that starts at taken[b]: shift it to where that bag lies in `ids`.
        positions = np.arange(taken[-1], dtype=np.int64) + np.repeat(starts - taken[:-1], lengths)
        return ids[positions], taken


@dataclass(frozen=True, repr=False)
class Workload:
    """A data set ready for a model, with what must be known about it.

    Attributes:
        name: its name in `samelaw workloads`.
        features: the categorical features, in the order of Dataset.features; their sizes are declared, never
            counted in the data.
        dense_width: number of dense values per example.
        train, test: the examples.
        notes: JSON-able facts: how the vocabularies, ranges, labels and the split were declared.
        skipped: bad lines that were left out, by file. Their number comes from the data: not for a manifest.
        licence: on what terms the data may be used.
        source: where it came from.
    """

    name: str
    features: tuple[Feature, ...]
    dense_width: int
    train: Dataset
    test: Dataset
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    licence: str = ""
    source: str = ""
    skipped: Mapping[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        rows: dict[str, int] = {}
        for feature in self.features:
            if rows.setdefault(feature.table, feature.rows) != feature.rows:
                raise InputError(
                    f"features that share table {feature.table!r} must declare the same number of rows, "
                    f"got {rows[feature.table]} and {feature.rows} in workload {self.name!r}"
                )
        for part, dataset in (("train", self.train), ("test", self.test)):
            if dataset.dense.shape[1] != self.dense_width or len(dataset.features) != len(self.features):
                raise InputError(f"the {part} part of workload {self.name!r} does not fit its features")
            for feature, (ids, _) in zip(self.features, dataset.features, strict=True):
                if ids.size and not (ids.min() >= 0 and ids.max() < feature.rows):
                    raise InputError(
                        f"ids of feature {feature.name!r} must lie in 0..{feature.rows - 1}, got "
                        f"{int(ids.min())}..{int(ids.max())} in the {part} part of workload {self.name!r}"
                    )

    def __repr__(self) -> str:
        return f"Workload({self.name!r}, features={len(self.features)}, train={len(self.train)}, test={len(self.test)})"


def one_each(ids: Integer[np.ndarray, "examples"]) -> Bags:
    """Bags of exactly one id."""
    return ids, np.arange(ids.size + 1, dtype=np.int64)


def bags_by_key(bag_of_key: Sequence[Sequence[int]], keys: Int64[np.ndarray, "examples"]) -> Bags:
    """Bags that are looked up: example i has the bag of its key, e.g. the genres of its film."""
    offsets = np.zeros(len(bag_of_key) + 1, dtype=np.int64)
    np.cumsum([len(bag) for bag in bag_of_key], out=offsets[1:])
    ids = np.array([row for bag in bag_of_key for row in bag], dtype=np.int64)
    nothing = np.zeros((len(bag_of_key), 0), dtype=np.float32)
    labels = np.zeros(len(bag_of_key), dtype=np.float32)
    return Dataset(nothing, ((ids, offsets),), labels).take(keys).features[0]


def split(examples: Dataset, test: Bool[np.ndarray, "examples"], *, name: str) -> tuple[Dataset, Dataset]:
    """The examples that are not held out, and those that are.

    Raises:
        DataError: one of the two would be empty.
    """
    parts = examples.take(np.flatnonzero(~test)), examples.take(np.flatnonzero(test))
    if not all(len(part) for part in parts):
        raise DataError(
            f"{name}: {len(examples)} examples leave {len(parts[0])} to train on and {len(parts[1])} to test on; "
            f"both must be at least 1. Give more data"
        )
    return parts


def scaled(value: np.ndarray, bounds: tuple[int, int]) -> Float32[np.ndarray, "examples"]:
    """Map a declared range onto -1..1; values outside it are clipped to its ends."""
    low, high = bounds
    unit = (np.clip(value.astype(np.float64), low, high) - low) / (high - low)
    return (2.0 * unit - 1.0).astype(np.float32)
