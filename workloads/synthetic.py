"""Synthetic click logs with the table sizes of the MLPerf DLRM benchmark, read uniformly or by Zipf's law.

Everything is a function of the seed: which rows an example reads, its dense values, and its label, drawn from a
logistic model that is planted in the rows, so that a model has something to learn and AUC has a known ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from samelaw.contract.errors import InputError
from samelaw.contract.trace import Feature, Pooling
from samelaw.workloads.base import UNIT_OF_PRIVACY, Bags, Dataset, Workload, one_each
from samelaw.workloads.hashing import mix

MLPERF_ROWS = (
    39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10,
    2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36,
)  # fmt: skip
"""Rows of the 26 Criteo-Terabyte tables in MLPerf's DLRM, each capped at 40M: 187,767,399 in all, public."""

SMALLEST = 64
"""Scaling down leaves tables of up to this many rows as they are."""

VERIFY_SCALE = 1e-4
"""A scale at which every row of every table can be noised at every step on a laptop: 20,000 rows in all."""

MOST_IDS = {4: 4, 11: 8, 23: 3}
"""Features that hold a bag of 0 to this many ids; every other feature holds exactly one."""

ZIPF_EXPONENT = 1.05
DENSE_WIDTH = 13
TRAIN, TEST = 65_536, 16_384

_DENSE_TAG, _WEIGHT_TAG, _LABEL_TAG = 1000, 1001, 1002
_BASE_LOGIT = -1.0
_ROW_STD, _DENSE_STD = 1.5, 1.0


class ReadLaw(StrEnum):
    """How the rows that an example reads are drawn."""

    UNIFORM = "uniform"
    ZIPF = "zipf"


