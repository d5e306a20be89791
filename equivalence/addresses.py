"""Claim N2: every bit of an address, and every bit of the key, changes the noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from samelaw.contract.evidence import Disagreement, Evidence, Verdict
from samelaw.contract.noise import (
    NORMALS_PER_BLOCK,
    ROUNDS,
    ROW_BITS,
    STEP_BITS,
    TABLE_BITS,
    NoiseKey,
    NoiseStream,
    Purpose,
)
from samelaw.equivalence.noise_vectors import Normals

N2 = "No two addresses share their noise: every bit of purpose, table, row, step, block and key reaches the generator."
BLOCKS = 64  # of one row, all of which must differ

Draw = tuple[str, np.ndarray]


def addresses(normals: Normals, *, seed: int = 0, backend: str = "") -> Evidence:
    """N2: flip each bit of an address alone, and look for a block of noise that was seen before.

    A counter that wraps, a field that is cut to a smaller type, or a seed shorter than the key leaves some bit without
    effect, whatever the length of the run in which that would show. Sixteen float32 normals of different addresses
    agree by chance with probability below 2^-320.

    Args:
        normals: the backend's generator, as noise_vectors.Normals.
        seed: chooses the address around which bits are flipped; address 0 is the other one.
        backend: its name, in the report's words.

    Returns:
        EQUAL if all blocks differ, or REFUTED with the first two addresses that share one.
    """
    rng = np.random.default_rng(seed)
    places = {
        "0": (0, 0, 0),
        "random": (
            int(rng.integers(1 << TABLE_BITS)),
            int(rng.integers(1 << ROW_BITS)),
            int(rng.integers(1 << STEP_BITS)),
        ),
    }
    key = NoiseKey.from_bytes(rng.bytes(32), origin="seed")
    seen: dict[bytes, str] = {}
    drawn, wrong = 0, None
    for name, place in places.items():
        for where, block in _neighbours(normals, NoiseStream(key), *place):
            drawn += 1
            said = f"address {name}, {where}"
            first = seen.setdefault(block.tobytes(), said)
            if first != said and wrong is None:
                wrong = Disagreement(said, "noise of its own", f"the noise of {first}")
    numbers = {"blocks": drawn, "distinct": len(seen)}
    scope = backend or "the trainer's generator"
    if wrong is not None:
        return Evidence("N2", N2, Verdict.REFUTED, f"Noise is drawn twice: {wrong}.", scope, wrong, (), numbers)
    return Evidence("N2", N2, Verdict.EQUAL, f"All {drawn} blocks of noise differ.", scope, None, (), numbers)


def _neighbours(normals: Normals, stream: NoiseStream, table: int, row: int, step: int) -> Iterator[Draw]:
    """The noise at an address, and at every address that differs from it in one bit."""

    def blocks(stream: NoiseStream, purpose: Purpose, table: int, rows: list[int], steps: list[int]) -> np.ndarray:
        at, when = np.array(rows, dtype=np.int64), np.array(steps, dtype=np.int64)
        return np.asarray(normals(stream, purpose, table, at, when, NORMALS_PER_BLOCK))

    purpose = Purpose.REPLAY
    whole = np.asarray(normals(stream, purpose, table, np.array([row]), np.array([step]), BLOCKS * NORMALS_PER_BLOCK))
    for number, block in enumerate(whole.reshape(BLOCKS, NORMALS_PER_BLOCK)):
        yield f"block {number}", block
    rows = [row ^ (1 << bit) for bit in range(ROW_BITS)]
    for bit, block in enumerate(blocks(stream, purpose, table, rows, [step] * ROW_BITS)):
        yield f"bit {bit} of the row flipped", block
    steps = [step ^ (1 << bit) for bit in range(STEP_BITS)]
    for bit, block in enumerate(blocks(stream, purpose, table, [row] * STEP_BITS, steps)):
        yield f"bit {bit} of the step flipped", block
    for bit in range(TABLE_BITS):
        yield f"bit {bit} of the table flipped", blocks(stream, purpose, table ^ (1 << bit), [row], [step])[0]
    for other in Purpose:
        if other is not purpose:
            yield f"purpose {other.name}", blocks(stream, other, table, [row], [step])[0]
    for rounds in ROUNDS:
        if rounds != stream.rounds:
            yield f"{rounds} rounds", blocks(replace(stream, rounds=rounds), purpose, table, [row], [step])[0]
    for bit in range(256):
        words = list(stream.key.words)
        words[bit // 32] ^= 1 << (bit % 32)
        other_key = replace(stream, key=NoiseKey(tuple(words), stream.key.origin))
        yield f"bit {bit} of the key flipped", blocks(other_key, purpose, table, [row], [step])[0]
