"""The schedule, in Python as it runs, on free terms: the eager, the lazy and the fast path do the same to every row."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from samelaw.contract.errors import InputError
from samelaw.reference import lazy_schedule, rows, truncation

sys.path.insert(0, str(Path(__file__).parents[1] / "proofs"))

import fast_ties
import ties


def ids_of(sizes: dict[str, int], most: int) -> Any:
    return st.fixed_dictionaries({n: st.lists(st.integers(0, sizes[n] - 1), max_size=most) for n in sizes})


def step_of(sizes: dict[str, int]) -> Any:
    reads = st.lists(ids_of(sizes, 4), max_size=3).map(tuple)
    return st.builds(ties.Step, reads, ids_of(sizes, 4), ids_of(sizes, 3))


SIZES = st.fixed_dictionaries({"item": st.integers(1, 5), "user": st.integers(1, 3)})
TRACES = SIZES.flatmap(lambda s: st.builds(ties.Trace, st.just(s), st.lists(step_of(s), max_size=6).map(tuple)))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(TRACES, st.data())
def test_E1_lazy_and_a_resumed_lazy_do_to_every_row_what_eager_does(trace, data):
    pause = data.draw(st.integers(0, len(trace.steps)))
    ties.check_schedule(trace, lazy_schedule, rows, pause)


@pytest.mark.parametrize("seed", range(4))
def test_E1_runs_of_many_steps_and_tables_of_hundreds_of_rows(seed):
    """What goes wrong only after some steps, or only for the rows beyond some number."""
    rng = np.random.default_rng(seed)
    for trace in (ties.long_trace(rng), ties.long_trace(rng), ties.wide_trace(rng)):
        ties.check_schedule(trace, lazy_schedule, rows, len(trace.steps) // 2)


def test_E1_a_table_that_settles_64_rows_at_most_is_noticed(monkeypatch):
    monkeypatch.setattr(lazy_schedule, "distinct", lambda asked: {n: np.unique(ids)[:64] for n, ids in asked.items()})
    with pytest.raises(AssertionError, match="something else"):
        ties.check_schedule(ties.wide_trace(np.random.default_rng(0)), lazy_schedule, rows, 1)


def fast_step_of(sizes: dict[str, int]) -> Any:
    bag = {n: st.lists(st.integers(0, sizes[n] - 1), max_size=3) for n in sizes}
    batch = st.integers(0, 3).flatmap(
        lambda b: st.fixed_dictionaries({n: st.lists(bag[n], min_size=b, max_size=b) for n in sizes})
    )
    nothing = st.just({n: [] for n in sizes})
    return st.builds(fast_ties.FastStep, batch, nothing | ids_of(sizes, 3), nothing | ids_of(sizes, 2), st.booleans())


@settings(max_examples=120, deadline=None, derandomize=True)
@given(SIZES.flatmap(lambda s: st.tuples(st.just(s), st.lists(fast_step_of(s), max_size=6))), st.data())
def test_E1_the_fast_trainer_does_to_every_row_what_eager_does(tmp_path_factory, case, data):
    """Repeats in a bag and across examples, empty batches and bags, rows never read, rows settled early, a resume."""
    sizes, steps = case
    pause = data.draw(st.none() | st.integers(0, len(steps)))
    fast_ties.check_fast(sizes, steps, tmp_path_factory.mktemp("fast"), pause)


def test_E1_the_check_of_the_fast_trainer_sees_a_row_that_pays_a_step_too_few(tmp_path, monkeypatch):
    empty = {"item": [], "user": []}
    steps = [fast_ties.FastStep({"item": [[0]], "user": [[0]]}, empty, empty, settle=False)] * 3
    fast_ties.check_fast({"item": 2, "user": 1}, steps, tmp_path, None)
    honest = fast_ties.Terms.paid
    monkeypatch.setattr(
        fast_ties.Terms, "paid",
        lambda self, name, row, since, until, term: honest(self, name, row, max(since, until - 1), until, term),
    )  # fmt: skip
    with pytest.raises(AssertionError, match="something else"):
        fast_ties.check_fast({"item": 2, "user": 1}, steps, tmp_path, None)


@pytest.mark.parametrize("seed", range(2))
def test_E1_the_fast_trainer_over_many_steps_and_hundreds_of_rows(tmp_path, seed):
    rng = np.random.default_rng(seed)
    sizes = {name: int(rng.integers(2, 6)) for name in fast_ties.FEATURES}
    many = [fast_ties.random_step(rng, sizes) for _ in range(int(rng.integers(10, 41)))]
    fast_ties.check_fast(sizes, many, tmp_path, len(many) // 2)
    wide, steps = fast_ties.wide_run(rng)
    fast_ties.check_fast(wide, steps, tmp_path / "wide", None, chunk=64)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_E1_the_check_of_the_fast_trainer_sees_ids_beyond_256_that_are_never_due(tmp_path, monkeypatch, step):
    """A bag, an announcement and a prediction of hundreds of ids are each enough to notice."""
    honest = fast_ties.TermKernels.due_rows
    monkeypatch.setattr(
        fast_ties.TermKernels, "due_rows", lambda self, history, ids, until: honest(self, history, ids[:256], until)
    )
    sizes, steps = fast_ties.wide_run(np.random.default_rng(0))
    with pytest.raises(AssertionError, match="something else"):
        fast_ties.check_fast(sizes, steps[: step + 1], tmp_path, None)


VECTORS = st.lists(
    st.lists(st.floats(-1e6, 1e6, allow_subnormal=True), min_size=1, max_size=4).map(np.array), min_size=1, max_size=3
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(VECTORS, st.floats(1e-6, 1e6))
def test_S1_in_exact_rationals_no_contribution_exceeds_the_clip_norm(gradients, clip_norm):
    ties.check_truncation(truncation, gradients, clip_norm, -30)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(-(2**40), 2**40), min_size=3, max_size=3), max_size=5))
def test_S5_the_sum_of_a_batch_is_exact(parts):
    ties.check_batch_sum(truncation, parts, 3)


@pytest.mark.parametrize("index", [0, slice(0, 2), [0, 1], np.array([0.0]), np.array([[0]])])
def test_V1_a_read_that_could_be_a_view_is_refused(index):
    """A view that is kept as a read shows the row's latest value; the program would not be the one that is proved."""
    weights = rows.Weights({"t": np.zeros((3, 2), dtype=np.float32)})
    with pytest.raises((InputError, TypeCheckError)):  # the test run checks annotations first
        weights[{"t": index}]
    with pytest.raises(InputError, match="view"):
        rows._indices("t", index, weights.arrays["t"])


