"""Claims E1 and E2: two transcripts compared, to the bit (replay) or within the derived bound (bridge)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64

from samelaw.contract.bounds import bridge_bounds
from samelaw.contract.evidence import Disagreement, Evidence, Verdict
from samelaw.contract.run import Transcript
from samelaw.contract.spec import PrivacySpec

E1 = "In replay mode the lazy trainer computes the same bits as the eager one: every read, sum, table and parameter."
E2 = "In bridge mode both trainers follow the same noise path: they differ by float32 rounding alone, within its bound."


@dataclass
class Compared:
    """How many values were compared, by what they are."""

    counts: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, what: str, values: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + values

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {what}" for what, count in self.counts.items())


def replay(eager: Transcript, lazy: Transcript, *, scope: str = "") -> Evidence:
    """E1: everything that two replay transcripts hold, compared to the bit, in the order in which it happened.

    Returns:
        EQUAL, or REFUTED with the first value that differs; NOT ASSESSED if there is nothing to compare.
    """
    compared = Compared()
    wrong = next(differences(eager, lazy, compared), None)
    scope = scope or _scope(eager)
    numbers = {"compared": compared.counts}
    if wrong is not None:
        return Evidence("E1", E1, Verdict.REFUTED, f"The twins part at {wrong}.", scope, wrong, (), numbers)
    if not eager.steps or not compared.total:
        return Evidence("E1", E1, Verdict.NOT_ASSESSED, "No step was run, so nothing was compared.", scope)
    return Evidence("E1", E1, Verdict.EQUAL, f"No bit differs in {compared}.", scope, None, (), numbers)


def differences(expected: Transcript, found: Transcript, compared: Compared | None = None) -> Iterator[Disagreement]:
    """Every array of two transcripts that differs in a bit, in the order of the run; what was compared is counted."""
    seen = compared or Compared()
    yield from _maps("initial {}", "initial values", expected.initial_tables, found.initial_tables, seen)
    yield from _maps("initial dense {}", "initial values", expected.initial_dense, found.initial_dense, seen)
    for one, other in zip(expected.steps, found.steps, strict=False):
        place = f"step {one.step}"
        if (one.step, one.examples) != (other.step, other.examples):
            yield Disagreement(
                place, f"step {one.step} with its batch", f"step {other.step} with a batch of another size"
            )
        yield from _maps(f"{place}, rows read of {{}}", "row ids", one.rows, other.rows, seen)
        yield from _maps(f"{place}, read of {{}}", "values read", one.reads, other.reads, seen, one.rows)
        yield from _maps(f"{place}, gradient sum of {{}}", "gradient sums", one.sums, other.sums, seen, one.rows)
        yield from _maps(f"{place}, dense sum of {{}}", "dense sums", one.dense_sum, other.dense_sum, seen)
    if len(expected.steps) != len(found.steps):
        yield Disagreement("the whole run", f"{len(expected.steps)} steps", f"{len(found.steps)} steps")
    yield from _maps("release, table {}", "released values", expected.final_tables, found.final_tables, seen)
    yield from _maps("release, dense {}", "released values", expected.final_dense, found.final_dense, seen)


def bridge(
    eager: Transcript,
    lazy: Transcript,
    spec: PrivacySpec,
    *,
    closed_loop: tuple[Transcript, Transcript] | None = None,
    bounds: Mapping[str, Float64[np.ndarray, "_rows"]] | None = None,
    scope: str = "",
) -> Evidence:
    """E2: the largest difference of every read and every released table against the bound of contract/bounds.py.

    Args:
        eager, lazy: transcripts of runs whose gradients do not depend on what was read, so that their integer sums
            agree; dense parameters, whose arithmetic is the same in every mode, must agree to the bit.
        spec: their law.
        closed_loop: transcripts of an ordinary bridge run of both twins: how far they drift is information only.
        bounds: table -> the bound of each row; contract.bounds.bridge_bounds of the eager transcript by default, which
            counts settlements at reads alone. A run that settled rows at other times needs more.

    Returns:
        EQUIVALENT if every difference is within its row's bound; NOT ASSESSED if the gradient sums differ, because
        then the bound says nothing.
    """
    scope = scope or _scope(eager)
    bounds = bridge_bounds(eager, spec) if bounds is None else bounds
    values = sum(table.size for table in eager.final_tables.values())
    numbers: dict[str, object] = {
        "released_values": values,
        "largest_bound": max((float(b.max()) for b in bounds.values()), default=0.0),
        "smallest_noise_std_of_one_step": float(spec.clock.scales[spec.clock.scales > 0].min(initial=np.inf)),
    }
    if closed_loop is not None:
        numbers["closed_loop_difference"] = largest_difference(*closed_loop)
    unlike = next(_unlike_inputs(eager, lazy), None)
    if unlike is not None:
        summary = f"The twins did not get the same gradients, so the bound does not apply: {unlike}."
        return Evidence("E2", E2, Verdict.REFUTED, summary, scope, unlike, (), numbers)
    if not eager.steps or not values:
        return Evidence("E2", E2, Verdict.NOT_ASSESSED, "Nothing was run.", scope, None, (), numbers)
    worst, wrong = _against_bounds(eager, lazy, bounds)
    numbers["largest_difference"] = largest_difference(eager, lazy)
    numbers["largest_share_of_bound"] = worst
    if wrong is not None:
        summary = f"The twins do not follow the same path: {wrong}."
        return Evidence("E2", E2, Verdict.REFUTED, summary, scope, wrong, (), numbers)
    smallest, bound = numbers["smallest_noise_std_of_one_step"], numbers["largest_bound"]
    summary = (
        f"Largest difference {numbers['largest_difference']:.3g}, at most {worst:.1%} of its row's bound "
        f"(largest bound {bound:.3g}; the noise of one step has std {smallest:.3g} or more)."
    )
    return Evidence("E2", E2, Verdict.EQUIVALENT, summary, scope, None, (), numbers)


def largest_difference(one: Transcript, other: Transcript) -> float:
    """Largest |difference| of a released table value."""
    gaps = [
        float(np.abs(table.astype(np.float64) - other.final_tables[name].astype(np.float64)).max(initial=0.0))
        for name, table in one.final_tables.items()
    ]
    return max(gaps, default=0.0)


def _unlike_inputs(eager: Transcript, lazy: Transcript) -> Iterator[Disagreement]:
    """What must agree to the bit before the bound means anything: all but reads and released tables."""
    for wrong in differences(eager, lazy):
        if ", read of " not in wrong.where and not wrong.where.startswith("release, table "):
            yield wrong


def _against_bounds(
    eager: Transcript, lazy: Transcript, bounds: Mapping[str, Float64[np.ndarray, "rows"]]
) -> tuple[float, Disagreement | None]:
    """Largest share of a row's bound that a difference takes, and the first one that exceeds it."""
    worst = 0.0
    places = [
        (f"step {one.step}, read of table {name!r}", rows, one.reads[name], other.reads[name], name)
        for one, other in zip(eager.steps, lazy.steps, strict=True)
        for name, rows in one.rows.items()
    ]
    for name, table in eager.final_tables.items():
        every = np.arange(len(table))
        places.append((f"release, table {name!r}", every, table, lazy.final_tables[name], name))
    for place, rows, expected, found, name in places:
        gap = np.abs(expected.astype(np.float64) - found.astype(np.float64))
        share = gap / bounds[name][rows][:, None]
        if not (share <= 1).all():  # a NaN is a difference too
            i, dim = (int(k) for k in np.argwhere(~(share <= 1))[0])
            return float("inf"), Disagreement(
                f"{place}, row {rows[i]}, dimension {dim}",
                f"{expected[i, dim]!s} +- {bounds[name][rows[i]]:.3g}",
                f"{found[i, dim]!s}, off by {gap[i, dim]:.3g}",
            )
        worst = max(worst, float(share.max(initial=0.0)))
    return worst, None


