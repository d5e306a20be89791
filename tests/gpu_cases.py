"""What the GPU backend must compute, bit for bit, as plain functions of a backend.

tests/test_gpu_interpreter.py runs every case in Triton's interpreter, in a process of its own (`python gpu_cases.py`
with TRITON_INTERPRET=1: Triton decides at import whether it interprets). tests/test_gpu_device.py runs the same cases on
a CUDA device, and larger ones.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from samelaw.contract.errors import AddressError, InputError
from samelaw.contract.noise import NoiseKey, NoiseStream, Purpose
from samelaw.contract.schedule import NoiseClock, Schedule
from samelaw.contract.spec import Mode
from samelaw.contract.trace import Lookup, Pooling
from samelaw.fast.gpu import GpuKernels
from samelaw.fast.gpu.draws import bm32, chacha_block
from samelaw.fast.kernels import Kernels, LookupCall, NoisePlan
from samelaw.reference import clipping, noise, reading, sampling
from samelaw.reference.settlement import Settlement

CASES: dict[str, Callable[[GpuKernels], None]] = {}
STREAM = NoiseStream(NoiseKey.from_seed(2026), rounds=8)
FAR_ROWS = [0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**47 + 12345, 2**48 - 1]
FAR_STEPS = [0, 1, 255, 2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 77]


def case(function: Callable[[GpuKernels], None]) -> Callable[[GpuKernels], None]:
    CASES[function.__name__] = function
    return function


# --------------------------------------------------------------------------------------------------- comparing and making


def assert_same_bits(found: torch.Tensor, expected: np.ndarray | torch.Tensor) -> None:
    """Same dtype, shape and bits: -0.0 is not 0.0. A NaN matches a NaN, whose payload IEEE 754 leaves open."""
    one = found.cpu().numpy()
    two = expected.cpu().numpy() if isinstance(expected, torch.Tensor) else np.asarray(expected)
    assert (one.dtype, one.shape) == (two.dtype, two.shape), (one.dtype, one.shape, two.dtype, two.shape)
    integer = {4: np.uint32, 8: np.uint64, 1: np.uint8}[one.dtype.itemsize]
    same = np.ascontiguousarray(one).view(integer) == np.ascontiguousarray(two).view(integer)
    if one.dtype.kind == "f":
        same |= np.isnan(one) & np.isnan(two)
    if not same.all():
        where = tuple(int(i) for i in np.argwhere(~same)[0])
        raise AssertionError(f"{int((~same).sum())} of {same.size} differ, first at {where}: {one[where]!r} {two[where]!r}")


def on(kernels: Kernels, values: Any, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=kernels.device)


def moved(kernels: Kernels, array: np.ndarray) -> torch.Tensor:
    """A copy of an array on the backend's device."""
    return torch.from_numpy(array.copy()).to(kernels.device)


def a_lookup(
    rng: np.random.Generator, *, examples: int, bags: int, length: int, rows: int, pooling: Pooling, weighted: bool
) -> Lookup:
    """Up to `bags` bags an example, up to `length` ids a bag; few rows, so that ids repeat within and between bags."""
    owners = np.repeat(np.arange(examples), rng.integers(0, bags + 1, examples))
    lengths = rng.integers(0, length + 1, owners.size)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    weights = None
    if weighted:  # of either sign and of far apart sizes, so that the order of additions shows
        weights = (rng.standard_normal(offsets[-1]) * 10.0 ** rng.integers(-6, 7, offsets[-1])).astype(np.float32)
    ids = rng.integers(0, rows, offsets[-1])
    return Lookup("t", ids, offsets, owners, pooling, weights)


def as_call(kernels: Kernels, lookup: Lookup) -> LookupCall:
    return LookupCall(
        moved(kernels, lookup.ids),
        moved(kernels, lookup.offsets),
        moved(kernels, lookup.example_of_bag),
        lookup.pooling,
        None if lookup.weights is None else moved(kernels, lookup.weights),
    )


