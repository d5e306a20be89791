"""Draws that belong to no settlement: normals by address, dense noise, and the sample of a step."""

from __future__ import annotations

import numpy as np
from numba import int64, prange, uint32, uint64

from samelaw.fast.cpu.blocks import copy_block, subtract_block
from samelaw.fast.cpu.compiled import kernel
from samelaw.fast.cpu.lanes import LANES
from samelaw.fast.cpu.noise import normal_blocks, set_counter, word_blocks_below

_EXAMPLES_PER_ROW = 8  # a block of 16 words holds eight 64-bit ones


@kernel(parallel=True)
def draw_normals(out, rows, steps, key, rounds, purpose, table, chunk):
    """out[i] = the normals of (rows[i], steps[i]); a single step serves all rows."""
    count, dim = int64(out.shape[0]), int64(out.shape[1])
    flat = out.reshape(-1)
    blocks = (dim + LANES - 1) // LANES
    for part in prange((count + chunk - 1) // chunk):
        counters, draws = np.zeros((4, LANES), np.uint32), np.empty((LANES, LANES), np.float32)
        positions, widths = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
        i, block, stop = int64(part * chunk), int64(0), min((part + 1) * chunk, count)
        while i < stop:
            used = 0
            while used < LANES and i < stop:
                step = steps[i] if steps.shape[0] > 1 else steps[0]
                set_counter(counters, used, purpose, table, rows[i], step, block)
                positions[used] = i * dim + block * LANES
                widths[used] = min(dim - block * LANES, LANES)
                used += 1
                block += 1
                if block == blocks:
                    block = 0
                    i += 1
            normal_blocks(key, rounds, counters, draws)
            for lane in range(used):
                if widths[lane] == LANES:
                    copy_block(out, positions[lane], draws, lane)
                else:
                    for j in range(widths[lane]):
                        flat[positions[lane] + j] = draws[lane, j]


@kernel(parallel=True)
def subtract_row_noise(param, key, rounds, purpose, table, step, scale, chunk):
    """param = fl32(param - fl32(scale * z)), z being the normals of row 0 at `step`."""
    size = int64(param.shape[0])
    blocks = (size + LANES - 1) // LANES
    for part in prange((blocks + chunk - 1) // chunk):
        counters, draws = np.zeros((4, LANES), np.uint32), np.empty((LANES, LANES), np.float32)
        stop = min((part + 1) * chunk, blocks)
        for start in range(part * chunk, stop, LANES):
            used = min(LANES, stop - start)
            for lane in range(used):
                set_counter(counters, lane, purpose, table, int64(0), step, start + lane)
            normal_blocks(key, rounds, counters, draws)
            for lane in range(used):
                at = (start + lane) * LANES
                if at + LANES <= size:
                    subtract_block(param, at, draws, lane, scale)
                else:
                    for j in range(size - at):
                        param[at + j] = param[at + j] - scale * draws[lane, j]


@kernel(parallel=True)
def sample_parts(drawn, counts, key, rounds, purpose, step, threshold, examples, part_size):
    """Draw the examples of each part whose 64-bit word is below `threshold`; keep as many as drawn[part] has room for.

    counts[part] is the full number: where it exceeds the room, `refill_part` draws that part again.
    """
    for part in prange(counts.shape[0]):
        begin = part * part_size
        counts[part] = _sample(
            drawn[part], key, rounds, purpose, step, threshold, begin, min(begin + part_size, examples)
        )


@kernel()
def join_parts(out, drawn, counts, key, rounds, purpose, step, threshold, examples, part_size):
    """Put the parts end to end; a part that did not fit is drawn again, into its place."""
    at = 0
    for part in range(counts.shape[0]):
        if counts[part] <= drawn.shape[1]:
            out[at : at + counts[part]] = drawn[part, : counts[part]]
        else:
            begin = part * part_size
            stop = min(begin + part_size, examples)
            _sample(out[at : at + counts[part]], key, rounds, purpose, step, threshold, begin, stop)
        at += counts[part]


@kernel()
def _sample(out, key, rounds, purpose, step, threshold, begin, end):
    """Write the drawn indices of begin, ..., end - 1 (begin a multiple of 128) as far as `out` goes; count them all."""
    counters, words = np.zeros((4, LANES), np.uint32), np.empty((LANES, LANES), np.uint32)
    count, limit = int64(0), uint32(threshold >> uint64(32))
    for lane in range(LANES):
        set_counter(counters, lane, purpose, int64(0), int64(0), step, int64(0))
    for start in range(begin, end, LANES * _EXAMPLES_PER_ROW):
        for lane in range(LANES):  # the row's two words, as set_counter lays them out for table 0
            row = start // _EXAMPLES_PER_ROW + lane
            counters[1, lane] = uint32(row & int64(0xFFFFFFFF))
            counters[2, lane] = uint32(row >> int64(32))
        if not word_blocks_below(key, rounds, counters, words, limit):
            continue
        for k in range(min(LANES * _EXAMPLES_PER_ROW, end - start)):
            lane, j = k // _EXAMPLES_PER_ROW, k % _EXAMPLES_PER_ROW
            word = (uint64(words[lane, 2 * j + 1]) << uint64(32)) | uint64(words[lane, 2 * j])
            if word < threshold:
                if count < out.shape[0]:
                    out[count] = start + k
                count += 1
    return count
