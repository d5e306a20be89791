"""ChaCha against other implementations, the address map, and the CPU backend against the definition, bit for bit.

test_gpu_interpreter.py and test_gpu_device.py do the same for Triton.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samelaw.contract.errors import AddressError, InputError
from samelaw.contract.noise import LARGEST_DIM, NoiseKey, NoiseStream, Purpose, check_address
from samelaw.equivalence.noise_vectors import check_backend, load_vectors
from samelaw.reference import noise

RFC_VECTORS = [r for r in load_vectors().document["blocks"] if r["source"] != "samelaw.reference"]
LIMITS = {"purpose": 2**8, "table": 2**16, "row": 2**48, "step": 2**32, "block": 2**24}


def near_powers_of_two(limit: int) -> st.SearchStrategy[int]:
    """0 .. limit - 1, with the two sides of every power of two and both ends drawn often."""
    powers = [1 << k for k in range(limit.bit_length())]
    edges = sorted({v for p in powers for v in (p - 1, p, p + 1) if 0 <= v < limit})
    return st.one_of(st.sampled_from(edges), st.integers(0, limit - 1))


def addresses() -> st.SearchStrategy[tuple[Purpose, int, int, int, int]]:
    fields = (near_powers_of_two(LIMITS[name]) for name in ("table", "row", "step", "block"))
    return st.tuples(st.sampled_from(list(Purpose)), *fields)


def counter(address: tuple[Purpose, int, int, int, int]) -> list[int]:
    purpose, table, row, step, block = address
    drawn = noise.address(
        purpose,
        table,
        np.array([row], dtype=np.int64),
        np.array([step], dtype=np.int64),
        np.array([block], dtype=np.int64),
    )
    return [int(word) for word in drawn[0]]


def address_of(counter: list[int]) -> tuple[Purpose, int, int, int, int]:
    """The inverse of the address layout of docs/noise.md, by the bit positions of its table."""
    step, low, middle, last = counter
    return Purpose(last >> 24), middle >> 16, (middle & 0xFFFF) << 32 | low, step, last & 0xFFFFFF


# ---------------------------------------------------------------------------------------------------------- ChaCha


@pytest.mark.parametrize("record", RFC_VECTORS, ids=[r["name"] for r in RFC_VECTORS])
def test_chacha_gives_the_published_words(record: dict[str, Any]):
    words = [np.array([int(w, 16) for w in record[name].split()], dtype=np.uint32) for name in ("counter", "words")]
    key = NoiseKey.from_bytes(bytes.fromhex(record["key"]))
    assert np.array_equal(noise.chacha_block(key.array(), words[0], rounds=record["rounds"]), words[1])


@settings(max_examples=300, deadline=None)
@given(key=st.binary(min_size=32, max_size=32), field=st.binary(min_size=16, max_size=16))
def test_at_20_rounds_a_block_is_that_of_the_cryptography_package(key: bytes, field: bytes):
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    theirs = Cipher(algorithms.ChaCha20(key, field), mode=None).encryptor().update(bytes(64))
    ours = noise.chacha_block(NoiseKey.from_bytes(key).array(), np.frombuffer(field, dtype="<u4"), rounds=20)
    assert ours.astype("<u4").tobytes() == theirs


def test_a_block_does_not_depend_on_the_blocks_drawn_beside_it():
    key = NoiseKey.from_seed(1).array()
    fields = np.random.default_rng(2).integers(0, 2**32, size=(5, 7, 4), dtype=np.uint32)
    together = noise.chacha_block(key, fields, rounds=12)
    for i, j in itertools.product(range(5), range(7)):
        assert np.array_equal(together[i, j], noise.chacha_block(key, fields[i, j], rounds=12))


# --------------------------------------------------------------------------------------------------------- addresses


@settings(max_examples=1000, deadline=None)
@given(address=addresses())
def test_an_address_can_be_read_back_from_its_counter_so_no_two_share_a_block(
    address: tuple[Purpose, int, int, int, int],
):
    assert address_of(counter(address)) == address


@settings(max_examples=1000, deadline=None)
@given(one=addresses(), other=addresses())
def test_two_addresses_have_two_counters(
    one: tuple[Purpose, int, int, int, int], other: tuple[Purpose, int, int, int, int]
):
    assert (counter(one) == counter(other)) == (one == other)


def test_every_single_bit_of_every_field_moves_a_bit_of_its_own():
    base = (Purpose.REPLAY, 0, 0, 0, 0)
    seen: dict[tuple[int, ...], tuple[int, int]] = {}
    origin = counter(base)
    for place, name in enumerate(("table", "row", "step", "block"), start=1):
        for bit in range(LIMITS[name].bit_length() - 1):
            moved = list(base)
            moved[place] = 1 << bit
            change = tuple(a ^ b for a, b in zip(counter(tuple(moved)), origin, strict=True))  # type: ignore[arg-type]
            assert sum(word.bit_count() for word in change) == 1
            assert change not in seen, (name, bit, seen[change])
            seen[change] = (place, bit)
    assert len(seen) == 16 + 48 + 32 + 24


def test_the_addresses_of_a_small_run_are_all_different():
    """Every purpose, with rows and steps on both sides of every word boundary."""
    rows = [0, 1, 15, 16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**47, 2**48 - 1]
    steps = [0, 1, 2, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
    tables = [0, 1, 255, 256, 2**15, 2**16 - 1]
    blocks = [0, 1, 255, 2**16, 2**24 - 1]
    fields = list(itertools.product(list(Purpose), tables, rows, steps, blocks))
    counters = {tuple(counter(address)) for address in fields}
    assert len(counters) == len(fields) == 6 * 6 * 11 * 7 * 5


@pytest.mark.parametrize("name", ["table", "row", "step"])
@pytest.mark.parametrize("beyond", [0, 1, 2**20])
def test_a_field_that_would_wrap_is_refused(name: str, beyond: int):
    fields = {"table": 0, "row": 0, "step": 0}
    stream = NoiseStream(NoiseKey.from_seed(0))

    def draw(value: int) -> np.ndarray:
        f = fields | {name: value}
        rows, steps = np.array([0, f["row"]], dtype=np.int64), np.array([0, f["step"]], dtype=np.int64)
        return noise.normals(stream, Purpose.REPLAY, f["table"], rows, steps, dim=1)

    draw(LIMITS[name] - 1)
    for value in (LIMITS[name] + beyond, -1 - beyond):
        with pytest.raises(AddressError, match=name):
            draw(value)


def test_more_blocks_than_the_field_holds_are_refused():
    check_address(table=0, largest_row=0, largest_step=0, dim=LARGEST_DIM)
    assert 16 * LIMITS["block"] == LARGEST_DIM
    for dim in (LARGEST_DIM + 1, 0, -1):
        with pytest.raises(AddressError, match="dim"):
            check_address(table=0, largest_row=0, largest_step=0, dim=dim)
    stream, one = NoiseStream(NoiseKey.from_seed(0)), np.zeros(1, dtype=np.int64)
    with pytest.raises(AddressError, match="dim"):
        noise.normals(stream, Purpose.DENSE, 0, one, one, dim=LARGEST_DIM + 1)


def test_an_unknown_number_of_rounds_is_refused():
    for rounds in (0, 4, 10, 21):
        with pytest.raises(InputError, match="rounds"):
            NoiseStream(NoiseKey.from_seed(0), rounds)


# ------------------------------------------------------------------------------------------------------ rows of normals


def test_a_row_is_a_prefix_of_a_wider_row():
    """So dim decides how much of a row is used and nothing else."""
    stream = NoiseStream(NoiseKey.from_seed(3))
    rows = np.array([0, 5, 2**40], dtype=np.int64)
    wide = noise.normals(stream, Purpose.REPLAY, 1, rows, 7, dim=70)
    for dim in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65):
        narrow = noise.normals(stream, Purpose.REPLAY, 1, rows, 7, dim=dim)
        assert np.array_equal(narrow.view(np.uint32), wide[:, :dim].view(np.uint32))


def test_uniform_words_are_prefixes_and_use_every_word_once():
    stream = NoiseStream(NoiseKey.from_seed(3))
    many = noise.uniform_words(stream, Purpose.SAMPLING, 0, 1000, step=4)
    for count in (0, 1, 7, 8, 9, 16, 999):
        assert np.array_equal(noise.uniform_words(stream, Purpose.SAMPLING, 0, count, step=4), many[:count])
    assert len(np.unique(many)) == 1000  # a repeat among 1000 words of 64 bits has probability 3e-14


# ------------------------------------------------------------------------------------------------------ CPU backend


def cpu() -> Any:
    backend = pytest.importorskip("samelaw.fast.cpu")
    return backend.CpuKernels()


def as_numpy(kernels: Any) -> Any:
    """A backend's normals with NumPy arrays in and out."""
    import torch

    def normals(
        stream: NoiseStream, purpose: Purpose, table: int, rows: np.ndarray, steps: np.ndarray, dim: int
    ) -> np.ndarray:
        tensors = [torch.from_numpy(np.ascontiguousarray(a)).to(kernels.device) for a in (rows, steps)]
        return kernels.normals(stream, purpose, table, *tensors, dim).cpu().numpy()

    return normals


