"""Keyed Poisson sampling: which examples join the batch of a step."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from samelaw.contract.errors import InputError
from samelaw.contract.noise import NoiseStream, Purpose
from samelaw.reference.noise import uniform_words


def poisson_sample(stream: NoiseStream, step: int, sampling_rate: float, examples: int) -> Int64[np.ndarray, "drawn"]:
    """Indices of the examples that join the batch of `step`; possibly none.

    Args:
        stream: key and rounds.
        step: 0-based.
        sampling_rate: q in (0, 1].
        examples: N >= 0, size of the training set.

    Returns:
        Ascending indices, each in 0..N-1.

    Guarantees:
        P1  Each example joins by a 64-bit word of its own, so independently of every other example and step, with
            probability floor(q * 2^64) / 2^64: never above q, and below it by less than 2^-64.

    Raises:
        InputError: sampling_rate is outside (0, 1] or examples is negative.

    Source: docs/arithmetic.md ("Sampling"); Zhu and Wang, "Poisson subsampled Rényi differential privacy" (2019).
    """
    if not 0 < sampling_rate <= 1:
        raise InputError(f"sampling_rate must be in (0, 1], got {sampling_rate!r}")
    if examples < 0:
        raise InputError(f"examples must be >= 0, got {examples}")
    if sampling_rate == 1:
        return np.arange(examples, dtype=np.int64)
    threshold = np.uint64(int(sampling_rate * 2.0**64))  # the product is exact: only the exponent changes
    words = uniform_words(stream, Purpose.SAMPLING, 0, examples, step=step)
    return np.flatnonzero(words < threshold).astype(np.int64)