def schedules() -> list[Schedule]:
    """One segment; jumps and pauses (rate 0, also at both ends); a segment a step."""
    return [
        Schedule.constant(0.1, steps=13),
        Schedule.piecewise([2, 3, 9, 20], [0.0, 0.3, 0.0, 1e-3, 0.0], steps=23),
        Schedule.warmup_cosine(1.0, steps=37, warmup=5),
    ]


def clock_of(schedule: Schedule, *, noise_multiplier: float = 1.1) -> NoiseClock:
    return NoiseClock.of(
        schedule, noise_multiplier=noise_multiplier, clip_norm=0.7, expected_batch_size=9.0
    )


# ------------------------------------------------------------------------------------------------------------------ noise


@triton.jit
def blocks_kernel(out, key, counters, count, ROUNDS: tl.constexpr, LANES: tl.constexpr):
    """out[l] = the sixteen words of counter field l."""
    lane = tl.arange(0, LANES)
    live = lane < count
    n0 = tl.load(counters + lane * 4, mask=live, other=0).to(tl.uint32, bitcast=True)
    n1 = tl.load(counters + lane * 4 + 1, mask=live, other=0).to(tl.uint32, bitcast=True)
    n2 = tl.load(counters + lane * 4 + 2, mask=live, other=0).to(tl.uint32, bitcast=True)
    n3 = tl.load(counters + lane * 4 + 3, mask=live, other=0).to(tl.uint32, bitcast=True)
    w = chacha_block(key, n0, n1, n2, n3, ROUNDS)
    for j in tl.static_range(16):
        tl.store(out + lane * 16 + j, w[j].to(tl.int32, bitcast=True), mask=live)


