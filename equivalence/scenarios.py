"""A small run that meets every edge case at once, as data: both twins are driven over it beside the real workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samelaw.contract.run import Transcript
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import PrivacySpec
from samelaw.contract.trace import Batch, Feature, FeatureBags, Pooling


@dataclass(frozen=True, repr=False)
class Scenario:
    """Features, batches and law of a run, and where it is to be interrupted.

    Attributes:
        meets: the edge cases, for the report.
        features: categorical features; some share a table.
        dense_width: continuous features.
        dim: columns of every table.
        batches: one per step, in order; some are empty.
        spec: the law; the mode is to be replaced.
        resume_at: number of steps after which the run is checkpointed and taken up by a new trainer.
        examples: size of the training set that the batches' indices point into.
    """

    name: str
    meets: tuple[str, ...]
    features: tuple[Feature, ...]
    dense_width: int
    dim: int
    batches: tuple[Batch, ...]
    spec: PrivacySpec
    resume_at: int
    examples: int

    def single_examples(self, most: int = 64) -> list[Batch]:
        """The first examples of the run, each as a batch of its own: what claim S1 probes."""
        singles = [one_example(batch, i) for batch in self.batches for i in range(len(batch))]
        return singles[:most]

    def __repr__(self) -> str:
        return f"Scenario({self.name!r}, steps={len(self.batches)})"


def one_example(batch: Batch, i: int) -> Batch:
    """Example i of a batch as a batch."""
    features = [FeatureBags(*_bag(feature, i)) for feature in batch.features]
    return Batch(batch.dense[i : i + 1], tuple(features), batch.labels[i : i + 1], batch.indices[i : i + 1])


def joined(first: Transcript, second: Transcript) -> Transcript:
    """The transcript of a run that was interrupted: `second` went on where a checkpoint of `first` left it."""
    next_step = second.steps[0].step if second.steps else len(first.steps)
    steps = [*(record for record in first.steps if record.step < next_step), *second.steps]
    return Transcript(first.initial_tables, first.initial_dense, steps, second.final_tables, second.final_dense)


def edge_cases(*, seed: int = 0, rows: tuple[int, int, int] = (1600, 2400, 800), dim: int = 8) -> Scenario:
    """Two features on one table, sum and mean pooling, and 30 steps, among them the awkward ones named in `meets`.

    Args:
        rows: of the tables `item`, `user` and `tag`.
        dim: columns of each.

    Rows of the upper half of each table are never read. Batch 0 is empty; 1 is a single example; in 2 every bag is one
    row several times over; 3 and 4 are empty; 5 reads row 0 of each table only; 29, the last, is empty; the others are
    ordinary, and always read row 1 of each table.
    """
    rng = np.random.default_rng(seed)
    features = (
        Feature("viewed", "item", rows[0], Pooling.SUM),
        Feature("bought", "item", rows[0], Pooling.SUM),
        Feature("user", "user", rows[1], Pooling.SUM),
        Feature("tags", "tag", rows[2], Pooling.MEAN),
    )
    steps, examples = 30, 500
    batches: list[Batch] = []
    for step in range(steps):
        size = 0 if step in (0, 3, 4, steps - 1) else 1 if step == 1 else int(rng.integers(8, 40))
        kind = {2: "repeated", 5: "first row"}.get(step, "ordinary")
        bags = [_bags(rng, feature, size, kind) for feature in features]
        batches.append(
            Batch(
                rng.standard_normal((size, 3)).astype(np.float32),
                tuple(bags),
                (rng.random(size) < 0.5).astype(np.float32),
                np.sort(rng.choice(examples, size, replace=False)).astype(np.int64),
            )
        )
    return Scenario(
        name="edge cases",
        meets=(
            "empty batches: the first, two in a row, the last",
            "a batch of one example",
            "a row several times in one bag, and in many bags of a batch",
            "two features that share one table",
            "sum and mean pooling, empty bags",
            "rows that are never read, and a row that is read at every step",
            "a learning rate that rises, falls, and is 0 for a step",
            "a checkpoint and a resume in the middle",
        ),
        features=features,
        dense_width=3,
        dim=dim,
        batches=tuple(batches),
        spec=PrivacySpec(
            clip_norm=0.5,
            noise_multiplier=1.0,
            sampling_rate=20 / examples,
            expected_batch_size=20.0,
            delta=1e-4,
            schedule=Schedule.piecewise([2, 10, 20, 21], [0.1, 0.4, 0.2, 0.0, 0.05], steps=steps),
        ),
        resume_at=16,
        examples=examples,
    )


def _bags(rng: np.random.Generator, feature: Feature, size: int, kind: str) -> FeatureBags:
    """Bags of one feature for a batch; ids stay in the lower half of the table."""
    bags: list[Sequence[int]] = []
    for i in range(size):
        if kind == "first row":
            bags.append([0] * int(rng.integers(1, 4)))
        elif kind == "repeated":
            bags.append([int(rng.integers(feature.rows // 2))] * int(rng.integers(2, 6)))
        elif feature.name == "user":
            bags.append([1 if i == 0 else int(rng.integers(2, feature.rows // 2))])
        else:  # a short list, possibly empty, drawn from few rows so that some repeat
            few = rng.integers(2, feature.rows // 2, 4)
            drawn = [int(r) for r in few[rng.integers(0, 4, int(rng.integers(0, 7)))]]
            bags.append([1, *drawn] if i == 0 else drawn)
    lengths = [len(bag) for bag in bags]
    ids = np.array([row for bag in bags for row in bag], dtype=np.int64)
    return FeatureBags(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def _bag(feature: FeatureBags, i: int) -> tuple[np.ndarray, np.ndarray]:
    start, end = int(feature.offsets[i]), int(feature.offsets[i + 1])
    return feature.ids[start:end], np.array([0, end - start], dtype=np.int64)


@dataclass(frozen=True, repr=False)
class Population:
    """A training set for a trainer that draws its own batches.

    Attributes:
        features: one user row an example, and a short list of items.
        everyone: all examples, as one batch.
        expected_batch_size: B.
    """

    features: tuple[Feature, ...]
    everyone: Batch
    expected_batch_size: float

    @property
    def examples(self) -> int:
        return len(self.everyone)

    @property
    def dense_width(self) -> int:
        return int(self.everyone.dense.shape[1])

    def batch(self, indices: np.ndarray) -> Batch:
        """These examples as a batch."""
        features: list[FeatureBags] = []
        for bags in self.everyone.features:
            chosen = [bags.ids[bags.offsets[i] : bags.offsets[i + 1]] for i in indices]
            lengths = [len(bag) for bag in chosen]
            ids = np.concatenate([*chosen, np.empty(0, dtype=np.int64)]).astype(np.int64)
            features.append(FeatureBags(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)))
        dense, labels = self.everyone.dense[indices], self.everyone.labels[indices]
        return Batch(dense, tuple(features), labels, indices.astype(np.int64))

    def __repr__(self) -> str:
        return f"Population(examples={self.examples})"


def population(*, examples: int, expected_batch_size: float, seed: int = 0) -> Population:
    """Examples with one user row each and three items."""
    rng = np.random.default_rng(seed)
    features = (Feature("user", "user", examples), Feature("items", "item", 64))
    users = FeatureBags(np.arange(examples, dtype=np.int64), np.arange(examples + 1, dtype=np.int64))
    items = FeatureBags(rng.integers(0, 64, 3 * examples), np.arange(0, 3 * examples + 1, 3, dtype=np.int64))
    everyone = Batch(
        rng.standard_normal((examples, 2)).astype(np.float32),
        (users, items),
        (rng.random(examples) < 0.5).astype(np.float32),
        np.arange(examples, dtype=np.int64),
    )
    return Population(features, everyone, expected_batch_size)
