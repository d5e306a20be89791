"""Paying what rows owe: replay and aggregate draw whole rows, bridge walks a tree. docs/arithmetic.md, Settlement."""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int64, prange

from samelaw.fast.cpu.blocks import pay_block, split_block, subtract_block, total_block
from samelaw.fast.cpu.compiled import inline, kernel
from samelaw.fast.cpu.lanes import LANES, prefetch
from samelaw.fast.cpu.noise import normal_blocks, set_counter

_AHEAD = 12  # rows between the prefetch of a row's weights and its use
_PREFETCHED = 512  # columns of a row that are prefetched; the hardware follows from there


@inline
def segment_of(starts, steps, step):
    """Segment of the schedule that holds `step` (the last one for step == steps)."""
    last = int64(starts.shape[0] - 1)
    if last == 0:
        return int64(0)
    if last == steps - 1:  # one segment a step
        return min(step, last)
    low, high = int64(0), last
    while low < high:
        middle = (low + high + 1) >> 1
        if starts[middle] <= step:
            low = middle
        else:
            high = middle - 1
    return low


@inline
def clock_at(starts, elapsed, ticks, steps, step):
    """V(step), in ticks."""
    segment = segment_of(starts, steps, step)
    return elapsed[segment] + (step - starts[segment]) * ticks[segment]


@inline
def first_bad_span(rows, since, until, table_rows):
    """Index of the first entry with a row or a span out of range, or -1."""
    bad = int64(-1)
    for i in range(rows.shape[0]):
        if not (0 <= rows[i] < table_rows and 0 <= since[i] <= until):
            bad = int64(i)
            break
    return bad


@inline
def prefetch_row(weights, row, dim):
    for column in range(0, min(dim, _PREFETCHED), LANES):
        prefetch(weights, row * dim + column)


