"""The noise that each row received, read off a transcript span by span.

Between two consecutive reads of a row, nothing happens to it but the update at the first and the noise in between.
The update is known exactly (docs/arithmetic.md: `w - fl32(a_t * G)` from the recorded integer sums), so

    received = w_after_update(previous read) - w_read(now)

is the noise of the steps that it owed, up to the rounding of the weights themselves. A span starts at the beginning of
the run or at a read, and ends at a read ("touched") or at release ("idle").

**Rounding.** Each payment rounds the weight once, to a multiple of its spacing `ulp`; `payments` such errors behave
as independent uniforms of variance ulp^2/12 when the noise is much wider than ulp (Sheppard's correction: what is left
out is exp(-2 pi^2 (S/ulp)^2)). A lattice still shows in a distribution function, so a uniform dither of one ulp, from
a fixed generator, is added; the std by which a span is divided is then

    sqrt(S^2 + (payments + 1) ulp^2 / 12).

The dithered density is the normal one averaged over one ulp: its distribution function is within 0.03 (ulp/S)^2 of
normal. A span is assessed only if S >= 32 sqrt(payments) ulp, where ulp is the spacing at |w| + 8 S (the widest place
that the span can reach: so the choice does not look at the noise): an error below 3e-5 in the distribution function,
and below 1e-4 in the variance even if every payment were rounded a binade lower. Weights that are not finite count as
assessed, and are refuted by every test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from samelaw.contract.run import StepRecord, Transcript
from samelaw.contract.schedule import NoiseClock
from samelaw.contract.spec import Mode, PrivacySpec

RESOLUTION = 32  # S / ulp from which a span is assessed
_REACH = 8.0  # the generator's tail ends at 7.54 sigma


@dataclass(frozen=True, repr=False)
class Spans:
    """Consecutive stretches of noise of one table; one entry a span, in order of its end.

    Attributes:
        row, since, until: the row, and the steps since .. until - 1 that it owed.
        idle: ends at release rather than at a read.
        before, after: weights at both ends of the span, (n, dim) float32.
        update: what the update just before the span subtracted; zeros where there was none.
    """

    row: Int64[np.ndarray, "n"]
    since: Int64[np.ndarray, "n"]
    until: Int64[np.ndarray, "n"]
    idle: Bool[np.ndarray, "n"]
    before: Float32[np.ndarray, "n dim"]
    after: Float32[np.ndarray, "n dim"]
    update: Float32[np.ndarray, "n dim"]

    @property
    def owed(self) -> Int64[np.ndarray, "n"]:
        return self.until - self.since

    def take(self, chosen: np.ndarray | slice) -> Spans:
        return Spans(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    def with_all(self, others: Spans) -> Spans:
        return Spans(**{f.name: np.concatenate([getattr(self, f.name), getattr(others, f.name)]) for f in fields(self)})

    def __len__(self) -> int:
        return int(self.row.size)

    def __repr__(self) -> str:
        return f"Spans({len(self)})"


@dataclass(frozen=True, repr=False)
class Noise:
    """Spans whose noise can be assessed, standardised by its known std.

    Attributes:
        spans: the spans, of one table.
        samples: (n, dim), standard normal for a correct trainer.
    """

    spans: Spans
    samples: Float64[np.ndarray, "n dim"]

    def __repr__(self) -> str:
        return f"Noise({len(self.spans)})"


def updated(
    reads: Float32[np.ndarray, "rows dim"], sums: Int64[np.ndarray, "rows dim"], *, exponent: int, rate: np.float32
) -> Float32[np.ndarray, "rows dim"]:
    """A table's rows after the update of one step: w = fl32(w - fl32(a_t * G)), G = fl32(sum) * 2^e."""
    gradient = np.ldexp(sums.astype(np.float32), exponent)
    return reads - rate * gradient


def update_rate(spec: PrivacySpec, step: int) -> np.float32:
    """a_t = fl32(lr_t / B)."""
    return np.float32(spec.schedule.rate(step) / spec.expected_batch_size)


