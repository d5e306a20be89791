"""Reading, clipping and summing on the CPU give the very bits of the definition."""

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samelaw.contract.errors import InputError
from samelaw.contract.trace import Lookup, Pooling
from samelaw.fast.cpu import CpuKernels
from samelaw.fast.kernels import LookupCall
from samelaw.reference import clipping
from samelaw.reference.reading import read_bags

KERNELS = CpuKernels()
DIMS = (1, 3, 8, 16, 17, 64, 128)
EXPONENT = -32


def call_of(lookup: Lookup) -> LookupCall:
    weights = None if lookup.weights is None else torch.from_numpy(lookup.weights)
    parts = (torch.from_numpy(a) for a in (lookup.ids, lookup.offsets, lookup.example_of_bag))
    return LookupCall(*parts, lookup.pooling, weights)


def lookup_of(bags, owners, *, pooling=Pooling.SUM, weights=None) -> Lookup:
    """Bags of ids, each with the example that owns it."""
    ids = np.array([r for bag in bags for r in bag], dtype=np.int64)
    offsets = np.cumsum([0, *map(len, bags)]).astype(np.int64)
    return Lookup("t", ids, offsets, np.array(owners, dtype=np.int64), pooling, weights)


@st.composite
def lookups(draw, *, rows: int, examples: int, longest: int = 12):
    """One call: bags of any length over few rows, so that repeats and shared rows are common."""
    count = draw(st.integers(0, 2 * examples))
    owners = sorted(draw(st.lists(st.integers(0, examples - 1), min_size=count, max_size=count)))
    if draw(st.booleans()):  # the usual shape: one bag an example
        owners = list(range(examples))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    bags = [rng.integers(0, rows, rng.integers(0, longest + 1)).tolist() for _ in owners]
    kind = draw(st.sampled_from(("sum", "mean", "weighted")))
    weights = None
    if kind == "weighted":
        weights = rng.choice(np.array([1, -1, 0, 0.1, 3.7, -2.5e-3], dtype=np.float32), sum(map(len, bags)))
    return lookup_of(bags, owners, pooling=Pooling.MEAN if kind == "mean" else Pooling.SUM, weights=weights)


