"""All noise of a run, standardised, and the ways to pair it up: what claim L1 tests and the report plots."""

from __future__ import annotations

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
    """The same row number of two tables, settled at the same step; neighbouring tables, cyclically."""
    names = sorted(tables)
    pairs: list[Pairs] = []
    for i, first in enumerate(names):
        second = names[(i + 1) % len(names)]
        a, b = tables[first], tables[second]
        if (len(names) == 2 and i == 1) or first == second or a.samples.shape[1] != b.samples.shape[1]:
            continue
        top = 1 + max(int(n.spans.until.max(initial=0)) for n in (a, b))
        _, left, right = np.intersect1d(
            a.spans.row * top + a.spans.until, b.spans.row * top + b.spans.until, return_indices=True
        )
        pairs.append((a.samples[left], b.samples[right]))
    return _joined(pairs)


def pairs_of_spans(received: Received, lag: int) -> Pairs:
    """A row's span and the `lag`-th one after it, touched and idle alike."""
    pairs: list[Pairs] = []
    for name in received.spans:
        a, b = received.touched[name], received.idle[name]
        row = np.concatenate([a.spans.row, b.spans.row])
        until = np.concatenate([a.spans.until, b.spans.until])
        late = np.concatenate([a.spans.idle, b.spans.idle])
        order = np.lexsort((late, until, row))
        z, row = np.concatenate([a.samples, b.samples])[order], row[order]
        same = row[lag:] == row[:-lag]
        pairs.append((z[:-lag][same], z[lag:][same]))
    return _joined(pairs)


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