@triton.jit
def transform_kernel(first, second, a, b, count, LANES: tl.constexpr):
    """BM32 alone, on given words."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    live = lane < count
    x = tl.load(a + lane, mask=live, other=0).to(tl.uint32, bitcast=True)
    y = tl.load(b + lane, mask=live, other=0).to(tl.uint32, bitcast=True)
    u, v = bm32(x, y)
    tl.store(first + lane, u, mask=live)
    tl.store(second + lane, v, mask=live)


@case
def chacha_blocks_of_the_golden_file(kernels: GpuKernels) -> None:
    """Golden blocks (RFC 8439 at 20 rounds among them), each with its own key."""
    from samelaw.equivalence.noise_vectors import load_vectors

    blocks = load_vectors().document["blocks"]
    assert {block["rounds"] for block in blocks} >= {20}
    for block in blocks:
        key = np.frombuffer(bytes.fromhex(block["key"]), dtype="<u4").view(np.int32)
        counter = np.array([int(word, 16) for word in block["counter"].split()], dtype=np.uint32)
        words = np.array([int(word, 16) for word in block["words"].split()], dtype=np.uint32)
        out = torch.zeros(16, dtype=torch.int32, device=kernels.device)
        kernels.launch(
            blocks_kernel,
            1,
            out,
            moved(kernels, key),
            moved(kernels, counter.view(np.int32)),
            1,
            ROUNDS=block["rounds"],
            LANES=16,
        )
        assert_same_bits(out, words.view(np.int32))


@case
def bm32_on_words_chosen_to_hurt(kernels: GpuKernels) -> None:
    """Both ends of the radius, both sides of every power of two, every quadrant, both ends of the angle."""
    powers = [2**k + d for k in range(33) for d in (-1, 0, 1) if 0 <= 2**k + d < 2**32]
    ends = [0, 0xFF, 0x100, 0xFFFFFF00, 0xFFFFFFFF, 0x3FFFFF00, 0x40000000, 0x80000000, 0xC0000000, 0x7FFFFFFF]
    rng = np.random.default_rng(11)
    a = np.array(powers + ends, dtype=np.uint32)
    b = np.array(ends + [*rng.integers(0, 2**32, 6)], dtype=np.uint32)
    a, b = (x.ravel() for x in np.meshgrid(a, b))
    first = torch.zeros(a.size, dtype=torch.float32, device=kernels.device)
    second = torch.zeros_like(first)
    words = moved(kernels, a.view(np.int32)), moved(kernels, b.view(np.int32))
    kernels.launch(transform_kernel, -(-a.size // 512), first, second, *words, a.size, LANES=512)
    expected = noise.bm32(a, b)
    assert_same_bits(first, expected[0])
    assert_same_bits(second, expected[1])


@case
def normals_of_the_golden_file(kernels: GpuKernels) -> None:
    from samelaw.equivalence.noise_vectors import check_backend

    def normals(
        stream: NoiseStream, purpose: Purpose, table: int, rows: np.ndarray, steps: np.ndarray, dim: int
    ) -> np.ndarray:
        drawn = kernels.normals(stream, purpose, table, moved(kernels, rows), moved(kernels, steps), dim)
        return drawn.cpu().numpy()

    assert check_backend(normals) == []


@case
def normals_at_far_addresses_and_ragged_dims(kernels: GpuKernels) -> None:
    rows, steps = np.array(FAR_ROWS), np.array(FAR_STEPS)
    for dim in (1, 15, 16, 17, 48, 100):
        found = kernels.normals(STREAM, Purpose.REPLAY, 65535, moved(kernels, rows), moved(kernels, steps), dim)
        assert_same_bits(found, noise.normals(STREAM, Purpose.REPLAY, 65535, rows, steps, dim=dim))
    found = kernels.normals(STREAM, Purpose.INITIALISATION, 1, moved(kernels, rows), 2**32 - 1, 33)
    assert_same_bits(found, noise.normals(STREAM, Purpose.INITIALISATION, 1, rows, 2**32 - 1, dim=33))


@case
def normals_at_every_number_of_rounds(kernels: GpuKernels) -> None:
    rows, steps = np.arange(5), np.arange(5) * 3
    for rounds in (8, 12, 20):
        stream = NoiseStream(NoiseKey.from_seed(rounds), rounds)
        found = kernels.normals(stream, Purpose.AGGREGATE, 3, moved(kernels, rows), moved(kernels, steps), 20)
        assert_same_bits(found, noise.normals(stream, Purpose.AGGREGATE, 3, rows, steps, dim=20))


@case
def normals_of_no_rows(kernels: GpuKernels) -> None:
    found = kernels.normals(STREAM, Purpose.REPLAY, 0, on(kernels, []), 3, 7)
    assert found.shape == (0, 7)
    assert found.dtype == torch.float32


@case
def dense_noise(kernels: GpuKernels) -> None:
    rng = np.random.default_rng(3)
    for size in (1, 15, 16, 17, 1000):
        param = rng.standard_normal(size).astype(np.float32)
        scale = np.float32(0.37)
        found = moved(kernels, param)
        kernels.subtract_noise(found, STREAM, Purpose.DENSE, 4, 2**31, float(scale))
        z = noise.normals(STREAM, Purpose.DENSE, 4, np.zeros(1, np.int64), 2**31, dim=size)[0]
        assert_same_bits(found, param - scale * z)
    untouched = torch.empty(0, dtype=torch.float32, device=kernels.device)
    kernels.subtract_noise(untouched, STREAM, Purpose.DENSE, 4, 0, 1.0)


@case
def subnormal_weights_and_scales_are_not_flushed(kernels: GpuKernels) -> None:
    """A device that flushes subnormals to zero would lose these."""
    param = np.full(64, 3e-42, dtype=np.float32)
    scale = np.float32(1e-42)
    found = moved(kernels, param)
    kernels.subtract_noise(found, STREAM, Purpose.DENSE, 0, 0, float(scale))
    z = noise.normals(STREAM, Purpose.DENSE, 0, np.zeros(1, np.int64), 0, dim=64)[0]
    expected = param - scale * z
    assert np.count_nonzero(expected) == 64
    assert (np.abs(expected) < 1e-38).all()
    assert_same_bits(found, expected)


@case
def poisson_samples(kernels: GpuKernels) -> None:
    for examples, rate in ((0, 0.5), (1, 1.0), (7, 0.999), (8, 0.5), (1000, 0.31), (5003, 2.0**-9), (64, 2.0**-70)):
        for step in (0, 2**32 - 1):
            found = kernels.poisson_sample(STREAM, step, rate, examples)
            assert_same_bits(found, sampling.poisson_sample(STREAM, step, rate, examples))


# ------------------------------------------------------------------------------------------------------------- settlement


def settle_against_the_reference(
    kernels: GpuKernels, plan: NoisePlan, weights: np.ndarray, rows: np.ndarray, since: np.ndarray, until: int
) -> None:
    settlement = Settlement(plan.mode, plan.stream, plan.clock, table=plan.table, dim=plan.dim)
    expected = weights.copy()
    expected[rows] = settlement.settle(weights[rows], rows, since, until)
    found = moved(kernels, weights)
    kernels.settle(found, moved(kernels, rows), moved(kernels, since), until, plan)
    assert_same_bits(found, expected)


@case
def settlement_in_every_mode_and_schedule(kernels: GpuKernels) -> None:
    """Rows in any order, each with its own span; rows that owe nothing and rows that are not named stay as they are."""
    rng = np.random.default_rng(17)
    for mode in Mode:
        for schedule, dim in zip(schedules(), (19, 16, 5), strict=True):
            weights = rng.standard_normal((30, dim)).astype(np.float32)
            weights[3] = -0.0
            rows = rng.permutation(30)[:17]
            until = min(schedule.steps, 12) if mode is Mode.REPLAY else schedule.steps
            since = rng.integers(0, until + 1, rows.size)
            plan = NoisePlan(mode, STREAM, clock_of(schedule), 9, dim)
            settle_against_the_reference(kernels, plan, weights, rows, since, until)


@case
def settlement_in_parts_is_settlement_at_once(kernels: GpuKernels) -> None:
    """Replay in weights, bridge in integers: paying 0..a, a..b is paying 0..b."""
    rows = on(kernels, [2, 0, 5])
    zero, middle = on(kernels, [0, 0, 0]), on(kernels, [4, 9, 1])
    clock = clock_of(schedules()[1])
    replay = NoisePlan(Mode.REPLAY, STREAM, clock, 0, 6)
    at_once = torch.ones((6, 6), dtype=torch.float32, device=kernels.device)
    in_parts = at_once.clone()
    kernels.settle(at_once, rows, zero, 11, replay)
    for row, until in ((0, 4), (1, 9), (2, 1)):
        kernels.settle(in_parts, rows[row : row + 1], zero[:1], until, replay)
    kernels.settle(in_parts, rows, middle, 11, replay)
    assert_same_bits(in_parts, at_once)

    bridge = NoisePlan(Mode.BRIDGE, STREAM, clock, 0, 6)
    first = torch.cat(
        [kernels.owed_units(rows[i : i + 1], zero[:1], until, bridge) for i, until in enumerate((4, 9, 1))]
    )
    second = kernels.owed_units(rows, middle, 23, bridge)
    assert_same_bits(first + second, kernels.owed_units(rows, zero, 23, bridge))


@case
def bridge_units(kernels: GpuKernels) -> None:
    """Integers, so also where float32 weights would hide a difference; every pair of times of a short run."""
    for schedule in (Schedule.constant(0.1, steps=1), Schedule.piecewise([1, 4], [0.2, 0.0, 0.1], steps=6)):
        clock = clock_of(schedule)
        plan = NoisePlan(Mode.BRIDGE, STREAM, clock, 2, 3)
        settlement = Settlement(Mode.BRIDGE, STREAM, clock, table=2, dim=3)
        for until in range(1, schedule.steps + 1):
            since = np.arange(until)
            rows = since + 40
            found = kernels.owed_units(moved(kernels, rows), moved(kernels, since), until, plan)
            expected = [settlement.owed_units(rows[i : i + 1], i, until)[0] for i in range(until)]
            assert_same_bits(found, np.stack(expected))


@case
def runs_of_two_to_the_31_steps(kernels: GpuKernels) -> None:
    """Bridge and aggregate across every power of two of the step, at rates that change."""
    steps = 2**31
    schedule = Schedule.piecewise([1000, 2**24, 2**30 + 1], [0.5, 1e-3, 0.25, 1e-4], steps=steps)
    clock = clock_of(schedule)
    edges = sorted({t for k in range(0, 32, 3) for t in (2**k - 1, 2**k, 2**k + 1) if t <= steps})
    since = np.array(edges)
    rows = np.arange(since.size)
    weights = np.random.default_rng(5).standard_normal((since.size, 4)).astype(np.float32)
    for mode in (Mode.BRIDGE, Mode.AGGREGATE):
        plan = NoisePlan(mode, STREAM, clock, 1, 4)
        settle_against_the_reference(kernels, plan, weights, rows, since, steps)
        recent = np.minimum(since, 2**24 - 1)
        settle_against_the_reference(kernels, plan, weights, rows, recent, 2**24 - 1)


@case
def settlement_with_tiny_and_large_scales(kernels: GpuKernels) -> None:
    """Scales at both ends of what a clock admits: products and weights become subnormal, or come near the largest float."""
    rng = np.random.default_rng(23)
    for rate in (1e-36, 1e30):
        weights = (rng.standard_normal((6, 5)) * rate).astype(np.float32)
        clock = clock_of(Schedule.piecewise([3], [rate, rate / 3], steps=7))
        for mode in Mode:
            plan = NoisePlan(mode, STREAM, clock, 0, 5)
            settle_against_the_reference(kernels, plan, weights, np.arange(6), np.arange(6), 7)


@case
def settlement_without_noise_leaves_weights_alone(kernels: GpuKernels) -> None:
    clock = clock_of(Schedule.constant(0.1, steps=5), noise_multiplier=0.0)
    weights = np.array([[1.0, -2.5], [3e-41, 7.0]], dtype=np.float32)
    for mode in Mode:
        found = moved(kernels, weights)
        kernels.settle(found, on(kernels, [0, 1]), on(kernels, [0, 2]), 5, NoisePlan(mode, STREAM, clock, 0, 2))
        assert_same_bits(found, weights)


@case
def settlement_of_no_rows(kernels: GpuKernels) -> None:
    weights = torch.ones((3, 2), dtype=torch.float32, device=kernels.device)
    for mode in Mode:
        plan = NoisePlan(mode, STREAM, clock_of(Schedule.constant(0.1, steps=5)), 0, 2)
        kernels.settle(weights, on(kernels, []), on(kernels, []), 5, plan)
    assert (weights == 1).all()


@case
def due_rows(kernels: GpuKernels) -> None:
    """Distinct, below `until`, in order of first occurrence, with the history they had; the others keep theirs."""
    rng = np.random.default_rng(29)
    for dtype in (np.int32, np.int64):
        paid = rng.integers(0, 9, 50).astype(dtype)
        ids = rng.integers(0, 50, 200)
        history = moved(kernels, paid)
        rows, since = kernels.due_rows(history, moved(kernels, ids), 5)
        expected = [i for i in dict.fromkeys(ids.tolist()) if paid[i] < 5]
        assert_same_bits(rows, np.array(expected))
        assert_same_bits(since, paid[expected].astype(np.int64))
        after = paid.copy()
        after[expected] = 5
        assert_same_bits(history, after)
        again, _ = kernels.due_rows(history, moved(kernels, ids), 5)
        assert again.shape == (0,)
        none, owed = kernels.due_rows(history, on(kernels, []), 9)
        assert none.shape == owed.shape == (0,)


# -------------------------------------------------------------------------------------------------------------- gradients


def lookups_to_try(rng: np.random.Generator) -> list[list[Lookup]]:
    """One table's calls: each pooling, weights, all of them together; some examples and bags without anything."""
    kinds = [(Pooling.SUM, False), (Pooling.MEAN, False), (Pooling.SUM, True)]
    sizes = {"examples": 9, "bags": 3, "length": 5, "rows": 7}
    single = [[a_lookup(rng, pooling=p, weighted=w, **sizes)] for p, w in kinds]
    return [*single, [calls[0] for calls in single], [single[0][0], single[0][0]]]