@st.composite
def table_batches(draw):
    """One table's calls with pooled gradients and clip factors."""
    examples, rows = draw(st.integers(1, 12)), draw(st.integers(1, 15))
    calls = draw(st.lists(lookups(rows=rows, examples=examples), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    dim = draw(st.sampled_from(DIMS))
    pooled = [(rng.standard_normal((c.bags, dim)) * 10.0 ** rng.integers(-8, 3)).astype(np.float32) for c in calls]
    return calls, pooled, examples, rows, rng


def same_bits(found: torch.Tensor, expected: np.ndarray) -> bool:
    array = found.detach().numpy()
    words = {4: np.int32, 8: np.int64}[array.dtype.itemsize]
    return array.dtype == expected.dtype and np.array_equal(array.view(words), expected.view(words))


def assert_table_is_the_definition(calls, pooled, examples, rows, rng):
    """Norms, sums and update of one table against the definition."""
    torch_calls, torch_pooled = [call_of(c) for c in calls], [torch.from_numpy(p) for p in pooled]
    start = rng.random(examples)
    expected = clipping.square_norms(calls, pooled, start, ["t"])
    found = KERNELS.square_norms(torch_calls, torch_pooled, torch.from_numpy(start))
    assert same_bits(found, expected)

    factors = clipping.clip_factors(expected, 1.0)
    sums = clipping.gradient_sums(calls, pooled, factors, EXPONENT, ["t"])
    touched, totals = KERNELS.gradient_sums(torch_calls, torch_pooled, torch.from_numpy(factors), EXPONENT)
    dim = pooled[0].shape[1]
    assert same_bits(touched, sums.rows.get("t", np.empty(0, dtype=np.int64)))
    assert same_bits(totals, sums.sums.get("t", np.empty((0, dim), dtype=np.int64)))

    weights, rate = rng.standard_normal((rows, dim)).astype(np.float32), np.float32(0.37)
    table = torch.from_numpy(weights.copy())
    KERNELS.update(table, torch_calls, torch_pooled, torch.from_numpy(factors), EXPONENT, float(rate))
    if "t" in sums.rows:
        gradient = np.ldexp(sums.sums["t"].astype(np.float32), EXPONENT)
        weights[sums.rows["t"]] = weights[sums.rows["t"]] - rate * gradient
    assert same_bits(table, weights)


@settings(max_examples=120, deadline=None)
@given(batch=table_batches())
def test_clipping_summing_and_updating_are_the_definition(batch):
    assert_table_is_the_definition(*batch)


@settings(max_examples=120, deadline=None)
@given(lookup=lookups(rows=9, examples=8, longest=30), dim=st.sampled_from(DIMS), seed=st.integers(0, 2**20))
def test_reading_is_the_definition(lookup, dim, seed):
    weights = np.random.default_rng(seed).standard_normal((9, dim)).astype(np.float32)
    weights[0, 0] = -0.0
    assert same_bits(KERNELS.pool(torch.from_numpy(weights), call_of(lookup)), read_bags(weights, lookup))


@pytest.mark.parametrize("length", [31, 32, 33, 200, 1100])
@pytest.mark.parametrize("weighted", [False, True])
def test_long_bags_with_few_distinct_rows_agree_where_the_search_changes(length, weighted):
    rng = np.random.default_rng(length)
    bags = [rng.integers(0, length, length).tolist() for _ in range(4)] + [[5] * length, list(range(length))]
    weights = rng.standard_normal(6 * length).astype(np.float32) if weighted else None
    lookup = lookup_of(bags, [0, 0, 0, 1, 1, 2], weights=weights)
    pooled = [rng.standard_normal((6, 17)).astype(np.float32)]
    assert_table_is_the_definition([lookup], pooled, 3, length, rng)


def test_rows_that_collide_in_a_hash_table_stay_apart():
    # Multiples of 2^32 agree in the low half of the product that places them, so probing has to tell them apart.
    rows = [k << 32 for k in range(60)] + [k << 20 for k in range(1, 60)]
    rng = np.random.default_rng(1)
    lookup = lookup_of([rows, rows[::-1], rows * 2], [0, 1, 2])
    pooled = [rng.standard_normal((3, 8)).astype(np.float32)]
    factors = np.array([1.0, 0.5, 0.25])
    expected = clipping.gradient_sums([lookup], pooled, factors, EXPONENT, ["t"])
    found = KERNELS.gradient_sums([call_of(lookup)], [torch.from_numpy(pooled[0])], torch.from_numpy(factors), EXPONENT)
    assert same_bits(found[0], expected.rows["t"])
    assert same_bits(found[1], expected.sums["t"])


def test_one_id_a_bag_for_many_examples_agrees_and_threads_change_nothing():
    rng = np.random.default_rng(2)
    examples, dim = 5000, 33
    lookup = lookup_of(rng.integers(0, 3000, (examples, 1)).tolist(), range(examples))
    pooled = [rng.standard_normal((examples, dim)).astype(np.float32)]
    assert_table_is_the_definition([lookup], pooled, examples, 3000, rng)
    call, gradient = call_of(lookup), torch.from_numpy(pooled[0])
    factors, start = torch.from_numpy(rng.random(examples)), torch.zeros(examples, dtype=torch.float64)
    before, results = numba.get_num_threads(), []
    try:
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            kernels, table = CpuKernels(threads), torch.ones(3000, dim)
            kernels.update(table, [call], [gradient], factors, EXPONENT, 0.5)
            norms = kernels.square_norms([call], [gradient], start)
            results.append((table, norms, kernels.gradient_sums([call], [gradient], factors, EXPONENT)[1]))
    finally:
        numba.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 3e38])
def test_an_example_with_a_gradient_beyond_measure_contributes_nothing(bad):
    lookup = lookup_of([[0, 1], [1], [2]], [0, 1, 2])
    pooled = np.ones((3, 9), dtype=np.float32)
    pooled[1, 4] = bad
    start = torch.zeros(3, dtype=torch.float64)
    norms = KERNELS.square_norms([call_of(lookup)], [torch.from_numpy(pooled)], start).numpy()
    factors = clipping.clip_factors(norms, 1.0)
    assert factors[1] < 1e-37
    sums = KERNELS.gradient_sums([call_of(lookup)], [torch.from_numpy(pooled)], torch.from_numpy(factors), EXPONENT)
    expected = clipping.gradient_sums([lookup], [pooled], factors, EXPONENT, ["t"])
    assert same_bits(sums[1], expected.sums["t"])


def test_a_sum_beyond_2_53_is_rounded_once_on_its_way_to_float32():
    # 2^55 + 2^31 + 1 lies just above a tie of float32; through float64 it would lose the 1 and round to even, down.
    units = [2**55, 2**31, 1]
    once, twice = np.int64(sum(units)).astype(np.float32), np.float32(np.float64(sum(units)))
    assert once > twice, "the case must tell the two roundings apart"
    gradient = np.ldexp(np.array(units, dtype=np.float32), EXPONENT)[:, None]
    call, table, factors = (
        call_of(lookup_of([[0]] * 3, range(3))),
        torch.zeros(1, 1),
        torch.ones(3, dtype=torch.float64),
    )
    KERNELS.update(table, [call], [torch.from_numpy(gradient)], factors, EXPONENT, 1.0)
    assert -table.item() == float(once) * 2.0**EXPONENT


