"""All noise of a run, standardised, and the ways to pair it up: what claim L1 tests and the report plots."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from samelaw.contract.run import Transcript
from samelaw.contract.spec import PrivacySpec
from samelaw.equivalence import laws
from samelaw.equivalence.dense_noise import dense_totals
from samelaw.equivalence.spans import Noise, Spans, settlement_delays, standardise, table_spans, variance

Pairs = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, repr=False)
class Received:
    """All noise of a run: by table, split into touched and idle spans, and the dense parameters' totals."""

    spans: dict[str, Spans]
    touched: dict[str, Noise]
    idle: dict[str, Noise]
    dense: dict[str, Float64[np.ndarray, "size"]]
    unseen: int

    def kinds(self) -> dict[str, dict[str, Noise]]:
        return {"touched rows": self.touched, "idle rows": self.idle}

    def __repr__(self) -> str:
        return f"Received(tables={len(self.spans)})"


def receive(transcript: Transcript, spec: PrivacySpec, padding: Mapping[str, int]) -> Received:
    """Read all noise of a run off its transcript and standardise it."""
    spans: dict[str, Spans] = {}
    touched: dict[str, Noise] = {}
    idle: dict[str, Noise] = {}
    unseen = 0
    for number, name in enumerate(sorted(transcript.initial_tables)):
        spans[name] = table_spans(transcript, name, spec, padding=padding.get(name))
        noise, hidden = standardise(spans[name], spec.clock, spec.mode, dither_seed=number)
        unseen += hidden
        late = noise.spans.idle
        idle[name] = Noise(noise.spans.take(late), noise.samples[late])
        touched[name] = Noise(noise.spans.take(~late), noise.samples[~late])
    return Received(spans, touched, idle, dense_totals(transcript, spec), unseen)


def flat(noises: Iterable[Noise]) -> Float64[np.ndarray, "samples"]:
    parts = [noise.samples.ravel() for noise in noises]
    return np.concatenate(parts) if parts else np.empty(0)