@pytest.mark.parametrize("row", [-1, 3])
def test_V1_a_row_that_does_not_exist_is_refused(row):
    weights = rows.Weights({"t": np.zeros((3, 2), dtype=np.float32)})
    with pytest.raises(InputError, match=r"rows 0\.\.2"):
        weights[{"t": np.array([row])}]


def test_V1_reads_and_writes_share_no_memory_with_the_table():
    given_array = np.zeros((3, 2), dtype=np.float32)
    weights = rows.Weights({"t": given_array})
    written = np.ones((2, 2), dtype=np.float32)
    weights[{"t": np.array([0, 1])}] = {"t": written}
    read = weights[{"t": np.array([0, 1])}]["t"]
    for other in (given_array, written, read):
        assert not np.shares_memory(weights.arrays["t"], other)


def test_V1_the_check_on_terms_notices_a_table_that_hands_out_views(monkeypatch):
    """The trap itself: were a read a view, eager and lazy could agree on tables while what was read is overwritten."""
    monkeypatch.setattr(rows.Weights, "__getitem__", lambda self, asked: {n: self.arrays[n][:1] for n in asked})
    step = ties.Step(({"t": [0]},), {"t": [0]}, {"t": []})
    with pytest.raises(AssertionError, match="view"):
        ties.check_schedule(ties.Trace({"t": 1}, (step, step)), lazy_schedule, rows, 1)
