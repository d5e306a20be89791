"""Device functions for the noise: an address becomes sixteen ChaCha words, and those become sixteen BM32 normals.

Specification: docs/noise.md. A lane is one block of an address; a tile of L lanes yields (L, 16) normals.

Every kernel that inlines these must be launched with `enable_fp_fusion=False`: a fused multiply-add rounds once where
the specification rounds twice. Sums of words are meant to wrap, so they opt out of Triton's overflow checks. The
square root is `sqrt_rn`, because plain `sqrt` is an approximation on a GPU.
"""

# Triton's stubs describe neither constants in calls nor tuples out of device functions.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

# The four constant words of the ChaCha state: "expand 32-byte k" read as little-endian words.
SIGMA_0 = tl.constexpr(0x61707865)
SIGMA_1 = tl.constexpr(0x3320646E)
SIGMA_2 = tl.constexpr(0x79622D32)
SIGMA_3 = tl.constexpr(0x6B206574)


@triton.jit
def quarter_round(a, b, c, d):
    """RFC 8439, section 2.1, on uint32 tiles."""
    a = tl.add(a, b, sanitize_overflow=False)
    d = d ^ a
    d = (d << 16) | (d >> 16)
    c = tl.add(c, d, sanitize_overflow=False)
    b = b ^ c
    b = (b << 12) | (b >> 20)
    a = tl.add(a, b, sanitize_overflow=False)
    d = d ^ a
    d = (d << 8) | (d >> 24)
    c = tl.add(c, d, sanitize_overflow=False)
    b = b ^ c
    b = (b << 7) | (b >> 25)
    return a, b, c, d


