"""The noise of the dense parameters: its total against the law, and its path recomputed with the key."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jaxtyping import Float32, Float64, Int64

from samelaw.contract.evidence import TestResult, Verdict
from samelaw.contract.noise import Purpose
from samelaw.contract.run import Transcript
from samelaw.contract.spec import PrivacySpec
from samelaw.equivalence.spans import update_rate


class Normals(Protocol):
    """The definition's normals under the run's key: `functools.partial(reference.noise.normals, stream)`."""

    def __call__(
        self,
        purpose: Purpose,
        table: int,
        rows: Int64[np.ndarray, "n"],
        steps: Int64[np.ndarray, "n"] | int,
        *,
        dim: int,
    ) -> Float32[np.ndarray, "n dim"]: ...


def dense_totals(transcript: Transcript, spec: PrivacySpec) -> dict[str, Float64[np.ndarray, "size"]]:
    """Standardised sum of all noise that each dense parameter received.

    Two roundings a step (update and noise), each with variance ulp^2/12 at the widest place reached; a parameter
    whose noise is below 32 ulp times the root of their number is left out.
    """
    steps = len(transcript.steps)
    std = float(np.ldexp(np.sqrt(float(spec.clock.at(np.array(steps)))), spec.clock.exponent))
    found: dict[str, Float64[np.ndarray, "size"]] = {}
    for name, initial in transcript.initial_dense.items():
        left = initial.astype(np.float64)
        largest = np.abs(left)
        for record in transcript.steps:
            if name in record.dense_sum:
                rate = update_rate(spec, record.step)
                left = left - (rate * record.dense_sum[name]).astype(np.float64)
                largest = np.maximum(largest, np.abs(left))
        final = transcript.final_dense[name].astype(np.float64)
        ulp = np.spacing((largest + 8 * std).astype(np.float32)).astype(np.float64)
        kept = ~(std < 32 * np.sqrt(2 * steps) * ulp)
        if kept.any() and std > 0:
            total = (left - final)[kept]
            found[name] = total / np.sqrt(std**2 + 2 * steps * (ulp[kept] / 2) ** 2 / 12)
    return found


def dense_path(transcript: Transcript, spec: PrivacySpec, normals: Normals) -> TestResult:
    """Recompute every dense parameter from its recorded sums and the key, and compare to the bit."""
    wrong, values, first = 0, 0, ""
    for number, name in enumerate(sorted(transcript.initial_dense)):
        weights = transcript.initial_dense[name].copy()
        for record in transcript.steps:
            if name in record.dense_sum:
                weights = weights - update_rate(spec, record.step) * record.dense_sum[name]
            z = normals(Purpose.DENSE, number, np.zeros(1, dtype=np.int64), record.step, dim=weights.size)
            weights = weights - spec.clock.scale(record.step) * z.reshape(weights.shape)
        differs = weights.view(np.uint32) != transcript.final_dense[name].view(np.uint32)
        values += weights.size
        wrong += int(differs.sum())
        first = first or (name if differs.any() else "")
    return TestResult(
        "dense parameters, recomputed with the key",
        Verdict.REFUTED if wrong else Verdict.EQUAL,
        float(wrong),
        0.0,
        values,
        0.0,
        1.0,
        1.0,
        "values that differ",
        f"first in {first!r}" if first else "",
    )
