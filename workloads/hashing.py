"""Public hash functions: buckets for open vocabularies, and a train/test rule that looks at one example alone.

None of these is secret or random: they are fixed functions, written here so that a vocabulary never has to be
collected from private data. They have nothing to do with the noise.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from jaxtyping import Bool, UInt64

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def mix(words: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """A bijection of 64-bit words that scatters neighbours (SplitMix64: its increment, then its finaliser).

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    with np.errstate(over="ignore"):  # wrapping modulo 2^64 is meant
        words = words + _INCREMENT
        words = (words ^ (words >> np.uint64(30))) * _FIRST
        words = (words ^ (words >> np.uint64(27))) * _SECOND
        return words ^ (words >> np.uint64(31))


def mix_columns(*columns: np.ndarray, salt: int) -> UInt64[np.ndarray, "examples"]:
    """One word per example out of integer columns, by chaining `mix`; negative ones as their bit pattern."""
    state = mix(np.full(len(columns[0]), salt, dtype=np.uint64))
    for column in columns:
        state = mix(state ^ column.astype(np.int64).view(np.uint64))
    return state


def held_out(*columns: np.ndarray, salt: int, one_in: int = 5) -> Bool[np.ndarray, "examples"]:
    """True for the examples of the test set, about one in `one_in`.

    Guarantees:
        W2  The answer for an example is a function of that example's own columns: adding or removing another
            example never moves this one between the training and the test set.
    """
    return mix_columns(*columns, salt=salt) % np.uint64(one_in) == 0


def text_bucket(text: str, *, buckets: int, salt: str) -> int:
    """The bucket of a string, 0..buckets-1: eight bytes of keyed BLAKE2b, little-endian, modulo `buckets`."""
    digest = blake2b(text.encode("utf-8"), digest_size=8, key=salt.encode("utf-8")).digest()
    return int.from_bytes(digest, "little") % buckets