@triton.jit
def chacha_block(key, n0, n1, n2, n3, ROUNDS: tl.constexpr):
    """Sixteen words per lane. `key` points to eight words (int32 storage); n0..n3 are the counter field, uint32."""
    zero = n0 ^ n0
    key = key + zero  # every lane loads the key: a tile of loads keeps the compiler from spreading a lane over threads
    k0 = tl.load(key).to(tl.uint32, bitcast=True)
    k1 = tl.load(key + 1).to(tl.uint32, bitcast=True)
    k2 = tl.load(key + 2).to(tl.uint32, bitcast=True)
    k3 = tl.load(key + 3).to(tl.uint32, bitcast=True)
    k4 = tl.load(key + 4).to(tl.uint32, bitcast=True)
    k5 = tl.load(key + 5).to(tl.uint32, bitcast=True)
    k6 = tl.load(key + 6).to(tl.uint32, bitcast=True)
    k7 = tl.load(key + 7).to(tl.uint32, bitcast=True)
    x0, x1, x2, x3 = zero + SIGMA_0, zero + SIGMA_1, zero + SIGMA_2, zero + SIGMA_3
    x4, x5, x6, x7, x8, x9, x10, x11 = k0, k1, k2, k3, k4, k5, k6, k7
    x12, x13, x14, x15 = n0, n1, n2, n3
    for _ in tl.static_range(ROUNDS // 2):
        x0, x4, x8, x12 = quarter_round(x0, x4, x8, x12)
        x1, x5, x9, x13 = quarter_round(x1, x5, x9, x13)
        x2, x6, x10, x14 = quarter_round(x2, x6, x10, x14)
        x3, x7, x11, x15 = quarter_round(x3, x7, x11, x15)
        x0, x5, x10, x15 = quarter_round(x0, x5, x10, x15)
        x1, x6, x11, x12 = quarter_round(x1, x6, x11, x12)
        x2, x7, x8, x13 = quarter_round(x2, x7, x8, x13)
        x3, x4, x9, x14 = quarter_round(x3, x4, x9, x14)
    x0 = tl.add(x0, SIGMA_0, sanitize_overflow=False)
    x1 = tl.add(x1, SIGMA_1, sanitize_overflow=False)
    x2 = tl.add(x2, SIGMA_2, sanitize_overflow=False)
    x3 = tl.add(x3, SIGMA_3, sanitize_overflow=False)
    x4 = tl.add(x4, k0, sanitize_overflow=False)
    x5 = tl.add(x5, k1, sanitize_overflow=False)
    x6 = tl.add(x6, k2, sanitize_overflow=False)
    x7 = tl.add(x7, k3, sanitize_overflow=False)
    x8 = tl.add(x8, k4, sanitize_overflow=False)
    x9 = tl.add(x9, k5, sanitize_overflow=False)
    x10 = tl.add(x10, k6, sanitize_overflow=False)
    x11 = tl.add(x11, k7, sanitize_overflow=False)
    x12 = tl.add(x12, n0, sanitize_overflow=False)
    x13 = tl.add(x13, n1, sanitize_overflow=False)
    x14 = tl.add(x14, n2, sanitize_overflow=False)
    x15 = tl.add(x15, n3, sanitize_overflow=False)
    return x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15


@triton.jit
def words(key, table, row, step, block, PURPOSE: tl.constexpr, ROUNDS: tl.constexpr):
    """The sixteen words of an address. `row`, `step` and `block` are int64 tiles of L lanes, `table` a scalar."""
    high = (row >> 32) | (table.to(tl.int64) << 16)
    tagged = block | (PURPOSE << 24)
    return chacha_block(
        key,
        (step & 0xFFFFFFFF).to(tl.uint32),
        (row & 0xFFFFFFFF).to(tl.uint32),
        high.to(tl.uint32),
        tagged.to(tl.uint32),
        ROUNDS,
    )


@triton.jit
def bm32(a, b):
    """Two normals from two words. Each operation rounds once to float32, in the order of docs/noise.md."""
    high = (a >> 8).to(tl.float32)
    low = (((a & 0xFF) << 8) | (b & 0xFF)).to(tl.float32)
    bits = (high * 65536.0 + (low + 0.5)).to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    t = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    log = t * -0.174447104 + 0.287336856
    log = log * t + -0.299045324
    log = log * t + 0.331247866
    log = log * t + -0.399136662
    log = log * t + 0.500041485
    log = log * t + -0.666683733
    log = log * t + 0.999999762
    log = log * t + -2.0
    radius = tl.sqrt_rn(log * t + (exponent - 40).to(tl.float32) * -1.38629436)

    angle = (((b >> 8) & 0x3FFFFF).to(tl.float32) - 2097151.5) * 2.384185791015625e-07
    square = angle * angle
    sine = square * -0.00460165786 + 0.079680033
    sine = sine * square + -0.64596349
    sine = sine * square + 1.57079637
    sine = radius * (sine * angle)
    cosine = square * -0.0203985814 + 0.253594935
    cosine = cosine * square + -1.2336967
    cosine = cosine * square + 0.99999994
    cosine = ((radius * cosine).to(tl.uint32, bitcast=True) ^ (b & 0x80000000)).to(tl.float32, bitcast=True)
    swap = (b & 0x40000000) != 0
    return tl.where(swap, sine, cosine), tl.where(swap, cosine, sine)


@triton.jit
def interleave8(x0, x1, x2, x3, x4, x5, x6, x7, LANES: tl.constexpr):
    """(LANES, 8) from eight tiles of LANES. Joining halves first makes the last join the lowest bit of the column."""
    even = tl.join(tl.join(x0, x4), tl.join(x2, x6))
    odd = tl.join(tl.join(x1, x5), tl.join(x3, x7))
    return tl.reshape(tl.join(even, odd), (LANES, 8))


@triton.jit
def normals16(key, table, row, step, block, PURPOSE: tl.constexpr, ROUNDS: tl.constexpr, LANES: tl.constexpr):
    """The (LANES, 16) normals of one block per lane: words j and j + 8 make positions j and j + 8."""
    w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15 = words(
        key, table, row, step, block, PURPOSE, ROUNDS
    )
    a = interleave8(w0, w1, w2, w3, w4, w5, w6, w7, LANES)
    b = interleave8(w8, w9, w10, w11, w12, w13, w14, w15, LANES)
    first, second = bm32(a, b)
    return tl.reshape(tl.permute(tl.join(first, second), (0, 2, 1)), (LANES, 16))