def make_synthetic(
    law: ReadLaw,
    *,
    scale: float = 1.0,
    seed: int = 0,
    train: int = TRAIN,
    test: int = TEST,
    most_ids: Mapping[int, int] = MOST_IDS,
) -> Workload:
    """Draw a synthetic workload.

    Args:
        law: uniform, or Zipf with exponent 1.05 over rows in an order that scatters the popular ones.
        scale: factor on the table sizes, > 0; 1 is MLPerf's, for which a model needs 0.75 GB per dimension.
        seed: any integer >= 0; the same seed gives the same examples.
        train, test: number of examples, each >= 1.
        most_ids: feature number -> most ids in a bag, for features that are bags.

    Raises:
        InputError: a value out of range.
    """
    _check(scale, seed, train, test)
    sizes = [max(min(rows, SMALLEST), round(rows * scale)) for rows in MLPERF_ROWS]
    features = tuple(
        Feature(f"c{i:02d}", f"c{i:02d}", rows, Pooling.MEAN if i % 2 and i in most_ids else Pooling.SUM)
        for i, rows in enumerate(sizes)
    )
    examples = train + test
    dense = _normals(_stream(seed, _DENSE_TAG).random_raw(examples * DENSE_WIDTH)).reshape(examples, DENSE_WIDTH)
    weights = _normals(_stream(seed, _WEIGHT_TAG).random_raw(DENSE_WIDTH)) * (_DENSE_STD / math.sqrt(DENSE_WIDTH))
    logits = _BASE_LOGIT + dense @ weights
    bags: list[Bags] = []
    for number, feature in enumerate(features):
        stream = _stream(seed, number)
        bag = _draw_bags(stream, law, feature.rows, examples, most_ids.get(number))
        effects = _row_effects(bag[0], number, seed) * (_ROW_STD / math.sqrt(len(features)))
        logits = logits + _mean_by_bag(effects, bag[1])
        bags.append(bag)
    labels = (_unit(_stream(seed, _LABEL_TAG).random_raw(examples)) < 1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
    everything = Dataset(dense.astype(np.float32), tuple(bags), labels)
    return Workload(
        str(law),
        features,
        DENSE_WIDTH,
        everything.take(np.arange(train)),
        everything.take(np.arange(train, examples)),
        _notes(law, scale, seed, features, most_ids),
        licence="none needed: drawn by this program",
        source=f"synthetic, {law}, scale {scale:g}, seed {seed}",
    )


def zipf_ranks(
    stream: np.random.PCG64, count: int, rows: int, exponent: float = ZIPF_EXPONENT
) -> Int64[np.ndarray, "count"]:
    """`count` ranks in 0..rows-1 with probability proportional to (rank + 1)^-exponent, for any `rows`.

    Inverts the integral of x^-exponent, which lies above the staircase of probabilities, and rejects what falls
    between the two; no table of `rows` entries is built.

    Args:
        exponent: > 0, not 1.

    Source: Hörmann and Derflinger, "Rejection-inversion to generate variates from monotone discrete
    distributions", ACM TOMACS 6(3), 1996.
    """
    power = 1.0 - exponent

    def integral(x: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
        return np.expm1(power * np.log(x)) / power

    def inverse(area: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
        return np.exp(np.log1p(power * area) / power)

    lowest, highest = integral(np.array([1.5, rows + 0.5]))
    lowest -= 1.0  # the first rank has all of its probability, 1
    ranks = np.empty(count, dtype=np.int64)
    filled = 0
    while filled < count:
        area = highest + _unit(stream.random_raw(count - filled)) * (lowest - highest)
        rank = np.clip(np.rint(inverse(area)), 1, rows)
        accepted = rank[area >= integral(rank + 0.5) - rank**-exponent]
        ranks[filled : filled + accepted.size] = accepted.astype(np.int64) - 1
        filled += accepted.size
    return ranks


def scatter(ranks: Int64[np.ndarray, "ids"], rows: int) -> Int64[np.ndarray, "ids"]:
    """A fixed permutation of 0..rows-1 (rank -> row), so that popular rows do not lie side by side in memory."""
    stride = max(1, round(rows * 0.6180339887498949))
    while math.gcd(stride, rows) != 1:
        stride += 1
    return (ranks * stride + rows // 2) % rows


def _check(scale: float, seed: int, train: int, test: int) -> None:
    requirements = (
        ("scale", "finite and > 0", math.isfinite(scale) and scale > 0, scale),
        ("scale", "such that a table has less than 2^31 rows", scale * max(MLPERF_ROWS) < 2**31, scale),
        ("seed", ">= 0", seed >= 0, seed),
        ("train", ">= 1", train >= 1, train),
        ("test", ">= 1", test >= 1, test),
    )
    for name, requirement, holds, value in requirements:
        if not holds:
            raise InputError(f"{name} must be {requirement}, got {value!r} in a synthetic workload")


def _stream(seed: int, tag: int) -> np.random.PCG64:
    """Raw 64-bit words, whose sequence NumPy keeps the same across versions."""
    return np.random.PCG64(np.random.SeedSequence([seed, tag]))


def _unit(words: UInt64[np.ndarray, "words"]) -> Float64[np.ndarray, "words"]:
    """Uniform in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _normals(words: UInt64[np.ndarray, "words"]) -> Float64[np.ndarray, "words"]:
    """Sum of a word's four 16-bit parts, centred, variance 1: normal enough for data, and within +-3.47."""
    parts = sum((words >> np.uint64(16 * lane)) & np.uint64(0xFFFF) for lane in range(4))
    return (np.asarray(parts).astype(np.float64) / 65_536 - 2.0 + 2.0 / 65_536) * math.sqrt(3.0)


def _row_effects(rows: Int64[np.ndarray, "ids"], table: int, seed: int) -> Float64[np.ndarray, "ids"]:
    """The planted weight of each row: a function of its address, so that a table of 40M rows needs no storage."""
    return _normals(mix(mix(rows.astype(np.uint64)) ^ np.uint64((seed << 8 | table) % 2**64)))


def _draw_bags(stream: np.random.PCG64, law: ReadLaw, rows: int, examples: int, most: int | None) -> Bags:
    """One id per example, or bags of 0 to `most` ids."""
    if most is None:
        return one_each(_draw_rows(stream, law, rows, examples))
    lengths = (_unit(stream.random_raw(examples)) * (most + 1)).astype(np.int64)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    return _draw_rows(stream, law, rows, int(offsets[-1])), offsets


def _draw_rows(stream: np.random.PCG64, law: ReadLaw, rows: int, count: int) -> Int64[np.ndarray, "count"]:
    if law is ReadLaw.ZIPF:
        return scatter(zipf_ranks(stream, count, rows), rows)
    return (_unit(stream.random_raw(count)) * rows).astype(np.int64)


def _mean_by_bag(values: Float64[np.ndarray, "ids"], offsets: Int64[np.ndarray, "bags_plus_1"]) -> np.ndarray:
    """Mean over each bag, 0 for an empty one."""
    lengths = np.diff(offsets)
    sums = np.bincount(np.repeat(np.arange(lengths.size), lengths), weights=values, minlength=lengths.size)
    return sums / np.maximum(lengths, 1)


def _notes(
    law: ReadLaw, scale: float, seed: int, features: Sequence[Feature], most_ids: Mapping[int, int]
) -> dict[str, object]:
    reads = "uniform" if law is ReadLaw.UNIFORM else f"Zipf, exponent {ZIPF_EXPONENT}"
    return {
        "unit_of_privacy": UNIT_OF_PRIVACY,
        "label": "drawn from a logistic model planted in the dense values and the rows",
        "split": "the first examples drawn train, the rest test; all are drawn independently",
        "declared_vocabularies": {
            "c00 … c25": f"MLPerf DLRM's 26 table sizes times {scale:g}: {sum(f.rows for f in features)} rows",
            "bags": {f"c{number:02d}": f"0 to {most} ids" for number, most in most_ids.items()},
        },
        "dense": f"{DENSE_WIDTH} values, about normal, within +-3.47",
        "reads": reads,
        "seed": seed,
    }
