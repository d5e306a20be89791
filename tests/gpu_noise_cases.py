"""Cases of the noise: ChaCha words, BM32, normals at any address, dense noise, sampling."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from gpu_making import ROOT, STREAM, assert_same_bits, case, moved, on

from samelaw.contract.noise import NoiseKey, NoiseStream, Purpose
from samelaw.fast.gpu import GpuKernels
from samelaw.fast.gpu.draws import bm32, chacha_block
from samelaw.reference import noise, sampling

FAR_ROWS = [0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**47 + 12345, 2**48 - 1]
FAR_STEPS = [0, 1, 255, 2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 77]


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


def golden(part: str) -> list[dict[str, Any]]:
    return json.loads((ROOT / "equivalence" / "golden" / "noise.json").read_text(encoding="utf-8"))[part]


def words_of(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint32)


@case
def chacha_blocks_of_the_golden_file(kernels: GpuKernels) -> None:
    """Golden blocks (RFC 8439 at 20 rounds among them), each with its own key."""
    blocks = golden("blocks")
    assert {block["rounds"] for block in blocks} >= {20}
    for block in blocks:
        key = np.frombuffer(bytes.fromhex(block["key"]), dtype="<u4").view(np.int32)
        out = torch.zeros(16, dtype=torch.int32, device=kernels.device)
        kernels.launch(
            blocks_kernel,
            1,
            out,
            moved(kernels, key),
            moved(kernels, words_of(block["counter"]).view(np.int32)),
            1,
            ROUNDS=block["rounds"],
            LANES=16,
        )
        assert_same_bits(out, words_of(block["words"]).view(np.int32))


@case
def bm32_on_words_chosen_to_hurt(kernels: GpuKernels) -> None:
    """Both ends of the radius, both sides of every power of two, every quadrant, both ends of the angle."""
    powers = [2**k + d for k in range(33) for d in (-1, 0, 1) if 0 <= 2**k + d < 2**32]
    ends = [0, 0xFF, 0x100, 0xFFFFFF00, 0xFFFFFFFF, 0x3FFFFF00, 0x40000000, 0x80000000, 0xC0000000, 0x7FFFFFFF]
    rng = np.random.default_rng(11)
    a = np.array(powers + ends, dtype=np.uint32)
    b = np.array([*ends, *rng.integers(0, 2**32, 6)], dtype=np.uint32)
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
    """Vectors that differ in row and step alone are drawn together."""
    together: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for vector in golden("normals"):
        shared = vector["key"], vector["rounds"], vector["purpose"], vector["table"], vector["dim"]
        together.setdefault(shared, []).append(vector)
    for (key, rounds, purpose, table, dim), vectors in together.items():
        stream = NoiseStream(NoiseKey.from_bytes(bytes.fromhex(key)), rounds)
        rows, steps = (on(kernels, [vector[name] for vector in vectors]) for name in ("row", "step"))
        found = kernels.normals(stream, Purpose[purpose], table, rows, steps, dim)
        for drawn, vector in zip(found, vectors, strict=True):
            assert_same_bits(drawn, words_of(vector["normals"]).view(np.float32))


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
