"""Claims about batches, splits, hash buckets and the synthetic workloads."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samelaw.contract.errors import DataError, InputError
from samelaw.contract.trace import Feature
from samelaw.workloads import available, load
from samelaw.workloads.base import Dataset, Workload, bags_by_key, one_each, scaled, split
from samelaw.workloads.hashing import held_out, mix, text_bucket
from samelaw.workloads.synthetic import (
    MLPERF_ROWS,
    VERIFY_SCALE,
    ReadLaw,
    make_synthetic,
    scatter,
    zipf_ranks,
)

bags_of_ids = st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=12)


def csr(bags: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, bags)]).astype(np.int64)
    return np.array([i for bag in bags for i in bag], dtype=np.int64), offsets


def dataset_of(*features: list[list[int]]) -> Dataset:
    examples = len(features[0])
    dense = np.arange(2 * examples, dtype=np.float32).reshape(examples, 2)
    labels = (np.arange(examples) % 2).astype(np.float32)
    return Dataset(dense, tuple(csr(bags) for bags in features), labels)


@given(bags=bags_of_ids, data=st.data())
def test_W1_a_batch_holds_exactly_the_bags_of_its_examples(bags: list[list[int]], data: st.DataObject) -> None:
    singles = [[7 * i % 10] for i in range(len(bags))]
    dataset = dataset_of(bags, singles)
    indices = data.draw(st.lists(st.integers(0, len(bags) - 1), max_size=20))
    batch = dataset.batch(np.array(indices, dtype=np.int64))
    for given_bags, found in zip((bags, singles), batch.features, strict=True):
        expected = [given_bags[i] for i in indices]
        got = [found.ids[a:b].tolist() for a, b in zip(found.offsets, found.offsets[1:], strict=False)]
        assert got == expected
        assert found.offsets[0] == 0
        assert found.offsets[-1] == found.ids.size
        assert found.ids.dtype == found.offsets.dtype == np.int64
    assert batch.indices.tolist() == indices
    assert batch.dense.tolist() == [[2 * i, 2 * i + 1] for i in indices]
    assert batch.labels.tolist() == [i % 2 for i in indices]
    assert len(batch) == len(indices)


@given(bags=bags_of_ids, data=st.data())
def test_taking_twice_is_taking_the_composition(bags: list[list[int]], data: st.DataObject) -> None:
    dataset = dataset_of(bags)
    first = data.draw(st.lists(st.integers(0, len(bags) - 1), min_size=1, max_size=9))
    second = data.draw(st.lists(st.integers(0, len(first) - 1), max_size=9))
    direct = dataset.batch(np.array([first[j] for j in second], dtype=np.int64))
    twice = dataset.take(np.array(first)).batch(np.array(second, dtype=np.int64))
    assert twice.features[0].ids.tolist() == direct.features[0].ids.tolist()
    assert twice.features[0].offsets.tolist() == direct.features[0].offsets.tolist()
    assert twice.dense.tolist() == direct.dense.tolist()


def test_narrow_ids_come_out_as_int64() -> None:
    dataset = Dataset(
        np.zeros((2, 0), dtype=np.float32), (one_each(np.array([3, 4], dtype=np.int32)),), np.zeros(2, np.float32)
    )
    assert dataset.batch(np.array([1])).features[0].ids.dtype == np.int64


@pytest.mark.parametrize("bad", [-1, 3])
def test_an_index_outside_the_data_is_refused(bad: int) -> None:
    with pytest.raises(InputError, match=rf"indices must lie in 0\.\.2, got {bad}"):
        dataset_of([[1], [2], []]).batch(np.array([0, bad]))


@pytest.mark.parametrize("offsets", [[0, 1, 2], [1, 1, 1, 2], [0, 2, 1, 2], [0, 1, 1, 1]])
def test_offsets_that_do_not_cover_the_ids_are_refused(offsets: list[int]) -> None:
    with pytest.raises(InputError, match="offsets of feature 0 must be 4 numbers that rise from 0 to 2"):
        Dataset(
            np.zeros((3, 0), np.float32),
            ((np.array([5, 6]), np.array(offsets, dtype=np.int64)),),
            np.zeros(3, np.float32),
        )


def test_a_workload_refuses_ids_beyond_its_declared_rows_and_unequal_sharers() -> None:
    part = dataset_of([[0], [9]])
    with pytest.raises(InputError, match=r"ids of feature 'f' must lie in 0\.\.8, got 0\.\.9 in the train part"):
        Workload("w", (Feature("f", "t", 9),), 2, part, part)
    two = dataset_of([[0], [1]], [[0], [1]])
    with pytest.raises(InputError, match="share table 't' must declare the same number of rows, got 5 and 6"):
        Workload("w", (Feature("f", "t", 5), Feature("g", "t", 6)), 2, two, two)


def test_nothing_that_prints_shows_an_example() -> None:
    part = dataset_of([[0], [3]])
    workload = Workload("w", (Feature("f", "t", 9),), 2, part, part)
    for thing in (part, workload, part.batch(np.array([1])), part.batch(np.array([1])).features[0]):
        assert "array" not in repr(thing)
        assert "[" not in repr(thing)


def test_bags_by_key_looks_up_each_examples_bag() -> None:
    ids, offsets = bags_by_key([[], [4, 4], [1]], np.array([1, 0, 2, 1]))
    assert ids.tolist() == [4, 4, 1, 4, 4]
    assert offsets.tolist() == [0, 2, 2, 3, 5]


def test_declared_ranges_are_clipped_not_learned() -> None:
    assert scaled(np.array([-5, 0, 50, 100, 999]), (0, 100)).tolist() == [-1, -1, 0, 1, 1]


# --- hashing -----------------------------------------------------------------------------------------------------


def test_mix_is_splitmix64() -> None:
    # The generator's first outputs from state 1234567, as its author's C code prints them.
    state = np.uint64(1234567)
    increment = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        outputs = [int(mix(np.array([state + np.uint64(i) * increment]))[0]) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(
    columns=st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 9)), min_size=2, max_size=20, unique=True
    ),
    data=st.data(),
)
def test_W2_the_split_of_an_example_does_not_depend_on_the_others(
    columns: list[tuple[int, int]], data: st.DataObject
) -> None:
    kept = data.draw(st.lists(st.sampled_from(range(len(columns))), min_size=1, unique=True))
    table = np.array(columns, dtype=np.int64)
    everyone = held_out(*table.T, salt=3)
    alone = held_out(*table[kept].T, salt=3)
    assert alone.tolist() == everyone[kept].tolist()


def test_the_split_holds_out_one_in_five() -> None:
    found = held_out(np.arange(100_000), np.zeros(100_000), salt=1).sum()
    # Binomial(1e5, 1/5) has std 126.5; six of them is a false alarm in 2e-9 of the salts one could choose.
    assert abs(found - 20_000) < 6 * 126.5


def test_text_buckets_are_in_range_and_depend_on_the_salt() -> None:
    found = [text_bucket(str(i), buckets=7, salt="a") for i in range(500)]
    assert set(found) == set(range(7))
    assert found != [text_bucket(str(i), buckets=7, salt="b") for i in range(500)]
    assert text_bucket("55455", buckets=4096, salt="movielens-100k zip") == 3677  # fixed for all time


def test_a_split_without_training_or_test_examples_is_refused() -> None:
    with pytest.raises(DataError, match="both must be at least 1"):
        split(dataset_of([[1], [2]]), np.array([True, True]), name="w")


# --- synthetic ---------------------------------------------------------------------------------------------------


def test_the_mlperf_tables_have_their_published_total() -> None:
    assert len(MLPERF_ROWS) == 26
    assert sum(MLPERF_ROWS) == 187_767_399
    assert max(MLPERF_ROWS) <= 40_000_000


@pytest.mark.parametrize("law", list(ReadLaw))
def test_the_same_seed_gives_the_same_examples_and_another_seed_others(law: ReadLaw) -> None:
    def draw(seed: int) -> list[bytes]:
        workload = make_synthetic(law, scale=1e-4, seed=seed, train=300, test=50)
        batch = workload.train.batch(np.arange(300))
        ids = [array.tobytes() for feature in batch.features for array in (feature.ids, feature.offsets)]
        return [batch.dense.tobytes(), batch.labels.tobytes(), *ids]

    assert draw(5) == draw(5)
    differing = [a != b for a, b in zip(draw(5), draw(6), strict=True)]
    assert sum(differing) > 26  # everything but the offsets of one-id features, which are 0, 1, 2, …


def test_full_scale_has_mlperf_sizes_without_building_tables() -> None:
    workload = make_synthetic(ReadLaw.ZIPF, train=64, test=8)
    assert tuple(feature.rows for feature in workload.features) == MLPERF_ROWS


def test_the_verify_scale_keeps_small_tables_and_shrinks_large_ones() -> None:
    rows = [feature.rows for feature in load("zipf", scale=VERIFY_SCALE).features]
    assert sum(rows) < 25_000
    assert rows[5] == 3
    assert rows[0] == 3988


@pytest.mark.parametrize("rows", [3, 30, 3000])
def test_zipf_reads_have_exactly_their_law(rows: int) -> None:
    draws = 200_000
    found = np.bincount(zipf_ranks(np.random.PCG64(11), draws, rows), minlength=rows)
    weights = np.arange(1, rows + 1) ** -1.05
    expected = draws * weights / weights.sum()
    # Pool the tail so that every cell expects at least 50, then Pearson's chi-squared statistic against the point
    # that it exceeds with probability 1e-9 (z = 6.0 in Wilson and Hilferty's approximation).
    cells = int((expected >= 50).sum())
    observed, wanted = found[:cells].astype(float), expected[:cells]
    if cells < rows:
        observed = np.append(observed, found[cells:].sum())
        wanted = np.append(wanted, expected[cells:].sum())
    freedom = observed.size - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 6.0 * np.sqrt(2 / (9 * freedom))) ** 3
    assert ((observed - wanted) ** 2 / wanted).sum() < limit


def test_zipf_reads_of_forty_million_rows_stay_in_range() -> None:
    ranks = zipf_ranks(np.random.PCG64(1), 100_000, 39_979_771)
    assert ranks.min() == 0
    assert 1_000_000 < ranks.max() < 39_979_771


@given(rows=st.integers(1, 3000))
@settings(max_examples=60)
def test_scatter_is_a_permutation(rows: int) -> None:
    assert np.array_equal(np.sort(scatter(np.arange(rows), rows)), np.arange(rows))


def test_the_labels_follow_the_planted_model() -> None:
    workload = make_synthetic(ReadLaw.ZIPF, scale=1e-4, seed=2, train=20_000, test=10)
    dense, labels = workload.train.dense.astype(np.float64), workload.train.labels
    direction = dense.T @ (labels - labels.mean())  # one gradient step of logistic regression from zero
    scores = dense @ direction
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    ones = labels == 1
    auc = (ranks[ones].sum() - ones.sum() * (ones.sum() + 1) / 2) / (ones.sum() * (~ones).sum())
    # Labels without the planted weights would have AUC 1/2 with a std below 0.005 at 20,000 examples.
    assert auc > 0.6


def test_bags_are_bags_and_some_are_empty_and_some_repeat() -> None:
    workload = load("zipf", scale=VERIFY_SCALE)
    ids, offsets = workload.train.features[11]
    lengths = np.diff(offsets)
    assert (lengths.min(), lengths.max()) == (0, 8)
    some = range(2000)
    repeats = [len(set(ids[offsets[i] : offsets[i + 1]])) < lengths[i] for i in some]
    assert any(repeats)
    assert all((np.diff(o) == 1).all() for i, (_, o) in enumerate(workload.train.features) if i not in (4, 11, 23))


# --- load --------------------------------------------------------------------------------------------------------


def test_every_workload_is_listed_with_one_line() -> None:
    names = [name for name, line in available() if line and "\n" not in line]
    assert names == ["movielens-100k", "insteval", "criteo", "zipf", "uniform"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "netflix"}, "workload must be one of movielens-100k, .*, got 'netflix'"),
        ({"name": "zipf", "scale": 0.0}, "scale must be > 0 got 0.0"),
        ({"name": "zipf", "scale": float("nan")}, "scale must be > 0"),
        ({"name": "zipf", "scale": 1e6}, "less than 2"),
        ({"name": "movielens-100k", "scale": 0.5}, "scale must be 1, for its tables have fixed sizes"),
        ({"name": "uniform", "path": "x"}, "takes no path"),
        ({"name": "uniform", "seed": -1}, "seed must be >= 0"),
    ],
)
def test_arguments_that_do_not_apply_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(**arguments)  # type: ignore[arg-type]


def test_notes_fit_into_a_manifest() -> None:
    notes = load("zipf", scale=VERIFY_SCALE).notes
    assert json.loads(json.dumps(notes)) == notes
    assert "one example" in notes["unit_of_privacy"]
