"""The CPU backend finds the rows that owe noise and pays them the very bits of the definition."""

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samelaw.contract.errors import AddressError, InputError
from samelaw.contract.noise import NoiseKey, NoiseStream
from samelaw.contract.schedule import NoiseClock, Schedule
from samelaw.contract.spec import Mode
from samelaw.fast.cpu import CpuKernels
from samelaw.fast.kernels import NoisePlan
from samelaw.reference.settlement import Settlement

KERNELS = CpuKernels()
DIMS = (1, 3, 8, 16, 17, 64, 128)
SCHEDULES = (
    Schedule.constant(0.1, steps=1),
    Schedule.constant(0.1, steps=64),
    Schedule.constant(0.3, steps=100),
    Schedule.warmup_cosine(0.1, steps=33, warmup=5),
    Schedule.piecewise([5, 20, 50], [0.0, 0.1, 0.0, 0.2], steps=60),
    Schedule.piecewise([3, 8], [0.5, 0.01, 0.0], steps=16),
)


def clock_of(schedule: Schedule, *, noise_multiplier: float = 1.1) -> NoiseClock:
    return NoiseClock.of(schedule, noise_multiplier=noise_multiplier, clip_norm=0.7, expected_batch_size=9.0)


def settled(plan, weights, rows, since, until):
    """The whole table after settling, and what the definition makes of it."""
    found, expected = torch.from_numpy(weights.copy()), weights.copy()
    KERNELS.settle(found, torch.from_numpy(rows), torch.from_numpy(since), until, plan)
    twin = Settlement(plan.mode, plan.stream, plan.clock, table=plan.table, dim=plan.dim)
    expected[rows] = twin.settle(weights[rows], rows, since, until)
    return found.numpy().view(np.int32), expected.view(np.int32)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("mode", list(Mode))
def test_settling_pays_the_bits_of_the_definition_and_touches_no_other_row(mode, data):
    schedule = data.draw(st.sampled_from(SCHEDULES))
    dim = data.draw(st.sampled_from(DIMS))
    until = data.draw(st.integers(0, min(schedule.steps, 40) if mode is Mode.REPLAY else schedule.steps))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**20)))
    table_rows = data.draw(st.integers(1, 40))
    rows = rng.permutation(table_rows)[: data.draw(st.integers(0, table_rows))].astype(np.int64)
    since = rng.integers(0, until + 1, rows.size)
    stream = NoiseStream(NoiseKey.from_seed(1), rounds=data.draw(st.sampled_from((8, 12, 20))))
    plan = NoisePlan(mode, stream, clock_of(schedule), data.draw(st.integers(0, 2**16 - 1)), dim)
    weights = rng.standard_normal((table_rows, dim)).astype(np.float32)
    found, expected = settled(plan, weights, rows, since, until)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("mode", [Mode.BRIDGE, Mode.AGGREGATE])
@pytest.mark.parametrize("bits", [8, 16, 24, 30, 31])
def test_spans_around_each_power_of_two_of_a_run_of_2_31_steps(mode, bits):
    clock = clock_of(Schedule.piecewise([2**20, 2**30], [0.1, 0.2, 0.05], steps=2**31))
    until = min(2**bits + 1, 2**31)
    since = np.array([0, 1, 2**bits - 2, 2**bits - 1, 2 ** (bits - 1), until - 1, until], dtype=np.int64)
    plan = NoisePlan(mode, NoiseStream(NoiseKey.from_seed(2)), clock, 5, 17)
    weights = np.random.default_rng(bits).standard_normal((since.size, 17)).astype(np.float32)
    found, expected = settled(plan, weights, np.arange(since.size), since, until)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("mode", list(Mode))
def test_every_span_of_a_short_run_agrees(mode):
    schedule = Schedule.piecewise([2, 5, 9], [0.1, 0.0, 0.4, 0.05], steps=11)
    plan = NoisePlan(mode, NoiseStream(NoiseKey.from_seed(3)), clock_of(schedule), 0, 5)
    spans = [(a, b) for b in range(12) for a in range(b + 1)]
    weights = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
    for since, until in spans:
        owed = np.full(12, since, dtype=np.int64)
        found, expected = settled(plan, weights, np.arange(12), owed, until)
        assert np.array_equal(found, expected), (since, until)


@pytest.mark.parametrize("mode", list(Mode))
def test_negative_zeros_and_a_clock_that_stands_still_keep_every_bit(mode):
    clock = clock_of(Schedule.constant(0.1, steps=8), noise_multiplier=0.0)
    plan = NoisePlan(mode, NoiseStream(NoiseKey.from_seed(4)), clock, 0, 20)
    weights = np.array([[-0.0] * 20, [0.0] * 20, [np.float32(1e-45)] * 20], dtype=np.float32)
    found, expected = settled(plan, weights, np.arange(3), np.zeros(3, dtype=np.int64), 8)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("dim", [3, 64])
def test_threads_change_nothing(mode, dim):
    plan = NoisePlan(mode, NoiseStream(NoiseKey.from_seed(5)), clock_of(Schedule.constant(0.1, steps=50)), 1, dim)
    rng = np.random.default_rng(6)
    weights = rng.standard_normal((3000, dim)).astype(np.float32)
    rows, since = torch.from_numpy(rng.permutation(3000)), torch.from_numpy(rng.integers(0, 51, 3000))
    before, results = numba.get_num_threads(), []
    try:
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            table = torch.from_numpy(weights.copy())
            CpuKernels(threads).settle(table, rows, since, 50, plan)
            results.append(table.numpy().view(np.int32))
    finally:
        numba.set_num_threads(before)
    assert np.array_equal(*results)


