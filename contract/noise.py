"""The address space of the noise, and the key that makes it secret.

Every random number of a run is a pure function of (key, purpose, table, row, step, block). The layout below is
the whole address space; docs/noise.md is the specification. `samelaw.reference.noise` is its definition.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

import numpy as np
from jaxtyping import UInt32

from samelaw.contract.errors import AddressError, InputError, NoiseKeyError

ROW_BITS = 48
STEP_BITS = 32
TABLE_BITS = 16
BLOCK_BITS = 24
PURPOSE_BITS = 8
NORMALS_PER_BLOCK = 16
LARGEST_DIM = NORMALS_PER_BLOCK << BLOCK_BITS
ROUNDS = (8, 12, 20)


class Purpose(IntEnum):
    """What a word is drawn for. Each has its own tag in the address, so no word is ever used twice."""

    REPLAY = 1
    BRIDGE = 2
    AGGREGATE = 3
    DENSE = 4
    SAMPLING = 5
    INITIALISATION = 6


@dataclass(frozen=True)
class NoiseKey:
    """A 256-bit secret. Whoever holds it can strip the noise from a released model.

    Attributes:
        words: the key as eight little-endian 32-bit words.
        origin: "os" for a key from the operating system, "seed" for a fixed seed (tests and replays only),
            "file" for one that was read back. The manifest records it.
    """

    words: tuple[int, ...] = field(repr=False)
    origin: str = "os"

    def __post_init__(self) -> None:
        if len(self.words) != 8 or not all(0 <= w < 2**32 for w in self.words):
            raise InputError("a noise key must be eight words of 32 bits; make one with NoiseKey.from_os()")

    @classmethod
    def from_os(cls) -> NoiseKey:
        """A fresh key from the operating system's generator: the one to train with."""
        return cls.from_bytes(secrets.token_bytes(32), origin="os")

    @classmethod
    def from_seed(cls, seed: int) -> NoiseKey:
        """A key that anybody who guesses `seed` can recompute: for tests and comparisons, never for a release."""
        if seed < 0:
            raise InputError(f"seed must be >= 0, got {seed}")
        return cls.from_bytes(hashlib.sha256(b"samelaw seed key v1:" + str(seed).encode()).digest(), origin="seed")

    @classmethod
    def from_bytes(cls, raw: bytes, *, origin: str = "file") -> NoiseKey:
        if len(raw) != 32:
            raise NoiseKeyError(f"a noise key is 32 bytes, got {len(raw)}")
        return cls(tuple(int(w) for w in np.frombuffer(raw, dtype="<u4")), origin)

    @classmethod
    def load(cls, path: str | Path) -> NoiseKey:
        """Read a key file (64 hexadecimal digits, as `save` writes it)."""
        try:
            text = Path(path).read_text(encoding="ascii").strip()
            raw = bytes.fromhex(text)
        except (OSError, ValueError) as cause:
            raise NoiseKeyError(f"cannot read a noise key from {path}: {cause}") from cause
        return cls.from_bytes(raw)

    def save(self, path: str | Path) -> None:
        """Write the key to a new file that only its owner can read; an existing file is never overwritten."""
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as cause:
            raise NoiseKeyError(f"{path} exists; a key is never overwritten, choose another path") from cause
        with os.fdopen(handle, "w", encoding="ascii") as out:
            out.write(self.to_bytes().hex() + "\n")

    def to_bytes(self) -> bytes:
        return np.array(self.words, dtype="<u4").tobytes()

    def array(self) -> UInt32[np.ndarray, "8"]:
        return np.array(self.words, dtype=np.uint32)

    def commitment(self) -> str:
        """SHA-256 of the key under a domain tag: binds a manifest to the key without showing it."""
        return hashlib.sha256(b"samelaw key commitment v1:" + self.to_bytes()).hexdigest()


@dataclass(frozen=True)
class NoiseStream:
    """A key together with the number of ChaCha rounds: all that a draw depends on besides its address."""

    key: NoiseKey
    rounds: int = 12

    def __post_init__(self) -> None:
        if self.rounds not in ROUNDS:
            raise InputError(f"rounds must be one of {ROUNDS}, got {self.rounds!r}")


def check_address(*, table: int, largest_row: int, largest_step: int, dim: int) -> None:
    """Refuse an address that would wrap in its field.

    Raises:
        AddressError: table >= 2^16, row >= 2^48, step >= 2^32, or dim outside 1..2^28.
    """
    for name, value, bits in (
        ("table", table, TABLE_BITS),
        ("row", largest_row, ROW_BITS),
        ("step", largest_step, STEP_BITS),
    ):
        if not 0 <= value < 1 << bits:
            raise AddressError(f"{name} must be in 0..2^{bits}-1, got {value}: a wrapped address would repeat a draw")
    if not 1 <= dim <= LARGEST_DIM:
        raise AddressError(f"dim must be in 1..2^28, got {dim}: split the table by columns")
