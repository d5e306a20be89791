"""Kernels between the tables and the model: pooled reads, per-example norms, exact sums, and the update.

docs/arithmetic.md, "Reading" to "Update". Every loop adds in the order that page gives; where a kernel lets the
hardware choose an order (the atomic additions) it adds integers. No float reduction is left to the compiler.
"""

# Triton's stubs describe neither constants in calls nor tuples out of device functions.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from samelaw.fast.gpu.settlement import power_of_two

# How many ids of a bag are compared at once where all weights are one.
WIDTH = tl.constexpr(16)
CANCELLATION_MARGIN = tl.constexpr(2.0**-40)


@triton.jit(do_not_specialize=["bags"])
def pool_kernel(
    out,
    table,
    ids,
    offsets,
    weights,
    bags,
    MEAN: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DIM: tl.constexpr,
    TILES: tl.constexpr,
    BAGS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[bag] = the rows of a bag, added in the order of its ids from zero; divided once by their count for MEAN."""
    program = tl.program_id(0)
    bag = (program // TILES).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    column = (program % TILES) * COLUMNS + tl.arange(0, COLUMNS)
    live = bag < bags
    inside = column < DIM
    first = tl.load(offsets + bag, mask=live, other=0)
    length = tl.load(offsets + bag + 1, mask=live, other=0) - first
    value = tl.zeros((BAGS, COLUMNS), tl.float32)
    longest = tl.max(length, axis=0)
    k = longest * 0
    while k < longest:
        held = k < length
        row = tl.load(ids + first + k, mask=held, other=0)
        cells = held[:, None] & inside[None, :]
        term = tl.load(table + row[:, None] * DIM + column[None, :], mask=cells, other=0.0)
        if WEIGHTED:
            term = term * tl.load(weights + first + k, mask=held, other=0.0)[:, None]
        value = tl.where(cells, value + term, value)
        k += 1
    if MEAN:
        count = tl.where(length > 0, length, 1).to(tl.float32)
        value = tl.div_rn(value, tl.broadcast_to(count[:, None], (BAGS, COLUMNS)))
    tl.store(out + bag[:, None] * DIM + column[None, :], value, mask=live[:, None] & inside[None, :])


@triton.jit
def _gradient(gradients, counts, bag, column, mask, DIM: tl.constexpr, MEAN: tl.constexpr):
    """d of one bag per lane, float64: for mean pooling divided once by the bag's count."""
    d = tl.load(gradients + bag[:, None] * DIM + column[None, :], mask=mask, other=0.0).to(tl.float64)
    if MEAN:
        d = d / tl.load(counts + bag)[:, None]
    return d


@triton.jit
def _overlap(ids, weights, p_first, p_length, q_first, q_length, WEIGHTED: tl.constexpr):
    """M_pq = sum over the rows of p, by first occurrence, of m_p(r) * m_q(r); zero where a bag is empty.

    Without weights the m are counts, M is an integer below 2^53, and pairs of equal ids may be counted in any order.
    """
    total = tl.zeros(p_first.shape, tl.float64)
    p_longest = tl.max(p_length, axis=0)
    q_longest = tl.max(q_length, axis=0)
    x = p_longest * 0
    while x < p_longest:
        held = x < p_length
        row = tl.load(ids + p_first + x, mask=held, other=-1)
        if WEIGHTED:
            p_sum = tl.zeros(p_first.shape, tl.float64)
            earlier = held & (held == 0)
            y = x * 0
            while y < p_longest:
                same = held & (y < p_length) & (tl.load(ids + p_first + y, mask=y < p_length, other=-2) == row)
                weight = tl.load(weights + p_first + y, mask=same, other=0.0).to(tl.float64)
                p_sum = tl.where(same, p_sum + weight, p_sum)
                earlier = earlier | (same & (y < x))
                y += 1
            q_sum = tl.zeros(p_first.shape, tl.float64)
            shared = held & (held == 0)
            y = x * 0
            while y < q_longest:
                same = held & (y < q_length) & (tl.load(ids + q_first + y, mask=y < q_length, other=-2) == row)
                weight = tl.load(weights + q_first + y, mask=same, other=0.0).to(tl.float64)
                q_sum = tl.where(same, q_sum + weight, q_sum)
                shared = shared | same
                y += 1
            total = tl.where(shared & (earlier == 0), total + p_sum * q_sum, total)
        else:
            y = x * 0
            while y < q_longest:
                z = y + tl.arange(0, WIDTH)
                other = tl.load(ids + q_first[:, None] + z[None, :], mask=z[None, :] < q_length[:, None], other=-2)
                total += tl.sum((other == row[:, None]).to(tl.int32), axis=1).to(tl.float64)
                y += WIDTH
        x += 1
    return total


@triton.jit
def _fold(lanes, HALF: tl.constexpr, EXAMPLES: tl.constexpr):
    """(EXAMPLES, HALF) sums of lane j and lane j + HALF."""
    low, high = tl.split(tl.permute(tl.reshape(lanes, (EXAMPLES, 2, HALF)), (0, 2, 1)))
    return low + high


@triton.jit(do_not_specialize=["examples"])
def square_norms_kernel(
    norms,
    ids,
    weights,
    firsts,
    lengths,
    counts,
    gradients,
    order,
    spans,
    examples,
    MEAN: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DIM: tl.constexpr,
    EXAMPLES: tl.constexpr,
):
    """Continue norms[b] (float64, in place) over the bags order[spans[b]:spans[b + 1]] of each example.

    A bag is ids[firsts[bag]:][:lengths[bag]], its gradient gradients[bag], and counts[bag] its mean's divisor.
    """
    example = tl.program_id(0).to(tl.int64) * EXAMPLES + tl.arange(0, EXAMPLES)
    live = example < examples
    start = tl.load(spans + example, mask=live, other=0)
    bags = tl.load(spans + example + 1, mask=live, other=0) - start
    n = tl.load(norms + example, mask=live, other=0.0)
    most = tl.max(bags, axis=0)
    i = most * 0
    while i < most:
        has_p = i < bags
        p = tl.load(order + start + i, mask=has_p, other=0)
        p_first = tl.load(firsts + p, mask=has_p, other=0)
        p_length = tl.load(lengths + p, mask=has_p, other=0)
        own = tl.zeros((EXAMPLES,), tl.float64)
        j = i
        while j < most:
            has_q = j < bags
            q = tl.load(order + start + j, mask=has_q, other=0)
            q_first = tl.load(firsts + q, mask=has_q, other=0)
            q_length = tl.load(lengths + q, mask=has_q, other=0)
            overlap = _overlap(ids, weights, p_first, p_length, q_first, q_length, WEIGHTED)

            lanes = tl.zeros((EXAMPLES, 8), tl.float64)
            base = 0
            while base < DIM:
                column = base + tl.arange(0, 8)
                mask = has_q[:, None] & (column < DIM)[None, :]
                d = _gradient(gradients, counts, p, column, mask, DIM, MEAN)
                e = _gradient(gradients, counts, q, column, mask, DIM, MEAN)
                lanes += d * e
                base += 8
            dot = tl.reshape(_fold(_fold(_fold(lanes, 4, EXAMPLES), 2, EXAMPLES), 1, EXAMPLES), (EXAMPLES,))

            twice = tl.where(j == i, overlap, 2.0 * overlap)
            n = tl.where(has_q & (overlap != 0.0), n + twice * dot, n)
            own = tl.where(j == i, overlap * dot, own)
            j += 1
        n = tl.where(has_p, n + CANCELLATION_MARGIN * own, n)
        i += 1
    tl.store(norms + example, n, mask=live)


@triton.jit(do_not_specialize=["exponent", "groups"])
def contributions_kernel(
    sums,
    starts,
    slots,
    bag_of,
    example_of_bag,
    weights,
    counts,
    gradients,
    factors,
    exponent,
    groups,
    MEAN: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DIM: tl.constexpr,
    TILES: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """sums[slot] += the clipped integer contribution of each group, a group being one row and one example.

    Occurrences of rows in bags lie sorted by row, then example, then bag, then position; group g is the run from
    starts[g] to starts[g + 1]. A lane walks its group: m adds up the weights within a bag, x the bags. `bag_of` and
    `slots` name the bag and the row of each occurrence; `weights` is in the same order.
    """
    program = tl.program_id(0)
    group = (program // TILES).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    column = (program % TILES) * COLUMNS + tl.arange(0, COLUMNS)
    live = group < groups
    inside = (column < DIM)[None, :]
    first = tl.load(starts + group, mask=live, other=0)
    length = tl.load(starts + group + 1, mask=live, other=0) - first
    slot = tl.load(slots + first, mask=live, other=0)
    example = tl.load(example_of_bag + tl.load(bag_of + first, mask=live, other=0), mask=live, other=0)
    factor = tl.load(factors + example, mask=live, other=0.0)

    x = tl.zeros((GROUPS, COLUMNS), tl.float64)
    m = tl.zeros((GROUPS,), tl.float64)
    longest = tl.max(length, axis=0)
    k = longest * 0
    while k < longest:
        held = k < length
        bag = tl.load(bag_of + first + k, mask=held, other=0)
        next_bag = tl.load(bag_of + first + k + 1, mask=k + 1 < length, other=-1)
        if WEIGHTED:
            m += tl.load(weights + first + k, mask=held, other=0.0).to(tl.float64)
        else:
            m += 1.0
        closes = (held & (next_bag != bag))[:, None] & inside
        d = _gradient(gradients, counts, bag, column, closes, DIM, MEAN)
        x = tl.where(closes, x + m[:, None] * d, x)
        m = tl.where(next_bag != bag, 0.0, m)
        k += 1

    scaled = x * (factor * power_of_two(-exponent))[:, None]
    contribution = tl.where((factor == 0.0)[:, None], 0.0, scaled).to(tl.int64)
    tl.atomic_add(
        sums + slot[:, None] * DIM + column[None, :],
        contribution,
        mask=live[:, None] & inside,
        sem="relaxed",
    )


@triton.jit(do_not_specialize=["exponent", "touched"])
def apply_kernel(
    table,
    rows,
    sums,
    rate,
    exponent,
    touched,
    DIM: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """w = fl32(w - fl32(rate * G)) with G = fl32(sum) * 2^exponent on each of the touched rows."""
    program = tl.program_id(0)
    slot = (program // TILES).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (program % TILES) * COLUMNS + tl.arange(0, COLUMNS)
    live = (slot < touched)[:, None] & (column < DIM)[None, :]
    row = tl.load(rows + slot, mask=slot < touched, other=0)
    total = tl.load(sums + slot[:, None] * DIM + column[None, :], mask=live, other=0)
    # Scaled in float64 and rounded: exact unless the gradient is subnormal in float32.
    gradient = (total.to(tl.float32).to(tl.float64) * power_of_two(exponent)).to(tl.float32)
    cell = table + row[:, None] * DIM + column[None, :]
    tl.store(cell, tl.load(cell, mask=live, other=0.0) - gradient * rate, mask=live)