def _maps(
    place: str,
    what: str,
    expected: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    compared: Compared,
    rows: Mapping[str, np.ndarray] | None = None,
) -> Iterator[Disagreement]:
    """Differences between two maps of arrays; an array without elements is the same as none."""
    one = {name: array for name, array in expected.items() if array.size}
    other = {name: array for name, array in found.items() if array.size}
    for name in sorted(one.keys() | other.keys()):
        where = place.format(repr(name))
        if name not in one or name not in other:
            yield Disagreement(where, "present" if name in one else "absent", "present" if name in other else "absent")
            continue
        compared.add(what, one[name].size)
        wrong = first_difference(one[name], other[name], where, None if rows is None else rows[name])
        if wrong is not None:
            yield wrong


def first_difference(
    expected: np.ndarray, found: np.ndarray, where: str, rows: np.ndarray | None = None
) -> Disagreement | None:
    """The first element whose bits differ, with its row and dimension, or None."""
    if expected.dtype != found.dtype or expected.shape != found.shape:
        return Disagreement(where, f"{expected.dtype} {expected.shape}", f"{found.dtype} {found.shape}")
    width = np.dtype(f"u{expected.dtype.itemsize}")
    differs = np.ascontiguousarray(expected).view(width) != np.ascontiguousarray(found).view(width)
    if not differs.any():
        return None
    index = tuple(int(k) for k in np.argwhere(differs)[0])
    labels = list(index)
    if rows is not None and labels:
        labels[0] = int(rows[labels[0]])
    place = f"row {labels[0]}, dimension {labels[1]}" if len(labels) == 2 else f"element {labels}"
    return Disagreement(
        f"{where}, {place}",
        _bits(expected[index], width),
        f"{_bits(found[index], width)} ({int(differs.sum())} differ)",
    )


def _bits(value: np.generic, width: np.dtype[np.generic]) -> str:
    """A float as its value and bits; an integer as itself."""
    if np.issubdtype(value.dtype, np.floating):
        return f"{value!s} (bits {int(value.view(width)):0{2 * width.itemsize}x})"
    return str(value)


def _scope(transcript: Transcript) -> str:
    return (
        f"{len(transcript.steps)} steps ({sum(r.examples == 0 for r in transcript.steps)} with an empty batch), "
        f"{len(transcript.initial_tables)} tables, {len(transcript.initial_dense)} dense parameters"
    )
