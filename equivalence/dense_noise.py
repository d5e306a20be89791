"""The noise of the dense parameters, read off a transcript as one total each."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from samelaw.contract.run import Transcript
from samelaw.contract.spec import PrivacySpec
from samelaw.equivalence.spans import update_rate


def dense_totals(transcript: Transcript, spec: PrivacySpec) -> dict[str, Float64[np.ndarray, "size"]]:
    """Standardised sum of all noise that each dense parameter received.

    Two roundings a step (update and noise), each with variance ulp^2/12 at the widest place reached; a parameter
    whose noise is below 32 ulp times the root of their number is left out.
    """
    steps = len(transcript.steps)
    std = float(spec.clock.std(spec.clock.at(np.array([steps])))[0])
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