def table_spans(transcript: Transcript, table: str, spec: PrivacySpec, *, padding: int | None = None) -> Spans:
    """Every span of one table, the padding row left out."""
    weights = transcript.initial_tables[table].copy()
    history = np.zeros(len(weights), dtype=np.int64)
    update = np.zeros_like(weights)
    found: list[Spans] = []
    for record in transcript.steps:
        rows, reads, sums = _step_of(record, table, weights.shape[1])
        found.append(_spans(rows, history[rows], record.step, weights[rows], reads, update[rows], idle=False))
        weights[rows] = updated(reads, sums, exponent=spec.contribution_exponent, rate=update_rate(spec, record.step))
        update[rows] = reads - weights[rows]
        history[rows] = record.step
    every = np.arange(len(weights), dtype=np.int64)
    final = transcript.final_tables[table]
    found.append(_spans(every, history, len(transcript.steps), weights, final, update, idle=True))
    spans = Spans(**{f.name: np.concatenate([getattr(s, f.name) for s in found]) for f in fields(Spans)})
    return spans if padding is None else spans.take(spans.row != padding)


def variance(spans: Spans, clock: NoiseClock) -> Int64[np.ndarray, "n"]:
    """Clock ticks that each span owes."""
    return clock.at(spans.until) - clock.at(spans.since)


def standardise(spans: Spans, clock: NoiseClock, mode: Mode, *, dither_seed: int) -> tuple[Noise, int]:
    """Noise of the spans that can be assessed, and how many owe noise that float32 weights cannot show.

    Spans that owe nothing are left out: `unpaid_changes` looks at them.
    """
    ticks = variance(spans, clock)
    owing = ticks > 0
    due = spans.take(owing)
    std = np.ldexp(np.sqrt(ticks[owing].astype(np.float64)), clock.exponent)
    payments = due.owed.astype(np.float64) if mode is Mode.REPLAY else np.ones(len(due))
    magnitude = np.abs(due.before).max(axis=1, initial=0.0)
    reach = magnitude.astype(np.float64) + _REACH * std
    visible = ~(std < RESOLUTION * np.sqrt(payments) * np.spacing(reach.astype(np.float32)))  # keeps NaN
    kept = due.take(visible)
    ulp = np.spacing(np.abs(kept.after)).astype(np.float64)
    received = kept.before.astype(np.float64) - kept.after.astype(np.float64)
    dither = np.random.default_rng(dither_seed).uniform(-0.5, 0.5, received.shape)
    known = np.sqrt(std[visible, None] ** 2 + (payments[visible, None] + 1) * ulp**2 / 12)
    return Noise(kept, (received + dither * ulp) / known), int((~visible).sum())


def unpaid_changes(spans: Spans, clock: NoiseClock) -> Spans:
    """Spans that owe no noise and yet changed: there should be none."""
    free = spans.take(variance(spans, clock) == 0)
    same = (free.before.view(np.uint32) == free.after.view(np.uint32)).all(axis=1)
    return free.take(~same)


def settlement_delays(transcripts_spans: Mapping[str, Spans]) -> tuple[list[int], list[int]]:
    """Steps owed at each settlement (reads and release), as (upper edges of octaves, counts)."""
    owed = np.concatenate([s.owed for s in transcripts_spans.values()]) if transcripts_spans else np.empty(0)
    octave = np.ceil(np.log2(np.maximum(owed[owed > 0], 1))).astype(np.int64)
    counts = np.bincount(octave)
    return [1 << i for i in range(len(counts))], [int(c) for c in counts]


def _step_of(record: StepRecord, table: str, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, reads and sums of one table at one step; empty if it was not read."""
    if table not in record.rows:
        empty = np.empty((0, dim))
        return np.empty(0, dtype=np.int64), empty.astype(np.float32), empty.astype(np.int64)
    return record.rows[table], record.reads[table], record.sums[table]


def _spans(
    row: np.ndarray,
    since: np.ndarray,
    until: int,
    before: np.ndarray,
    after: np.ndarray,
    update: np.ndarray,
    *,
    idle: bool,
) -> Spans:
    n = len(row)
    ends = np.full(n, until, dtype=np.int64)
    return Spans(row, since.copy(), ends, np.full(n, idle), before.copy(), after.copy(), update.copy())