def updates(noises: Iterable[Noise], spec: PrivacySpec) -> Float64[np.ndarray, "samples"]:
    """The update before each sample, in units of the sample's std: known before the noise was drawn."""
    parts = [
        (noise.spans.update / spec.clock.std(variance(noise.spans, spec.clock))[:, None]).astype(np.float64).ravel()
        for noise in noises
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def octaves(tables: Mapping[str, Noise], spec: PrivacySpec) -> list[tuple[int, int, np.ndarray]]:
    """Samples by steps owed: 1, 2, 3-4, 5-8, ... up to the whole run."""
    if not tables:
        return []
    owed = np.concatenate([n.spans.owed for n in tables.values()])
    found: list[tuple[int, int, np.ndarray]] = []
    low, high = 1, 1
    while low <= spec.schedule.steps:
        inside = (owed >= low) & (owed <= high)
        if inside.any():
            parts = [n.samples[(n.spans.owed >= low) & (n.spans.owed <= high)].ravel() for n in tables.values()]
            found.append((low, min(high, spec.schedule.steps), np.concatenate(parts)))
        low, high = high + 1, high * 2
    return found


def pairs_of_dims(tables: Mapping[str, Noise], lag: int) -> Pairs:
    return _joined([(n.samples[:, :-lag], n.samples[:, lag:]) for n in tables.values() if n.samples.shape[1] > lag])


def pairs_of_rows(tables: Mapping[str, Noise]) -> Pairs:
    """Neighbours among the rows of one table that were settled at one step."""
    pairs: list[Pairs] = []
    for noise in tables.values():
        order = np.lexsort((noise.spans.row, noise.spans.until))
        z, until = noise.samples[order], noise.spans.until[order]
        together = until[1:] == until[:-1]
        pairs.append((z[:-1][together], z[1:][together]))
    return _joined(pairs)


def pairs_of_tables(tables: Mapping[str, Noise]) -> Pairs:
    """The same row number of two tables, settled at the same step; neighbouring tables in sorted order.

    The chain is not closed to a ring: around a ring of three the products of pairs have a third moment, and the far
    tail of their sum would be heavier than the test's.
    """
    names = sorted(tables)
    pairs: list[Pairs] = []
    for first, second in itertools.pairwise(names):
        a, b = tables[first], tables[second]
        if a.samples.shape[1] != b.samples.shape[1]:
            continue
        top = 1 + max(int(n.spans.until.max(initial=0)) for n in (a, b))
        _, left, right = np.intersect1d(
            a.spans.row * top + a.spans.until, b.spans.row * top + b.spans.until, return_indices=True
        )
        pairs.append((a.samples[left], b.samples[right]))
    return _joined(pairs)


def in_order(received: Received) -> dict[str, Noise]:
    """All noise of each table by row, and by time within a row; the idle span is a row's last."""
    found: dict[str, Noise] = {}
    for name in received.spans:
        touched, idle = received.touched[name], received.idle[name]
        spans = touched.spans.with_all(idle.spans)
        order = np.lexsort((spans.idle, spans.until, spans.row))
        found[name] = Noise(spans.take(order), np.concatenate([touched.samples, idle.samples])[order])
    return found


def pairs_of_spans(
    ordered: Mapping[str, Noise],
    lag: int,
    *,
    idle: bool,
    owed: tuple[int, int] | None = None,
    across: int | None = None,
) -> Pairs:
    """A row's span and the `lag`-th one after it.

    Args:
        ordered: see `in_order`.
        idle: whether the later one is idle, or was touched.
        owed: only where the later one owed so many steps, both ends included.
        across: only where the earlier one ended before this step, and the later one did not.
    """
    pairs: list[Pairs] = []
    early, late = slice(None, -lag), slice(lag, None)
    for noise in ordered.values():
        spans = noise.spans
        if len(spans) <= lag:
            continue
        chosen = (spans.row[early] == spans.row[late]) & (spans.idle[late] == idle)
        if owed is not None:
            chosen &= (spans.owed[late] >= owed[0]) & (spans.owed[late] <= owed[1])
        if across is not None:
            chosen &= (spans.until[early] < across) & (spans.until[late] >= across)
        pairs.append((noise.samples[early][chosen], noise.samples[late][chosen]))
    return _joined(pairs)


def pairs_over_restart(received: Received, offset: int, *, same_row: bool) -> Pairs:
    """Spans that touched rows ended `offset` steps apart, on both sides of a restart at step `offset` or the next.

    A generator that starts again at the restart repeats its draws so many steps later.

    Args:
        same_row: pair by row, as a counter that starts again would; or by place among the rows settled at the step, in
            ascending order, as a stream of random numbers would.
    """
    pairs: list[Pairs] = []
    for noise in received.touched.values():
        order = np.lexsort((noise.spans.row, noise.spans.until))
        z, row, until = noise.samples[order], noise.spans.row[order], noise.spans.until[order]
        place = row if same_row else np.arange(len(row)) - np.searchsorted(until, until, side="left")
        top = 1 + int(place.max(initial=0))
        early, late = until <= offset, until > offset
        _, left, right = np.intersect1d(
            until[early] * top + place[early], (until[late] - offset) * top + place[late], return_indices=True
        )
        pairs.append((z[early][left], z[late][right]))
    return _joined(pairs)


def over_restart(tables: Mapping[str, Noise], restart: int) -> Float64[np.ndarray, "samples"]:
    """Noise of the spans that began before a restart and ended after it: what a history lost there gets wrong."""
    parts = [n.samples[(n.spans.since < restart) & (n.spans.until > restart)].ravel() for n in tables.values()]
    return np.concatenate(parts) if parts else np.empty(0)


def _joined(pairs: list[Pairs]) -> Pairs:
    if not pairs:
        return np.empty(0), np.empty(0)
    return np.concatenate([p[0].ravel() for p in pairs]), np.concatenate([p[1].ravel() for p in pairs])


def all_rows(received: Received) -> dict[int, np.ndarray]:
    """Rows of noise of every table, by dimension."""
    found: dict[int, list[np.ndarray]] = {}
    for tables in (received.touched, received.idle):
        for noise in tables.values():
            found.setdefault(noise.samples.shape[1], []).append(noise.samples)
    return {dim: np.concatenate(parts) for dim, parts in found.items()}


def changes(tables: Mapping[str, Noise], spec: PrivacySpec) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Weights before and after each span, and the std of what it was owed, by dimension."""
    found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for dim in sorted({n.samples.shape[1] for n in tables.values()}):
        spans = [n.spans for n in tables.values() if n.samples.shape[1] == dim]
        std = [spec.clock.std(variance(s, spec.clock)).astype(np.float64) for s in spans]
        before, after = [s.before for s in spans], [s.after for s in spans]
        found[dim] = (np.concatenate(before), np.concatenate(after), np.concatenate(std))
    return found


def figures(
    received: Received, spec: PrivacySpec, margin: float, false_alarm: float, false_pass: float
) -> dict[str, Any]:
    """What the report plots, as plain numbers."""
    grid = np.array([1e-4, 1e-3, *np.linspace(0.01, 0.99, 99), 0.999, 0.9999])
    figures: dict[str, Any] = {
        "mode": str(spec.mode),
        "margin": margin,
        "false_alarm": false_alarm,
        "false_pass": false_pass,
        "spans_not_visible": received.unseen,
        "quantiles": {},
        "variance_by_steps_owed": {},
    }
    for kind, tables in received.kinds().items():
        z = flat(tables.values())
        if z.size == 0 or not np.isfinite(z).all():
            continue
        inside = grid[(grid * z.size >= 10) & ((1 - grid) * z.size >= 10)]
        figures["quantiles"][kind] = {
            "probability": [float(p) for p in inside],
            "found": [float(q) for q in np.quantile(z, inside)],
            "samples": z.size,
        }
        figures["variance_by_steps_owed"][kind] = [
            _octave_figure(low, high, tables, spec) for low, high, _ in octaves(tables, spec)
        ]
    edges, counts = settlement_delays(received.spans)
    figures["settlement_delays"] = {"at_most": edges, "settlements": counts}
    return figures


def _octave_figure(low: int, high: int, tables: Mapping[str, Noise], spec: PrivacySpec) -> dict[str, Any]:
    """Mean steps owed, variance owed, and received over owed variance, of spans that owed low .. high steps."""
    owed, due, square, samples, n = 0.0, 0.0, 0.0, 0, 0
    for noise in tables.values():
        inside = (noise.spans.owed >= low) & (noise.spans.owed <= high)
        spans, z = noise.spans.take(inside), noise.samples[inside]
        ticks = variance(spans, spec.clock).astype(np.float64)
        owed += float(spans.owed.sum())
        due += float(np.ldexp(ticks, 2 * spec.clock.exponent).sum())
        square += float((z**2).sum())
        samples += z.size
        n += len(spans)
    lower, upper = laws.std_limits(samples, 5e-4)
    return {
        "steps_owed": owed / n,
        "owed": due / n,
        "received_over_owed": square / samples,
        "usual_low": lower**2,
        "usual_high": upper**2,
        "samples": samples,
    }
