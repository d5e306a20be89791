"""Kernels that pay what rows owe, one for each mode. docs/arithmetic.md, "Settlement".

A lane is one block of 16 columns of one due row. Lanes of a program walk in lockstep: each loop runs until the lane
that owes most is done, and a lane that is done keeps its value.

Division and square root: float64 `/` and `tl.sqrt` compile to div.rn.f64 and sqrt.rn.f64 (PTX has no approximate form
of them that Triton would pick); `tl.div_rn` does not accept float64. tests/test_gpu_ptx.py looks at the compiled code.
"""

# Triton's stubs describe neither constants in calls nor tuples out of device functions.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from samelaw.fast.gpu.draws import normals16

# Adding and then subtracting 1.5 * 2^52 rounds a float64 below 2^51 to an integer, ties to even.
ROUNDER = tl.constexpr(6755399441055744.0)


@triton.jit
def power_of_two(exponent):
    """2^exponent as a float64 scalar, for -1022 <= exponent <= 1023, by writing the exponent field."""
    return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def clock_at(step, starts, elapsed, ticks, SEARCH: tl.constexpr):
    """V(step): ticks owed by all steps before `step`, by bisection over 2^SEARCH (padded) segment starts."""
    segment = step * 0
    for level in tl.static_range(SEARCH):
        candidate = segment + (1 << (SEARCH - 1 - level))
        segment = tl.where(tl.load(starts + candidate) <= step, candidate, segment)
    return tl.load(elapsed + segment) + (step - tl.load(starts + segment)) * tl.load(ticks + segment)


@triton.jit(do_not_specialize=["table", "until", "lanes"])
def replay_kernel(
    weights,
    rows,
    since,
    segments,
    key,
    starts,
    scales,
    table,
    until,
    lanes,
    PURPOSE: tl.constexpr,
    ROUNDS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCKS: tl.constexpr,
    LANES: tl.constexpr,
):
    """w = fl32(w - fl32(s_t * z_t)) for each step t = since, ..., until - 1, in order.

    `segments[i]` is the schedule segment of step since[i]; `starts` ends with a sentinel, so that starts[segment + 1]
    exists.
    """
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    live = lane < lanes
    index = lane // BLOCKS
    block = lane % BLOCKS
    row = tl.load(rows + index, mask=live, other=0)
    step = tl.load(since + index, mask=live, other=0)
    segment = tl.load(segments + index, mask=live, other=0)
    owed = tl.where(live, until - step, 0)
    column = (block * 16)[:, None] + tl.arange(0, 16)[None, :]
    stored = live[:, None] & (column < DIM)
    cell = weights + row[:, None] * DIM + column
    value = tl.load(cell, mask=stored, other=0.0)
    longest = tl.max(owed, axis=0)
    paid = longest * 0
    while paid < longest:
        paying = paid < owed
        segment += (paying & (tl.load(starts + segment + 1) <= step)).to(tl.int64)
        scale = tl.load(scales + segment)
        z = normals16(key, table, row, step, block, PURPOSE, ROUNDS, LANES)
        value = tl.where(paying[:, None], value - z * scale[:, None], value)
        step += paying.to(tl.int64)
        paid += 1
    tl.store(cell, value, mask=stored)


