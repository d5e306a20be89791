"""ChaCha words and BM32 normals: the definition of every random number of a run. Specification: docs/noise.md.

Everything here is integer arithmetic, or float32 +, -, * and sqrt, each correctly rounded; no fused multiply-add, no
math library. Any implementation that follows the specification gives the same bits.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64, UInt32, UInt64

from samelaw.contract.noise import NORMALS_PER_BLOCK, NoiseStream, Purpose, check_address

_CONSTANTS = np.frombuffer(b"expand 32-byte k", dtype="<u4")
_QUARTER_ROUNDS = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip

# Lawson fits, rounded to float32; docs/noise.md gives each as a hexadecimal literal and its error.
LOG_COEFFICIENTS = np.array(
    [
        -0.174447104,
        0.287336856,
        -0.299045324,
        0.331247866,
        -0.399136662,
        0.500041485,
        -0.666683733,
        0.999999762,
        -2.0,
    ],
    dtype=np.float32,
)
SIN_COEFFICIENTS = np.array([-0.00460165786, 0.079680033, -0.64596349, 1.57079637], dtype=np.float32)
COS_COEFFICIENTS = np.array([-0.0203985814, 0.253594935, -1.2336967, 0.99999994], dtype=np.float32)
MINUS_TWO_LN_2 = np.float32(-1.38629436)
ANGLE_STEP = np.float32(2.384185791015625e-07)  # 2^-22


def chacha_block(
    key: UInt32[np.ndarray, "8"], counter: UInt32[np.ndarray, "*blocks 4"], *, rounds: int
) -> UInt32[np.ndarray, "*blocks 16"]:
    """The ChaCha block function on states built from `key` and the 128-bit `counter` field.

    At 20 rounds this is the block function of RFC 8439, where word 0 of `counter` is the block counter and words
    1..3 are the nonce.

    Source: Bernstein, "ChaCha, a variant of Salsa20" (2008); RFC 8439, section 2.3.
    """
    start = np.empty((counter.size // 4, 16), dtype=np.uint32)
    start[:, 0:4] = _CONSTANTS
    start[:, 4:12] = key
    start[:, 12:16] = counter.reshape(-1, 4)
    x = [start[:, i].copy() for i in range(16)]
    for _ in range(rounds // 2):
        for a, b, c, d in _QUARTER_ROUNDS:
            for into, add, mix, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                x[into] = x[into] + x[add]
                x[mix] = x[mix] ^ x[into]
                x[mix] = (x[mix] << np.uint32(bits)) | (x[mix] >> np.uint32(32 - bits))
    return (np.stack(x, axis=-1) + start).reshape(*counter.shape[:-1], 16)


def address(
    purpose: Purpose,
    table: int,
    rows: Int64[np.ndarray, "*#n"],
    steps: Int64[np.ndarray, "*#n"],
    blocks: Int64[np.ndarray, "*#n"],
) -> UInt32[np.ndarray, "*n 4"]:
    """The 128-bit counter field of each draw: step | row (low 32) | row (high 16), table | block, purpose."""
    words = (
        steps,
        rows & 0xFFFFFFFF,
        (rows >> 32) | (table << 16),
        blocks | (int(purpose) << 24),
    )
    return np.stack([w.astype(np.uint32) for w in np.broadcast_arrays(*words)], axis=-1)


def words(
    stream: NoiseStream,
    purpose: Purpose,
    table: int,
    rows: Int64[np.ndarray, "n"],
    steps: Int64[np.ndarray, "n"],
    *,
    blocks: int,
) -> UInt32[np.ndarray, "n blocks 16"]:
    """`blocks` consecutive blocks of 16 words for each (row, step)."""
    rows, steps = np.asarray(rows, dtype=np.int64), np.asarray(steps, dtype=np.int64)
    if rows.size:
        for row, step in ((int(rows.min()), int(steps.min())), (int(rows.max()), int(steps.max()))):
            check_address(table=table, largest_row=row, largest_step=step, dim=blocks * NORMALS_PER_BLOCK)
    counter = address(purpose, table, rows[:, None], steps[:, None], np.arange(blocks, dtype=np.int64)[None, :])
    return chacha_block(stream.key.array(), counter, rounds=stream.rounds)


def bm32(
    a: UInt32[np.ndarray, "*n"], b: UInt32[np.ndarray, "*n"]
) -> tuple[Float32[np.ndarray, "*n"], Float32[np.ndarray, "*n"]]:
    """Two standard normals from two words, by Box-Muller in float32.

    The radius takes 40 bits (all of `a`, bits 0..7 of `b`), so the tail ends at sqrt(82 ln 2) = 7.54; the angle
    within a quadrant takes bits 8..29 of `b`; bit 30 swaps the outputs and bit 31 flips the cosine's sign.
    """
    radius = np.sqrt(minus_two_log_uniform(a, b))
    sine_factor, cosine_factor = sine_and_cosine(angle(b))
    sine = radius * sine_factor
    cosine = ((radius * cosine_factor).view(np.uint32) ^ (b & np.uint32(0x80000000))).view(np.float32)
    swap = (b & np.uint32(0x40000000)) != 0
    return np.where(swap, sine, cosine), np.where(swap, cosine, sine)


def angle(b: UInt32[np.ndarray, "*n"]) -> Float32[np.ndarray, "*n"]:
    """The angle within a quadrant, in right angles: (k - 2^21 + 1/2) / 2^22 for the 22-bit k in bits 8..29 of `b`."""
    k = ((b >> np.uint32(8)) & np.uint32(0x3FFFFF)).astype(np.float32)
    return (k - np.float32(2097151.5)) * ANGLE_STEP


def sine_and_cosine(
    turn: Float32[np.ndarray, "*n"],
) -> tuple[Float32[np.ndarray, "*n"], Float32[np.ndarray, "*n"]]:
    """Sine and cosine of an angle in right angles, -1/2 < turn < 1/2."""
    square = turn * turn
    return _horner(SIN_COEFFICIENTS, square) * turn, _horner(COS_COEFFICIENTS, square)


def minus_two_log_uniform(a: UInt32[np.ndarray, "*n"], b: UInt32[np.ndarray, "*n"]) -> Float32[np.ndarray, "*n"]:
    """-2 ln((u + 1/2) / 2^40) for the 40-bit integer u made of `a` and the low byte of `b`."""
    high = (a >> np.uint32(8)).astype(np.float32)
    low = (((a & np.uint32(255)) << np.uint32(8)) | (b & np.uint32(255))).astype(np.float32)
    bits = (high * np.float32(65536) + (low + np.float32(0.5))).view(np.int32)
    exponent = (bits - np.int32(0x3F3504F3)) >> np.int32(23)
    t = (bits - (exponent << np.int32(23))).view(np.float32) - np.float32(1)
    return _horner(LOG_COEFFICIENTS, t) * t + (exponent - np.int32(40)).astype(np.float32) * MINUS_TWO_LN_2


def normals(
    stream: NoiseStream,
    purpose: Purpose,
    table: int,
    rows: Int64[np.ndarray, "n"],
    steps: Int64[np.ndarray, "n"] | int,
    *,
    dim: int,
) -> Float32[np.ndarray, "n dim"]:
    """Standard normals for each (row, step): number d comes from block d // 16, position d % 16.

    Words j and j + 8 of a block (j < 8) make positions j and j + 8.

    Raises:
        AddressError: a field would wrap.
    """
    rows = np.asarray(rows, dtype=np.int64)
    steps = np.broadcast_to(np.asarray(steps, dtype=np.int64), rows.shape)
    blocks = -(-dim // NORMALS_PER_BLOCK)
    drawn = words(stream, purpose, table, rows, steps, blocks=blocks)
    first, second = bm32(drawn[..., :8], drawn[..., 8:])
    return np.concatenate([first, second], axis=-1).reshape(rows.size, blocks * NORMALS_PER_BLOCK)[:, :dim]


def uniform_words(
    stream: NoiseStream, purpose: Purpose, table: int, count: int, *, step: int
) -> UInt64[np.ndarray, "count"]:
    """`count` uniform 64-bit words: number i is words 2j (low) and 2j + 1 (high) of row i // 8, with j = i % 8."""
    rows = np.arange(-(-count // 8), dtype=np.int64)
    drawn = words(stream, purpose, table, rows, np.full_like(rows, step), blocks=1).reshape(-1, 2).astype(np.uint64)
    return ((drawn[:, 1] << np.uint64(32)) | drawn[:, 0])[:count]


def _horner(coefficients: Float32[np.ndarray, "degree"], t: Float32[np.ndarray, "*n"]) -> Float32[np.ndarray, "*n"]:
    """Polynomial by Horner's rule, highest power first; every product and sum is rounded to float32."""
    value = np.full_like(t, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * t + coefficient
    return value