@kernel(parallel=True)
def settle_by_draws(weights, rows, since, until, key, rounds, purpose, table, clock, unit, aggregate, chunk):
    """One draw a missed step (replay), or one draw a row with the summed variance (aggregate).

    Draws are packed sixteen blocks at a time across steps and rows; a row's draws are applied in order of step.
    Returns -1; or, if an entry is out of range, its index, before anything is written.
    """
    bad = first_bad_span(rows, since, until, weights.shape[0])
    if bad >= 0:
        return bad
    scales, starts, elapsed, ticks, steps = clock
    dim, count = int64(weights.shape[1]), int64(rows.shape[0])
    blocks = (dim + LANES - 1) // LANES
    flat = weights.reshape(-1)
    for part in prange((count + chunk - 1) // chunk):
        stop = min((part + 1) * chunk, count)
        counters, draws = np.zeros((4, LANES), np.uint32), np.empty((LANES, LANES), np.float32)
        positions, widths = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
        factors = np.empty(LANES, np.float32)
        for i in range(part * chunk, min(part * chunk + _AHEAD, stop)):
            prefetch_row(weights, rows[i], dim)
        index, step, block, fresh, scale = int64(part * chunk), int64(0), int64(0), True, float32(0)
        while index < stop:
            used = 0
            while used < LANES and index < stop:
                row = rows[index]
                if fresh:
                    if index + _AHEAD < count:  # beyond this chunk, too: the same thread goes on there
                        prefetch_row(weights, rows[index + _AHEAD], dim)
                    if since[index] == until:
                        index += 1
                        continue
                    fresh = False
                    if aggregate:
                        step = until - 1
                        owed = clock_at(starts, elapsed, ticks, steps, until) - clock_at(
                            starts, elapsed, ticks, steps, since[index]
                        )
                        scale = float32(np.sqrt(float64(owed)) * unit)
                    else:
                        step = since[index]
                        scale = scales[segment_of(starts, steps, step)]
                set_counter(counters, used, purpose, table, row, step, block)
                positions[used] = row * dim + block * LANES
                widths[used] = min(dim - block * LANES, LANES)
                factors[used] = scale
                used += 1
                block += 1
                if block == blocks:
                    block = 0
                    step += 1
                    if step == until:
                        index += 1
                        fresh = True
                    else:
                        scale = scales[segment_of(starts, steps, step)]
            normal_blocks(key, rounds, counters, draws)
            for lane in range(used):
                if widths[lane] == LANES:
                    subtract_block(flat, positions[lane], draws, lane, factors[lane])
                else:
                    for j in range(widths[lane]):
                        at = positions[lane] + j
                        flat[at] = flat[at] - factors[lane] * draws[lane, j]
    return int64(-1)


@inline
def node(starts, elapsed, ticks, steps, low, middle, high):
    """Variances left and right of the middle of a dyadic node, as float64."""
    at_middle = clock_at(starts, elapsed, ticks, steps, min(middle, steps))
    before = at_middle - clock_at(starts, elapsed, ticks, steps, min(low, steps))
    after = clock_at(starts, elapsed, ticks, steps, min(high, steps)) - at_middle
    return float64(before), float64(after)


# How a node is split: its sum all to the left, all to the right, or by a draw.
_ALL_LEFT, _ALL_RIGHT, _DRAWN = 0, 1, 2


@inline
def split_of(before, after, scale):
    """(kind, ratio, spread) of a node: left = rint(S * ratio + z * spread)."""
    if after == 0.0:
        return _ALL_LEFT, 1.0, 0.0
    if before == 0.0:
        return _ALL_RIGHT, 0.0, 0.0
    both = before + after
    return _DRAWN, before / both, np.sqrt((before * after) / both) * scale


@kernel(parallel=True)
def settle_by_bridge(weights, rows, since, until, key, rounds, purpose, table, clock, scale, unit, chunk):
    """Subtract P(until) - P(since) of every row's path; both descents share their way down until they part.

    A chunk of rows goes down level by level, so that the draws of a level fill whole vectors. Each row has three
    buffers: the node sum on the way to `since`, the node sum on the way to `until`, and what is owed so far; the
    lefts that both descents pass cancel and are never added. scale is 2^(k-u), unit is 2^u.
    Returns as `settle_by_draws`.
    """
    bad = first_bad_span(rows, since, until, weights.shape[0])
    if bad >= 0:
        return bad
    _, starts, elapsed, ticks, steps = clock
    dim, count = int64(weights.shape[1]), int64(rows.shape[0])
    blocks = (dim + LANES - 1) // LANES
    padded = blocks * LANES
    levels = int64(0)
    while (int64(1) << levels) < steps:
        levels += 1
    whole = int64(1) << levels
    flat = weights.reshape(-1)
    total_scale = np.sqrt(float64(clock_at(starts, elapsed, ticks, steps, steps))) * scale

    # The nodes on the way to `until` are the same for every row.
    common_kind = np.empty(levels + 1, np.int64)
    common_ratio, common_spread = np.empty(levels + 1, np.float64), np.empty(levels + 1, np.float64)
    low = int64(0)
    for level in range(levels):
        width = int64(1) << (levels - level)
        middle = low + (width >> 1)
        before, after = node(starts, elapsed, ticks, steps, low, middle, low + width)
        common_kind[level], common_ratio[level], common_spread[level] = split_of(before, after, scale)
        if until >= middle:
            low = middle

    for part in prange((count + chunk - 1) // chunk):
        begin = int64(part * chunk)
        size = min(begin + chunk, count) - begin
        counters, draws = np.zeros((4, LANES), np.uint32), np.zeros((LANES, LANES), np.float32)
        paths = np.zeros((3 * size + 1) * padded, np.float64)  # since | until | owed | spare
        to_since, to_until, owed, spare = int64(0), size * padded, 2 * size * padded, 3 * size * padded
        at_since, at_until = np.zeros(size, np.int64), np.zeros(size, np.int64)
        item_slot, item_step = np.empty(2 * size, np.int64), np.empty(2 * size, np.int64)
        item_ratio, item_spread = np.empty(2 * size, np.float64), np.empty(2 * size, np.float64)
        item_sign, item_drawn = np.empty(2 * size, np.float64), np.empty(2 * size, np.bool_)
        item_source, item_left, item_right = (
            np.empty(2 * size, np.int64),
            np.empty(2 * size, np.int64),
            np.empty(2 * size, np.int64),
        )
        lane_item, lane_block = np.empty(LANES, np.int64), np.empty(LANES, np.int64)

        for level in range(-1, levels):
            width = int64(1) << (levels - max(level, 0))
            items = int64(0)
            for slot in range(size):
                start = since[begin + slot]
                if start == until:
                    continue
                if level == -1:  # the whole span: P(2^K), drawn at step 0
                    prefetch_row(weights, rows[begin + slot], dim)
                    item_slot[items], item_step[items], item_drawn[items] = slot, 0, True
                    at_until[slot] = until if until == whole else 0
                    items += 1
                    continue
                lo_s, lo_u = at_since[slot], at_until[slot]
                since_open, until_open = lo_s < start, lo_u < until
                base_s, base_u = to_since + slot * padded, to_until + slot * padded
                if since_open and until_open and lo_s == lo_u:
                    # One node for both descents.
                    middle = lo_u + (width >> 1)
                    item_slot[items], item_step[items] = slot, middle
                    item_ratio[items], item_spread[items] = common_ratio[level], common_spread[level]
                    item_drawn[items] = common_kind[level] == _DRAWN
                    item_source[items] = base_u
                    item_sign[items] = 0.0
                    if until < middle:
                        item_left[items], item_right[items] = base_u, spare
                    elif start >= middle:
                        item_left[items], item_right[items] = spare, base_u
                        at_since[slot] = middle
                        at_until[slot] = middle
                    else:  # they part
                        item_left[items], item_right[items] = base_s, base_u
                        item_sign[items] = 1.0
                        at_until[slot] = middle
                    items += 1
                    continue
                if until_open:
                    middle = lo_u + (width >> 1)
                    item_slot[items], item_step[items] = slot, middle
                    item_ratio[items], item_spread[items] = common_ratio[level], common_spread[level]
                    item_drawn[items] = common_kind[level] == _DRAWN
                    item_source[items] = base_u
                    if until >= middle:
                        item_left[items], item_right[items], item_sign[items] = spare, base_u, 1.0
                        at_until[slot] = middle
                    else:
                        item_left[items], item_right[items], item_sign[items] = base_u, spare, 0.0
                    items += 1
                if since_open:
                    middle = lo_s + (width >> 1)
                    before, after = node(starts, elapsed, ticks, steps, lo_s, middle, lo_s + width)
                    kind, ratio, spread = split_of(before, after, scale)
                    item_slot[items], item_step[items] = slot, middle
                    item_ratio[items], item_spread[items], item_drawn[items] = ratio, spread, kind == _DRAWN
                    item_source[items] = base_s
                    if start >= middle:
                        item_left[items], item_right[items], item_sign[items] = spare, base_s, -1.0
                        at_since[slot] = middle
                    else:
                        item_left[items], item_right[items], item_sign[items] = base_s, spare, 0.0
                    items += 1

            item, block = int64(0), int64(0)
            while item < items:
                used, drawn = 0, False
                while used < LANES and item < items:
                    lane_item[used], lane_block[used] = item, block
                    if item_drawn[item]:
                        row = rows[begin + item_slot[item]]
                        set_counter(counters, used, purpose, table, row, item_step[item], block)
                        drawn = True
                    used += 1
                    block += 1
                    if block == blocks:
                        block = 0
                        item += 1
                if drawn:
                    normal_blocks(key, rounds, counters, draws)
                for lane in range(used):
                    it, shift = lane_item[lane], lane_block[lane] * LANES
                    if level == -1:
                        shift += item_slot[it] * padded
                        total_block(paths, to_until + shift, draws, lane, total_scale)
                        if until == whole:  # P(2^K) is owed at once; the way to `since` starts from the root
                            total_block(paths, owed + shift, draws, lane, total_scale)
                            total_block(paths, to_since + shift, draws, lane, total_scale)
                    else:
                        right = item_right[it] if item_right[it] == spare else item_right[it] + shift
                        left = item_left[it] if item_left[it] == spare else item_left[it] + shift
                        split_block(
                            paths,
                            item_source[it] + shift,
                            draws,
                            lane,
                            item_ratio[it],
                            item_spread[it],
                            left,
                            right,
                            owed + item_slot[it] * padded + shift,
                            item_sign[it],
                        )

        for slot in range(size):
            if since[begin + slot] == until:
                continue
            base = rows[begin + slot] * dim
            for block in range(blocks):
                at = owed + slot * padded + block * LANES
                if (block + 1) * LANES <= dim:
                    pay_block(flat, base + block * LANES, paths, at, unit)
                else:
                    for j in range(dim - block * LANES):
                        w = base + block * LANES + j
                        flat[w] = flat[w] - float32(paths[at + j] * unit)
    return int64(-1)
