"""What the key makes certain: noise recomputed from its address and compared to the bit, without a twin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from samelaw.contract.evidence import Disagreement, TestResult, Verdict
from samelaw.contract.noise import Purpose
from samelaw.contract.run import Transcript
from samelaw.contract.spec import PrivacySpec
from samelaw.equivalence.exact import first_difference
from samelaw.equivalence.spans import Spans, update_rate, variance

_ROWS_AT_ONCE = 1 << 15
_VALUES_AT_ONCE = 1 << 18

Found = tuple[TestResult, Disagreement | None]


@runtime_checkable
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


def recomputed_tables(spans: Mapping[str, Spans], spec: PrivacySpec, normals: Normals) -> Found:
    """Aggregate mode: every settlement is one draw, fl32(w - fl32(S z)), at (table, row, last step owed)."""
    values, wrong = 0, 0
    first: tuple[int, Disagreement] | None = None
    for number, name in enumerate(sorted(spans)):
        for part in _parts(spans[name]):
            std = spec.clock.std(variance(part, spec.clock))
            z = normals(Purpose.AGGREGATE, number, part.row, part.until - 1, dim=part.before.shape[1])
            expected = part.before - std[:, None] * z
            values += expected.size
            differs = (expected.view(np.uint32) != part.after.view(np.uint32)).any(axis=1)
            wrong += int(differs.sum())
            for i in np.flatnonzero(differs)[:1]:
                end = "release" if part.idle[i] else "read"
                place = f"{end} at step {part.until[i]}, table {name!r} (paid for steps {part.since[i]} on)"
                row = slice(i, i + 1)
                found = first_difference(expected[row], part.after[row], place, part.row[row])
                if found is not None and (first is None or part.until[i] < first[0]):
                    first = int(part.until[i]), found
    return _result("settlements, recomputed with the key", "settlements that differ", wrong, values, first)


def recomputed_dense(transcript: Transcript, spec: PrivacySpec, normals: Normals) -> Found:
    """Every mode: a dense parameter's path from its recorded sums and the key."""
    values, wrong = 0, 0
    first: tuple[int, Disagreement] | None = None
    for number, name in enumerate(sorted(transcript.initial_dense)):
        weights = transcript.initial_dense[name].copy()
        draws = _dense_draws(normals, number, np.array([r.step for r in transcript.steps]), weights.size)
        for record, z in zip(transcript.steps, draws, strict=True):
            if name in record.dense_sum:
                weights = weights - update_rate(spec, record.step) * record.dense_sum[name]
            weights = weights - spec.clock.scale(record.step) * z.reshape(weights.shape)
        final = transcript.final_dense[name]
        values += weights.size
        found = first_difference(weights, final, f"release, dense parameter {name!r}")
        if found is not None:
            wrong += 1
            first = first or (0, found)
    return _result("dense parameters, recomputed with the key", "parameters that differ", wrong, values, first)


def _dense_draws(normals: Normals, number: int, steps: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The noise of one dense parameter at each step, drawn for many steps at a time."""
    many = max(1, _VALUES_AT_ONCE // max(1, size))
    for start in range(0, len(steps), many):
        some = steps[start : start + many].astype(np.int64)
        yield from normals(Purpose.DENSE, number, np.zeros_like(some), some, dim=size)


def _parts(spans: Spans) -> Iterator[Spans]:
    """Spans that owe something, a bounded number at a time, in order of their end."""
    owing = np.flatnonzero(spans.owed > 0)
    for start in range(0, len(owing), _ROWS_AT_ONCE):
        yield spans.take(owing[start : start + _ROWS_AT_ONCE])


def _result(name: str, gap: str, wrong: int, values: int, first: tuple[int, Disagreement] | None) -> Found:
    verdict = Verdict.REFUTED if wrong else Verdict.EQUAL if values else Verdict.NOT_ASSESSED
    note = "to the bit: no error rate" if values else "nothing to recompute"
    test = TestResult(name, verdict, float(wrong), 0.0, values, 0.0, 1.0, 1.0, gap, note)
    return test, None if first is None else first[1]
