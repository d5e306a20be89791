"""Canaries: examples with a known gradient, planted in a training set by fair coins and scored from released weights.

A canary reads one row of its own in every attacked table: a fresh row that no other example reads. Its loss is a large
multiple of the inner product of what it read with a random unit vector, so its gradient points along that vector, is
larger than any clip norm, and is clipped to norm C exactly. Nothing else moves its rows but noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from samelaw.contract.entry import as_count
from samelaw.contract.errors import InputError
from samelaw.contract.trace import Batch, Feature, FeatureBags, Pooling


@dataclass(frozen=True, repr=False)
class Canaries:
    """Planted examples, and who of them is in the training set.

    Attributes:
        first_rows: attacked table -> the row of canary 0; canary k has row first + k.
        directions: (canaries, tables, dim) float32; the gradient of canary k over all its rows, in units of its norm.
            Tables in the order of `first_rows`.
        included: whether canary k is in the training set.
        examples: size of the rest of the training set; included canaries follow it.
        repeats: how often a canary names its row in its bag; 1 but for sum pooling.
    """

    first_rows: Mapping[str, int]
    directions: Float32[np.ndarray, "canaries tables dim"]
    included: Bool[np.ndarray, "canaries"]
    examples: int
    repeats: int = 1

    @classmethod
    def plant(
        cls,
        features: Sequence[Feature],
        *,
        canaries: int,
        examples: int,
        dim: int,
        rng: np.random.Generator,
        repeats: int = 1,
    ) -> Canaries:
        """Toss a fair coin and draw a direction for each canary, in every table of `features`.

        Args:
            canaries: how many; about half of them will be in the training set.
            examples: number of examples in the training set besides.
            rng: the reviewer's coins; the trainer must know nothing of them.

        Raises:
            InputError: there is no feature, or `repeats` is not 1 and a table pools by mean.
        """
        canaries = as_count("canaries", canaries, "Canaries.plant", least=1)
        repeats = as_count("repeats", repeats, "Canaries.plant", least=1)
        if not features:
            raise InputError("features must name at least one table, got none in Canaries.plant")
        if repeats > 1 and any(feature.pooling is not Pooling.SUM for feature in features):
            raise InputError(
                f"repeats must be 1 where a table pools by mean, got {repeats} in Canaries.plant: a repeated row then "
                "has the same mean, and shows nothing"
            )
        first = {feature.table: feature.rows for feature in features}
        drawn = np.empty((canaries, len(first), dim), dtype=np.float32)
        for number in range(len(first)):
            vectors = rng.standard_normal((canaries, dim))
            if dim > 1:  # along such vectors, noise that is one number for the whole row is no noise at all
                vectors -= np.mean(vectors, axis=1, keepdims=True)
            # As long in every table: a trainer that clips by table then lets through sqrt(tables) times the clip norm.
            drawn[:, number] = vectors / np.sqrt(len(first) * np.sum(vectors**2, axis=1, keepdims=True))
        return cls(first, drawn, rng.random(canaries) < 0.5, examples, repeats)

    def __len__(self) -> int:
        return int(self.included.size)

    @property
    def training_examples(self) -> int:
        """N of the run: the other examples and the included canaries."""
        return self.examples + int(np.count_nonzero(self.included))

    def features(self, features: Sequence[Feature]) -> tuple[Feature, ...]:
        """The workload's features, every attacked table longer by one row a canary."""
        return tuple(
            replace(feature, rows=self.first_rows[feature.table] + len(self))
            if feature.table in self.first_rows
            else feature
            for feature in features
        )

    def batch(self, ordinary: Batch, chosen: Int64[np.ndarray, "_"]) -> Batch:
        """A batch of ordinary examples and canaries, with one more feature: which canary an example is.

        Args:
            ordinary: the chosen ordinary examples, with their indices.
            chosen: indices of included canaries in the training set, all >= `examples`, ascending.
        """
        numbers = np.flatnonzero(self.included)[chosen - self.examples]
        more, before = chosen.size, len(ordinary)
        bags = [
            FeatureBags(f.ids, np.concatenate([f.offsets, np.full(more, f.ids.size, dtype=np.int64)]))
            for f in ordinary.features
        ]
        offsets = np.concatenate([np.zeros(before, dtype=np.int64), np.arange(more + 1) * self.repeats])
        bags.append(FeatureBags(np.repeat(numbers, self.repeats), offsets.astype(np.int64)))
        nothing = np.zeros((more, ordinary.dense.shape[1]), dtype=np.float32)
        return Batch(
            np.concatenate([ordinary.dense, nothing]),
            tuple(bags),
            np.concatenate([ordinary.labels, np.zeros(more, dtype=np.float32)]),
            np.concatenate([ordinary.indices, chosen]),
        )

    def scores(
        self,
        initial: Mapping[str, Float32[np.ndarray, "_rows _dim"]],
        released: Mapping[str, Float32[np.ndarray, "_rows _dim"]],
        *,
        step: float,
    ) -> Scores:
        """How far each canary's rows went along its gradient, from weights alone.

        Args:
            initial, released: the attacked tables before and after, by the names of `first_rows`.
            step: lr * C / B: how far one clipped gradient moves them.
        """
        if not (math.isfinite(step) and step > 0):
            raise InputError(f"step must be finite and > 0, got {step!r} in Canaries.scores")
        moved = np.zeros(len(self), dtype=np.float64)
        unchanged = np.zeros(len(self), dtype=np.bool_)
        for number, (table, first) in enumerate(self.first_rows.items()):
            rows = slice(first, first + len(self))
            before, after = initial[table][rows], released[table][rows]
            if before.shape != after.shape or before.shape != (len(self), self.directions.shape[2]):
                raise InputError(
                    f"table {table!r} must hold rows {first}..{first + len(self) - 1} before and after, of width "
                    f"{self.directions.shape[2]}, got {initial[table].shape} and {released[table].shape}"
                )
            gone = before.astype(np.float64) - after.astype(np.float64)
            moved += np.einsum("kd,kd->k", gone, self.directions[:, number].astype(np.float64))
            unchanged |= np.all(before == after, axis=1)
        return Scores(moved / step, unchanged, self.included.copy())

    def __repr__(self) -> str:  # who is in is the secret of the game
        return f"Canaries({len(self)}, tables={len(self.first_rows)}, dim={self.directions.shape[2]})"


@dataclass(frozen=True, repr=False)
class Scores:
    """What the reviewer sees of each canary, and the truth to hold it against.

    Attributes:
        moved: movement along the gradient in units of one clipped gradient: about the number of steps that the canary
            was in, plus noise.
        unchanged: one of the canary's rows has exactly its initial bits. Noise makes that all but impossible.
        included: whether the canary was in the training set.
    """

    moved: Float64[np.ndarray, "canaries"]
    unchanged: Bool[np.ndarray, "canaries"]
    included: Bool[np.ndarray, "canaries"]

    def __post_init__(self) -> None:
        if not self.moved.shape == self.unchanged.shape == self.included.shape:
            raise InputError("moved, unchanged and included must have one entry a canary in Scores")
        if not np.isfinite(self.moved).all():
            raise InputError("moved must be finite in Scores: training diverged; lower the learning rate")

    def __repr__(self) -> str:
        return f"Scores({self.moved.size})"