@case
def pooled_reads(kernels: GpuKernels) -> None:
    rng = np.random.default_rng(31)
    for dim in (1, 16, 21, 130):
        weights = rng.standard_normal((7, dim)).astype(np.float32)
        weights[0] = -0.0  # a bag starts from +0, so a bag of this row alone reads +0
        weights[1] = 3e-42
        for calls in lookups_to_try(rng)[:3]:
            found = kernels.pool(moved(kernels, weights), as_call(kernels, calls[0]))
            assert_same_bits(found, reading.read_bags(weights, calls[0]))
    nothing = LookupCall(on(kernels, []), on(kernels, [0]), on(kernels, []))
    assert kernels.pool(torch.ones((3, 4), device=kernels.device), nothing).shape == (0, 4)


def gradients_against_the_reference(
    kernels: GpuKernels, lookups: list[Lookup], pooled: list[np.ndarray], *, examples: int, clip_norm: float
) -> None:
    """Norms, sums and update from the same gradients."""
    rng = np.random.default_rng(37)
    exponent = int(np.ceil(np.log2(clip_norm))) - 32
    start = np.abs(rng.standard_normal(examples))
    calls = [as_call(kernels, lookup) for lookup in lookups]
    gradients = [moved(kernels, gradient) for gradient in pooled]
    expected = clipping.square_norms(lookups, pooled, start, ["t"])
    assert_same_bits(kernels.square_norms(calls, gradients, moved(kernels, start)), expected)

    factors = clipping.clip_factors(expected, clip_norm)
    sums = clipping.gradient_sums(lookups, pooled, factors, exponent, ["t"])
    rows, totals = kernels.gradient_sums(calls, gradients, moved(kernels, factors), exponent)
    assert_same_bits(rows, sums.rows["t"])
    assert_same_bits(totals, sums.sums["t"])

    rate = np.float32(0.37)
    weights = rng.standard_normal((7, pooled[0].shape[1])).astype(np.float32)
    updated = weights.copy()
    gradient = np.ldexp(sums.sums["t"].astype(np.float32), exponent)
    updated[sums.rows["t"]] = updated[sums.rows["t"]] - rate * gradient
    found = moved(kernels, weights)
    kernels.update(found, calls, gradients, moved(kernels, factors), exponent, float(rate))
    assert_same_bits(found, updated)


