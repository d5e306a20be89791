"""Cases of settlement: three modes, schedules, far steps, and which rows are due."""

from __future__ import annotations

import numpy as np
import torch
from gpu_making import STREAM, assert_same_bits, case, clock_of, moved, on, schedules

from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import Mode
from samelaw.fast.gpu import GpuKernels
from samelaw.fast.kernels import NoisePlan
from samelaw.reference.settlement import Settlement


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
            until = min(schedule.steps, 8) if mode is Mode.REPLAY else schedule.steps
            since = rng.integers(0, until + 1, rows.size)
            plan = NoisePlan(mode, STREAM, clock_of(schedule), 9, dim)
            settle_against_the_reference(kernels, plan, weights, rows, since, until)


@case
def settlement_in_parts_is_settlement_at_once(kernels: GpuKernels) -> None:
    """Replay in weights, bridge in integers: paying 0..a, a..b is paying 0..b."""
    rows = on(kernels, [2, 0, 5])
    zero, middle = on(kernels, [0, 0, 0]), on(kernels, [4, 6, 1])
    clock = clock_of(schedules()[1])
    replay = NoisePlan(Mode.REPLAY, STREAM, clock, 0, 6)
    at_once = torch.ones((6, 6), dtype=torch.float32, device=kernels.device)
    in_parts = at_once.clone()
    kernels.settle(at_once, rows, zero, 7, replay)
    for row, until in ((0, 4), (1, 6), (2, 1)):
        kernels.settle(in_parts, rows[row : row + 1], zero[:1], until, replay)
    kernels.settle(in_parts, rows, middle, 7, replay)
    assert_same_bits(in_parts, at_once)

    bridge = NoisePlan(Mode.BRIDGE, STREAM, clock, 0, 6)
    first = torch.cat(
        [kernels.owed_units(rows[i : i + 1], zero[:1], until, bridge) for i, until in enumerate((4, 6, 1))]
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
        until = steps if mode is Mode.BRIDGE else 2**30 + 2
        settle_against_the_reference(kernels, plan, weights, rows, np.minimum(since, until), until)


@case
def settlement_with_tiny_and_large_scales(kernels: GpuKernels) -> None:
    """Scales at both ends of what a clock admits: products become subnormal, or weights come near the largest float."""
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
