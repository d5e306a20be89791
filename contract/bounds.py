"""How far float32 rounding can drive two trainers apart that subtract the same path (claim E2).

docs/modes.md derives the bound. It concerns runs whose gradient sums are the same in both trainers.
"""

from __future__ import annotations

from typing import overload

import numpy as np
from jaxtyping import Float64

from samelaw.contract.errors import InputError
from samelaw.contract.run import Transcript
from samelaw.contract.spec import PrivacySpec

UNIT_ROUNDOFF = 2.0**-24
UNDERFLOW = 2.0**-150
EXCURSION = 6.5
LARGEST_NORMAL = 13.0


@overload
def bridge_rounding_bound(*, steps: int, touches: int, largest_weight: float, largest_increment: float) -> float: ...
@overload
def bridge_rounding_bound(
    *,
    steps: int,
    touches: np.ndarray,
    largest_weight: np.ndarray,
    largest_increment: float,
) -> np.ndarray: ...
def bridge_rounding_bound(
    *,
    steps: int,
    touches: int | np.ndarray,
    largest_weight: float | np.ndarray,
    largest_increment: float,
) -> float | np.ndarray:
    """Largest |eager - lazy| of one coordinate after `steps` steps in bridge mode. Broadcasts over rows.

        B = (u * ((T + 3K + 1) * W + 2 * T * N) + (2T + 2) * 2^-150) / (1 - u * (2K + 1)),      u = 2^-24

    Args:
        steps: T, steps run.
        touches: K, steps that touched the row, or after which it was settled early without being read next.
        largest_weight: W, largest |w| that the coordinate takes in the eager run, after any single subtraction.
        largest_increment: N, largest |noise of one step| that the coordinate pays in the eager run.

    Guarantees:
        E2  If both trainers subtract the same gradients and the same integer path, no coordinate differs by more.

    Raises:
        InputError: K >= 2^23, where the bound says nothing.

    Source: docs/modes.md, "How far rounding can go".
    """
    if np.any(2 * touches + 1 >= 1 / UNIT_ROUNDOFF):
        raise InputError(
            f"the bound holds for fewer than 2^23 touches of a row, got {np.max(touches)} in bridge_rounding_bound; "
            "compare the integers of the path instead"
        )
    ops = steps + 3 * touches + 1
    error = UNIT_ROUNDOFF * (ops * largest_weight + 2 * steps * largest_increment)
    return (error + (2 * steps + 2) * UNDERFLOW) / (1 - UNIT_ROUNDOFF * (2 * touches + 1))


def bridge_bounds(transcript: Transcript, spec: PrivacySpec) -> dict[str, Float64[np.ndarray, "_rows"]]:
    """The bound of every row of every table, from the transcript of the eager run.

    A transcript holds a row's value whenever it was read, and at both ends; in between, the row follows a Brownian
    bridge between two values that are known. W is the largest value seen, before or after the gradient of that step,
    plus 6.5 standard deviations of the whole run's noise; N is 13 * max_t s_t. Over 2^40 coordinates and 2^31 steps
    a Gaussian path exceeds either with probability below 2^-47.

    Args:
        transcript: a finished eager run of `spec` in bridge mode. A lazy run differs from it by up to the bound itself,
            and settles rows that nobody reads when it is evaluated: what it is compared with must not have been.
        spec: its law.

    Returns:
        table -> one bound per row, for each of its coordinates, at release and at every read.
    """
    clock, steps = spec.clock, len(transcript.steps)
    excursion = EXCURSION * float(clock.std(clock.at(np.array([steps])))[0])
    bounds: dict[str, Float64[np.ndarray, "_rows"]] = {}
    for name, initial in transcript.initial_tables.items():
        largest = np.maximum(_largest(initial), _largest(transcript.final_tables[name]))
        touches = np.zeros(len(initial), dtype=np.int64)
        for record in transcript.steps:
            if name not in record.rows:
                continue
            rows = record.rows[name]
            rate = spec.schedule.rate(record.step) / spec.expected_batch_size
            gradient = rate * np.ldexp(_largest(record.sums[name]), spec.contribution_exponent)
            largest[rows] = np.maximum(largest[rows], _largest(record.reads[name]) + gradient)
            touches[rows] += 1
        bounds[name] = bridge_rounding_bound(
            steps=steps,
            touches=touches,
            largest_weight=largest + excursion,
            largest_increment=LARGEST_NORMAL * float(clock.scales.max()),
        )
    return bounds


def _largest(values: np.ndarray) -> Float64[np.ndarray, "rows"]:
    """Largest magnitude in each row."""
    return np.abs(values).max(axis=1, initial=0).astype(np.float64)