@case
def norms_sums_and_updates(kernels: GpuKernels) -> None:
    rng = np.random.default_rng(41)
    for dim, clip_norm in ((1, 0.5), (21, 3.0)):
        for lookups in lookups_to_try(rng):
            pooled = [rng.standard_normal((lookup.bags, dim)).astype(np.float32) for lookup in lookups]
            gradients_against_the_reference(kernels, lookups, pooled, examples=9, clip_norm=clip_norm)


@case
def norms_and_sums_of_wide_rows(kernels: GpuKernels) -> None:
    """More columns than one program takes."""
    rng = np.random.default_rng(43)
    lookups = lookups_to_try(rng)[3]
    pooled = [rng.standard_normal((lookup.bags, 139)).astype(np.float32) for lookup in lookups]
    gradients_against_the_reference(kernels, lookups, pooled, examples=9, clip_norm=1.0)


@case
def gradients_that_are_not_finite_contribute_nothing(kernels: GpuKernels) -> None:
    rng = np.random.default_rng(47)
    lookups = lookups_to_try(rng)[3]
    pooled = [rng.standard_normal((lookup.bags, 5)).astype(np.float32) for lookup in lookups]
    pooled[0][0, 2] = np.inf
    pooled[1][-1] = np.nan
    pooled[2][1] = 3e38
    gradients_against_the_reference(kernels, lookups, pooled, examples=9, clip_norm=1.0)