def spread(rng: np.random.Generator, limit: int, size: int) -> np.ndarray:
    """Integers below `limit`, half of them uniform and half on a logarithmic scale."""
    uniform = rng.integers(0, limit, size)
    small = np.exp2(rng.uniform(0, np.log2(limit), size)).astype(np.int64)
    return np.where(rng.random(size) < 0.5, uniform, np.minimum(small, limit - 1))


def first_difference(ours: np.ndarray, theirs: np.ndarray) -> str | None:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return f"{ours.dtype}{ours.shape} against {theirs.dtype}{theirs.shape}"
    wrong = np.flatnonzero(ours.view(np.uint32).ravel() != theirs.view(np.uint32).ravel())
    return None if wrong.size == 0 else f"{wrong.size} of {ours.size} differ, first at flat index {wrong[0]}"


def test_the_cpu_backend_passes_the_golden_vectors():
    assert check_backend(as_numpy(cpu())) == []


def test_ten_million_draws_of_the_cpu_backend_equal_the_definition_bit_for_bit():
    normals = as_numpy(cpu())
    rng = np.random.default_rng(20261122)
    drawn = 0
    for call, dim in enumerate(itertools.cycle((64, 16, 100, 1, 33, 128, 8))):
        if drawn >= 10_000_000:
            break
        n = 524_288 // dim
        purpose = list(Purpose)[call % len(Purpose)]
        table = int(spread(rng, 2**16, 1)[0])
        stream = NoiseStream(NoiseKey.from_bytes(rng.bytes(32)), rounds=(12, 8, 20)[call % 3])
        rows, steps = spread(rng, 2**48, n), spread(rng, 2**32, n)
        expected = noise.normals(stream, purpose, table, rows, steps, dim=dim)
        found = normals(stream, purpose, table, rows, steps, dim)
        assert first_difference(expected, found) is None, (purpose, table, stream.rounds, dim)
        drawn += n * dim


@pytest.mark.parametrize("name", ["table", "row", "step"])
def test_the_cpu_backend_refuses_an_address_that_would_wrap(name: str):
    normals = as_numpy(cpu())
    fields = {"table": 0, "row": 0, "step": 0}
    for value in (LIMITS[name], -1):
        f = fields | {name: value}
        rows, steps = np.array([0, f["row"], 1]), np.array([0, f["step"], 1])
        with pytest.raises(AddressError, match=name):
            normals(NoiseStream(NoiseKey.from_seed(0)), Purpose.REPLAY, f["table"], rows, steps, 16)