def test_a_table_that_starts_off_a_cache_line_is_settled_alike():
    plan = NoisePlan(Mode.REPLAY, NoiseStream(NoiseKey.from_seed(7)), clock_of(Schedule.constant(0.1, steps=5)), 0, 33)
    rng = np.random.default_rng(8)
    weights = rng.standard_normal((40, 33)).astype(np.float32)
    rows, since = torch.arange(40), torch.zeros(40, dtype=torch.int64)
    results = []
    for shift in (0, 1, 7):
        memory = torch.zeros(40 * 33 + 8)
        table = memory[shift : shift + 40 * 33].view(40, 33)
        table.copy_(torch.from_numpy(weights))
        KERNELS.settle(table, rows, since, 5, plan)
        results.append(table.clone())
        assert not memory[:shift].any()
        assert not memory[shift + 40 * 33 :].any()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@settings(max_examples=100, deadline=None)
@given(
    history=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    picks=st.lists(st.integers(0, 10**6), max_size=120),
    until=st.integers(0, 9),
    wide=st.booleans(),
)
def test_due_rows_are_the_distinct_late_ids_in_order_of_first_occurrence(history, picks, until, wide):
    ids = [p % len(history) for p in picks]
    paid = torch.tensor(history, dtype=torch.int64 if wide else torch.int32)
    rows, since = KERNELS.due_rows(paid, torch.tensor(ids, dtype=torch.int64), until)
    late = [r for r in dict.fromkeys(ids) if history[r] < until]
    assert rows.tolist() == late
    assert since.tolist() == [history[r] for r in late]
    assert rows.dtype == since.dtype == torch.int64
    assert paid.tolist() == [until if r in late else h for r, h in enumerate(history)]


def test_a_history_of_int64_goes_on_where_int32_ends():
    wide = torch.tensor([0, 2**31 - 1, 2**31 + 5])
    rows, since = KERNELS.due_rows(wide, torch.tensor([2, 1, 0]), 2**31)
    assert (rows.tolist(), since.tolist()) == ([1, 0], [2**31 - 1, 0])
    assert wide.tolist() == [2**31, 2**31, 2**31 + 5]
    narrow = torch.zeros(3, dtype=torch.int32)
    assert KERNELS.due_rows(narrow, torch.tensor([1]), 2**31 - 1)[0].tolist() == [1]
    with pytest.raises(InputError, match="int64"):
        KERNELS.due_rows(narrow, torch.tensor([0]), 2**31)
    assert narrow.tolist() == [0, 2**31 - 1, 0]


@pytest.mark.parametrize("bad", [-1, 3, 2**40, -(2**63)])
def test_an_id_outside_the_table_is_refused_before_anything_is_written(bad):
    history = torch.zeros(3, dtype=torch.int32)
    with pytest.raises(InputError, match=r"ids\[1\] must be in 0\.\.2"):
        KERNELS.due_rows(history, torch.tensor([0, bad]), 4)
    assert history.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("rows", "since", "until", "match"),
    [
        ([0, 9], [0, 0], 3, "row 9"),
        ([0, -1], [0, 0], 3, "row -1"),
        ([0, 1], [0, 4], 3, "since 4"),
        ([0, 1], [0, -1], 3, "since -1"),
        ([0, 1], [0], 3, "one length"),
        ([0, 1], [0, 0], 6, "5 steps"),
        ([0, 1], [0, 0], -1, "5 steps"),
    ],
)
@pytest.mark.parametrize("mode", list(Mode))
def test_a_span_or_row_out_of_range_is_refused_before_anything_is_written(mode, rows, since, until, match):
    plan = NoisePlan(mode, NoiseStream(NoiseKey.from_seed(1)), clock_of(Schedule.constant(0.1, steps=5)), 0, 4)
    weights = torch.zeros(3, 4)
    with pytest.raises(InputError, match=match):
        KERNELS.settle(weights, torch.tensor(rows), torch.tensor(since), until, plan)
    assert not weights.any()


def test_tensors_of_the_wrong_kind_are_refused():
    plan = NoisePlan(Mode.REPLAY, NoiseStream(NoiseKey.from_seed(1)), clock_of(SCHEDULES[1]), 0, 4)
    rows, since, weights = torch.tensor([0]), torch.tensor([0]), torch.zeros(3, 4)
    for wrong in (weights.double(), torch.zeros(4, 3).T, torch.zeros(12), torch.zeros(3, 5)):
        with pytest.raises(InputError):
            KERNELS.settle(wrong, rows, since, 2, plan)
    with pytest.raises(InputError, match="rows"):
        KERNELS.settle(weights, rows.int(), since, 2, plan)
    with pytest.raises(InputError, match="CPU"):
        KERNELS.settle(weights.to("meta"), rows, since, 2, plan)
    beyond = NoisePlan(plan.mode, plan.stream, plan.clock, 2**16, 4)
    with pytest.raises(AddressError):
        KERNELS.settle(weights, rows, since, 2, beyond)