@case
def tiny_and_large_clip_norms(kernels: GpuKernels) -> None:
    rng = np.random.default_rng(53)
    lookups = lookups_to_try(rng)[0]
    pooled = [rng.standard_normal((lookup.bags, 5)).astype(np.float32) for lookup in lookups]
    for clip_norm in (1e-40, 1e-9, 1e9, 1e30):
        gradients_against_the_reference(kernels, lookups, pooled, examples=9, clip_norm=clip_norm)


@case
def one_row_in_every_bag(kernels: GpuKernels) -> None:
    """Every contribution meets in one sum: the case where an order of additions would show."""
    rng = np.random.default_rng(59)
    count = 70
    offsets = np.arange(count + 1) * 3
    lookup = Lookup("t", np.zeros(3 * count, np.int64), offsets, np.arange(count))
    pooled = [(rng.standard_normal((count, 4)) * 10.0 ** rng.integers(-8, 9, (count, 1))).astype(np.float32)]
    gradients_against_the_reference(kernels, [lookup], pooled, examples=count, clip_norm=2.0)


@case
def no_calls_and_no_ids(kernels: GpuKernels) -> None:
    start = on(kernels, [0.5, 0.0], torch.float64)
    assert_same_bits(kernels.square_norms([], [], start), start)
    rows, sums = kernels.gradient_sums([], [], start, -32)
    assert rows.shape == (0,)
    assert sums.shape[0] == 0
    empty = LookupCall(on(kernels, []), on(kernels, [0, 0, 0]), on(kernels, [0, 1]), Pooling.MEAN)
    gradient = torch.ones((2, 6), dtype=torch.float32, device=kernels.device)
    assert_same_bits(kernels.square_norms([empty], [gradient], start), start)
    rows, sums = kernels.gradient_sums([empty], [gradient], start, -32)
    assert sums.shape == (0, 6)
    weights = torch.ones((3, 6), dtype=torch.float32, device=kernels.device)
    kernels.update(weights, [empty], [gradient], start, -32, 0.5)
    assert (weights == 1).all()