@triton.jit(do_not_specialize=["table", "until", "clock_until", "exponent", "lanes"])
def aggregate_kernel(
    weights,
    rows,
    since,
    key,
    starts,
    elapsed,
    ticks,
    table,
    until,
    clock_until,
    exponent,
    lanes,
    PURPOSE: tl.constexpr,
    ROUNDS: tl.constexpr,
    SEARCH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCKS: tl.constexpr,
    LANES: tl.constexpr,
):
    """w = fl32(w - fl32(S * z)) with S the standard deviation of the whole span and z drawn at step until - 1."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    live = lane < lanes
    index = lane // BLOCKS
    block = lane % BLOCKS
    row = tl.load(rows + index, mask=live, other=0)
    first = tl.load(since + index, mask=live, other=0)
    live = live & (first < until)
    span = clock_until - clock_at(first, starts, elapsed, ticks, SEARCH)
    scale = (tl.sqrt(tl.where(live, span, 0).to(tl.float64)) * power_of_two(exponent)).to(tl.float32)
    z = normals16(key, table, row, lane * 0 + (until - 1), block, PURPOSE, ROUNDS, LANES)
    column = (block * 16)[:, None] + tl.arange(0, 16)[None, :]
    stored = live[:, None] & (column < DIM)
    cell = weights + row[:, None] * DIM + column
    value = tl.load(cell, mask=stored, other=0.0)
    tl.store(cell, value - z * scale[:, None], mask=stored)


@triton.jit(do_not_specialize=["table", "until", "steps", "clock_end", "exponent", "unit", "span", "lanes"])
def bridge_kernel(
    weights,
    rows,
    since,
    key,
    starts,
    elapsed,
    ticks,
    table,
    until,
    steps,
    clock_end,
    exponent,
    unit,
    span,
    lanes,
    PURPOSE: tl.constexpr,
    ROUNDS: tl.constexpr,
    SEARCH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCKS: tl.constexpr,
    LANES: tl.constexpr,
    OWED: tl.constexpr,
):
    """w = fl32(w - fl32((P(until) - P(since)) * 2^unit)), or weights[i] = P(until) - P(since) in units, when OWED.

    One walk down the dyadic tree over [0, span) yields the difference of two path values. While both times lie in the
    same half of a node their common part cancels (phase 0). At the node that parts them, the part after `since` in the
    left half (phase 1) and the part before `until` in the right half (phase 2) are what is owed; each is a walk.
    All values are integers below 2^53 in float64, so neither the order of the additions nor the route can matter.
    """
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    live = lane < lanes
    index = lane // BLOCKS
    block = lane % BLOCKS
    row = tl.load(rows + index, mask=live, other=0)
    early = tl.load(since + index, mask=live, other=0)
    late = lane * 0 + until
    live = live & (early < late)
    amplitude = power_of_two(exponent - unit)

    # The node [low, low + size): its sum per column, and the clock at both ends.
    low = lane * 0
    size = low + span
    clock_low = low
    clock_high = low + clock_end
    root = normals16(key, table, row, low, block, PURPOSE, ROUNDS, LANES).to(tl.float64)
    total = _round(root * (tl.sqrt(clock_end.to(tl.float64)) * amplitude))

    # The right half that phase 1 leaves for phase 2.
    right_low, right_size, right_clock_low, right_clock_high = low, size, clock_low, clock_high
    right_total = total

    whole = (early == 0) & (late == size)
    owed = tl.where(whole[:, None], total, 0.0)
    phase = tl.where(live & (whole == 0), 0, 3)
    while tl.min(phase, axis=0) < 3:
        size = size >> 1
        middle = low + size
        clock_middle = clock_at(tl.minimum(middle, steps), starts, elapsed, ticks, SEARCH)
        left_ticks = (clock_middle - clock_low).to(tl.float64)
        right_ticks = (clock_high - clock_middle).to(tl.float64)
        both = left_ticks + right_ticks
        divisor = tl.where(both == 0.0, 1.0, both)
        share = left_ticks / divisor
        spread = tl.sqrt((left_ticks * right_ticks) / divisor) * amplitude
        z = normals16(key, table, row, middle, block, PURPOSE, ROUNDS, LANES).to(tl.float64)
        left = _round(total * share[:, None] + z * spread[:, None])
        left = tl.where((left_ticks == 0.0)[:, None], 0.0, left)
        left = tl.where((right_ticks == 0.0)[:, None], total, left)
        right = total - left

        parting = (phase == 0) & (early < middle) & (middle < late)
        goes_left = tl.where(phase == 0, early < middle, tl.where(phase == 1, early <= middle, late <= middle))
        owed += tl.where(((phase == 1) & goes_left)[:, None], right, 0.0)
        owed += tl.where(((phase == 2) & (goes_left == 0))[:, None], left, 0.0)
        right_low = tl.where(parting, middle, right_low)
        right_size = tl.where(parting, size, right_size)
        right_clock_low = tl.where(parting, clock_middle, right_clock_low)
        right_clock_high = tl.where(parting, clock_high, right_clock_high)
        right_total = tl.where(parting[:, None], right, right_total)
        phase = tl.where(parting, 1, phase)

        low = tl.where(goes_left, low, middle)
        clock_low = tl.where(goes_left, clock_low, clock_middle)
        clock_high = tl.where(goes_left, clock_middle, clock_high)
        total = tl.where(goes_left[:, None], left, right)

        # A node whose end is the time looked for needs no further draw.
        whole = (phase == 0) & (early == low) & (late == low + size)
        owed += tl.where((whole | ((phase == 1) & (early == low)))[:, None], total, 0.0)
        phase = tl.where(whole, 3, phase)
        turns = (phase == 1) & ((early == low) | (early == low + size))
        low = tl.where(turns, right_low, low)
        size = tl.where(turns, right_size, size)
        clock_low = tl.where(turns, right_clock_low, clock_low)
        clock_high = tl.where(turns, right_clock_high, clock_high)
        total = tl.where(turns[:, None], right_total, total)
        phase = tl.where(turns, 2, phase)
        owed += tl.where(((phase == 2) & (late == low + size))[:, None], total, 0.0)
        phase = tl.where((phase == 2) & ((late == low) | (late == low + size)), 3, phase)

    column = (block * 16)[:, None] + tl.arange(0, 16)[None, :]
    if OWED:
        stored = (lane < lanes)[:, None] & (column < DIM)
        tl.store(weights + index[:, None] * DIM + column, owed.to(tl.int64), mask=stored)
    else:
        stored = live[:, None] & (column < DIM)
        cell = weights + row[:, None] * DIM + column
        value = tl.load(cell, mask=stored, other=0.0)
        tl.store(cell, value - (owed * power_of_two(unit)).to(tl.float32), mask=stored)


@triton.jit
def _round(x):
    """To the nearest integer, ties to even, for |x| < 2^51."""
    return (x + ROUNDER) - ROUNDER
