"""Kernels that write or subtract plain draws: normals at any addresses, dense noise, and the sampling mask.

A lane is one block of one address, so any number of rows and any dim fill a grid of equal programs; offsets are int64.
"""

# Triton's stubs describe neither constants in calls nor tuples out of device functions.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from samelaw.fast.gpu.draws import interleave8, normals16, words


@triton.jit(do_not_specialize=["table", "step_stride", "lanes"])
def normals_kernel(
    out,
    rows,
    steps,
    key,
    table,
    step_stride,
    lanes,
    PURPOSE: tl.constexpr,
    ROUNDS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCKS: tl.constexpr,
    LANES: tl.constexpr,
):
    """out[i, d] = normal d of (rows[i], steps[i * step_stride]); lane l is block l % BLOCKS of row l // BLOCKS."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    live = lane < lanes
    index = lane // BLOCKS
    block = lane % BLOCKS
    row = tl.load(rows + index, mask=live, other=0)
    step = tl.load(steps + index * step_stride, mask=live, other=0)
    z = normals16(key, table, row, step, block, PURPOSE, ROUNDS, LANES)
    column = (block * 16)[:, None] + tl.arange(0, 16)[None, :]
    tl.store(out + index[:, None] * DIM + column, z, mask=live[:, None] & (column < DIM))


@triton.jit(do_not_specialize=["table", "step"])
def subtract_noise_kernel(
    param, key, table, step, scale, size, PURPOSE: tl.constexpr, ROUNDS: tl.constexpr, LANES: tl.constexpr
):
    """param[d] = fl32(param[d] - fl32(scale * z[d])): the flattened parameter is row 0, lane l its block l."""
    block = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    zero = block * 0
    z = normals16(key, table, zero, zero + step, block, PURPOSE, ROUNDS, LANES)
    column = (block * 16)[:, None] + tl.arange(0, 16)[None, :]
    live = column < size
    value = tl.load(param + column, mask=live, other=0.0)
    tl.store(param + column, value - z * scale, mask=live)


@triton.jit(do_not_specialize=["step", "first_row", "examples"])
def sampling_kernel(
    drawn,
    key,
    threshold,
    step,
    first_row,
    examples,
    PURPOSE: tl.constexpr,
    ROUNDS: tl.constexpr,
    LANES: tl.constexpr,
):
    """drawn[i] = 1 where the 64-bit word of example 8 * first_row + i is below the threshold.

    A lane is eight examples. `threshold` points to the low and the high half of the 64-bit bound, so that no unsigned
    64-bit arithmetic is needed.
    """
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    zero = lane * 0
    w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15 = words(
        key, first_row * 0, lane + first_row, zero + step, zero, PURPOSE, ROUNDS
    )
    low = tl.load(threshold).to(tl.uint32, bitcast=True)
    high = tl.load(threshold + 1).to(tl.uint32, bitcast=True)
    word_low = interleave8(w0, w2, w4, w6, w8, w10, w12, w14, LANES)
    word_high = interleave8(w1, w3, w5, w7, w9, w11, w13, w15, LANES)
    joins = (word_high < high) | ((word_high == high) & (word_low < low))
    example = (lane * 8)[:, None] + tl.arange(0, 8)[None, :]
    tl.store(drawn + example, joins.to(tl.int8), mask=example < examples)