# ---------------------------------------------------------------------------------------------------------------- refusal


@case
def what_does_not_fit_is_refused_before_anything_is_written(kernels: GpuKernels) -> None:
    clock = clock_of(Schedule.constant(0.1, steps=5))
    plan = NoisePlan(Mode.REPLAY, STREAM, clock, 0, 2)
    weights = torch.ones((3, 2), dtype=torch.float32, device=kernels.device)
    history = torch.zeros(3, dtype=torch.int32, device=kernels.device)
    one, zero = on(kernels, [1]), on(kernels, [0])
    good = LookupCall(one, on(kernels, [0, 1]), zero)
    gradient = torch.ones((1, 2), dtype=torch.float32, device=kernels.device)
    factors = on(kernels, [1.0], torch.float64)

    def call(ids: Any, offsets: Any, examples: Any, **options: Any) -> LookupCall:
        return LookupCall(on(kernels, ids), on(kernels, offsets), on(kernels, examples), **options)

    refused: list[tuple[str, Callable[[], object]]] = [
        ("row above the table", lambda: kernels.settle(weights, on(kernels, [3]), zero, 1, plan)),
        ("negative row", lambda: kernels.settle(weights, on(kernels, [-1]), zero, 1, plan)),
        ("until after the run", lambda: kernels.settle(weights, one, zero, 6, plan)),
        ("since after until", lambda: kernels.settle(weights, one, on(kernels, [3]), 2, plan)),
        ("negative since", lambda: kernels.settle(weights, one, on(kernels, [-1]), 2, plan)),
        ("another dim", lambda: kernels.settle(weights[:, :1].contiguous(), one, zero, 2, plan)),
        ("not contiguous", lambda: kernels.settle(torch.ones((2, 3), device=kernels.device).t(), one, zero, 2, plan)),
        ("float64 table", lambda: kernels.settle(weights.double(), one, zero, 2, plan)),
        ("id above the history", lambda: kernels.due_rows(history, on(kernels, [3]), 1)),
        ("until above int32", lambda: kernels.due_rows(history, one, 2**31)),
        ("id above the table", lambda: kernels.pool(weights, call([3], [0, 1], [0]))),
        ("negative id", lambda: kernels.pool(weights, call([-1], [0, 1], [0]))),
        ("offsets that fall", lambda: kernels.pool(weights, call([1, 1], [0, 2, 1, 2], [0, 1, 2]))),
        ("offsets that stop early", lambda: kernels.pool(weights, call([1, 1], [0, 1], [0]))),
        ("an offset too few", lambda: kernels.pool(weights, call([1, 1], [0, 2], [0, 1]))),
        ("examples that fall", lambda: kernels.pool(weights, call([1, 1], [0, 1, 2], [1, 0]))),
        ("a weight too few", lambda: kernels.pool(weights, call([1, 1], [0, 2], [0], weights=gradient[0, :1]))),
        ("example above the batch", lambda: kernels.square_norms([call([1], [0, 1], [1])], [gradient], factors)),
        ("a gradient too few", lambda: kernels.square_norms([good, good], [gradient], factors)),
        ("update of another dim", lambda: kernels.update(weights, [good], [gradient[:, :1]], factors, -32, 0.5)),
        ("update above the table", lambda: kernels.update(weights, [call([3], [0, 1], [0])], [gradient], factors, -32, 0.5)),
        ("rate not float32", lambda: kernels.update(weights, [good], [gradient], factors, -32, 0.1)),
        ("scale not finite", lambda: kernels.subtract_noise(weights[0], STREAM, Purpose.DENSE, 0, 0, float("inf"))),
        ("sampling rate 0", lambda: kernels.poisson_sample(STREAM, 0, 0.0, 5)),
    ]
    for what, attempt in refused:
        try:
            attempt()
        except InputError:
            continue
        raise AssertionError(f"{what} was not refused")

    wrapped: list[tuple[str, Callable[[], object]]] = [
        ("row 2^48", lambda: kernels.normals(STREAM, Purpose.REPLAY, 0, on(kernels, [2**48]), 0, 4)),
        ("negative row", lambda: kernels.normals(STREAM, Purpose.REPLAY, 0, on(kernels, [-1]), 0, 4)),
        ("step 2^32", lambda: kernels.normals(STREAM, Purpose.REPLAY, 0, one, 2**32, 4)),
        ("steps 2^32", lambda: kernels.normals(STREAM, Purpose.REPLAY, 0, one, on(kernels, [2**32]), 4)),
        ("table 2^16", lambda: kernels.normals(STREAM, Purpose.REPLAY, 2**16, one, 0, 4)),
        ("dim 0", lambda: kernels.normals(STREAM, Purpose.REPLAY, 0, one, 0, 0)),
        ("dense step 2^32", lambda: kernels.subtract_noise(weights[0], STREAM, Purpose.DENSE, 0, 2**32, 1.0)),
        ("sampling step 2^32", lambda: kernels.poisson_sample(STREAM, 2**32, 0.5, 5)),
    ]
    for what, attempt in wrapped:
        try:
            attempt()
        except AddressError:
            continue
        raise AssertionError(f"{what} was not refused")
    assert (weights == 1).all()
    assert (history == 0).all()


def main() -> int:
    """Run the cases named on the command line (all by default) in the interpreter; one JSON line for each."""
    kernels = GpuKernels("cpu", lanes=256)
    failed = 0
    for name in sys.argv[1:] or CASES:
        started = time.perf_counter()
        error = None
        try:
            CASES[name](kernels)
        except Exception:
            error = traceback.format_exc()
            failed += 1
        seconds = round(time.perf_counter() - started, 3)
        print(json.dumps({"case": name, "error": error, "seconds": seconds}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