@pytest.mark.parametrize("last", [[], [4], [4, 2]])
def test_bags_of_at_most_one_id_agree_and_so_does_the_first_bag_of_two(last):
    rng = np.random.default_rng(9)
    lookup = lookup_of([[3], [], [3], [1], last], range(5))
    pooled = [rng.standard_normal((5, 17)).astype(np.float32)]
    assert_table_is_the_definition([lookup], pooled, 5, 5, rng)


def test_empty_calls_change_nothing():
    nothing = lookup_of([], [])
    empties = lookup_of([[], []], [0, 1], pooling=Pooling.MEAN)
    start = torch.tensor([1.5, 2.5], dtype=torch.float64)
    factors, table = torch.ones(2, dtype=torch.float64), torch.ones(3, 4)
    for lookup in (nothing, empties):
        call, gradient = call_of(lookup), torch.ones(lookup.bags, 4)
        assert KERNELS.pool(table, call).tolist() == [[0.0] * 4] * lookup.bags
        assert torch.equal(KERNELS.square_norms([call], [gradient], start), start)
        rows, sums = KERNELS.gradient_sums([call], [gradient], factors, EXPONENT)
        assert rows.shape == (0,)
        assert sums.shape == (0, 4)
        KERNELS.update(table, [call], [gradient], factors, EXPONENT, 1.0)
        assert torch.equal(table, torch.ones(3, 4))
    assert torch.equal(KERNELS.square_norms([], [], start), start)


def test_a_call_that_changes_between_clipping_and_update_is_counted_again():
    ids = torch.tensor([0, 0])
    call = LookupCall(ids, torch.tensor([0, 1, 2]), torch.tensor([0, 1]))
    gradient, table = torch.full((2, 4), 0.25), torch.zeros(3, 4)
    factors, start = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    KERNELS.square_norms([call], [gradient], start)
    ids[1] = 2
    KERNELS.update(table, [call], [gradient], factors, EXPONENT, 1.0)
    assert table[:, 0].tolist() == [-0.25, 0.0, -0.25]
    ids[1] = 9
    with pytest.raises(InputError, match=r"ids\[1\]"):
        KERNELS.update(table, [call], [gradient], factors, EXPONENT, 1.0)


def bad_calls():
    """Calls with one thing wrong each, and the words that the message must hold."""
    ids, offsets, owners = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 3]), torch.tensor([0, 1])
    yield "ids\\[2\\]", LookupCall(torch.tensor([0, 1, 9]), offsets, owners)
    yield "ids\\[0\\]", LookupCall(torch.tensor([-1, 1, 2]), offsets, owners)
    yield "rise from 0", LookupCall(ids, torch.tensor([0, 3]), owners)
    yield "rise from 0", LookupCall(ids, torch.tensor([0, 1, 2]), owners)
    yield "rise from 0", LookupCall(ids, torch.tensor([1, 2, 3]), owners)
    yield "bag 1", LookupCall(ids, torch.tensor([0, 4, 3]), owners)
    yield "bag 1", LookupCall(ids, offsets, torch.tensor([1, 0]))
    yield "weights", LookupCall(ids, offsets, owners, Pooling.SUM, torch.ones(2))
    yield "weights", LookupCall(ids, offsets, owners, Pooling.MEAN, torch.ones(3))
    yield "ids must be", LookupCall(ids.int(), offsets, owners)
    yield "offsets must be", LookupCall(ids, offsets.int(), owners)
    yield "contiguous", LookupCall(torch.arange(6)[::2], offsets, owners)


@pytest.mark.parametrize(("match", "call"), list(bad_calls()))
def test_a_malformed_call_is_refused_before_anything_is_written(match, call):
    table, factors = torch.ones(3, 4), torch.ones(2, dtype=torch.float64)
    with pytest.raises(InputError, match=match):
        KERNELS.pool(table, call)
    with pytest.raises(InputError, match=match):
        KERNELS.update(table, [call], [torch.ones(2, 4)], factors, EXPONENT, 1.0)
    assert torch.equal(table, torch.ones(3, 4))


def test_gradients_and_factors_that_do_not_fit_are_refused():
    call, table = call_of(lookup_of([[0], [1]], [0, 1])), torch.ones(3, 4)
    ones, factors = torch.ones(2, 4), torch.ones(2, dtype=torch.float64)
    for pooled, factor, match in (
        (torch.ones(3, 4), factors, "pooled gradient"),
        (torch.ones(2, 5), factors, "columns"),
        (ones.double(), factors, "pooled"),
        (ones, factors[:1], r"example_of_bag must stay in 0\.\.0"),
        (ones, factors * 1.01, "clip factors"),
        (ones, factors * float("nan"), "clip factors"),
        (ones, factors.float(), "factors"),
    ):
        with pytest.raises(InputError, match=match):
            KERNELS.update(table, [call], [pooled], factor, EXPONENT, 1.0)
    with pytest.raises(InputError, match="one pooled gradient per call"):
        KERNELS.update(table, [call], [], factors, EXPONENT, 1.0)
    assert torch.equal(table, torch.ones(3, 4))
