"""The fault matrix for people: a table on the terminal, and the page docs/faults-matrix.md."""

from __future__ import annotations

from collections.abc import Iterator

from samelaw.contract.evidence import Verdict
from samelaw.equivalence.faults import FAULTS, Kind, catalogue_digest
from samelaw.equivalence.matrix import COLUMNS, STAYS, Finding, Matrix, Row, unexplained, whole

_SHORT = {column: column.replace(" with key", "k") for column in COLUMNS}
_CAUGHT, _PASSED = "X", "·"


def terminal(matrix: Matrix) -> Iterator[str]:
    """Lines of the table: a fault and mode a line, a claim a column, then what each claim refuses alone."""
    asked = _asked(matrix)
    names = max([len(row.fault or "no fault") for row in matrix.rows], default=8)
    head = "  ".join(_SHORT[column] for column in asked)
    yield f"{'fault':<{names}}  {'mode':<9}  {head}  outcome"
    for row in matrix.rows:
        marks = "  ".join(f"{_mark(row.findings.get(column)):<{len(_SHORT[column])}}" for column in asked)
        yield f"{row.fault or 'no fault':<{names}}  {row.mode:<9}  {marks}  {_outcome(row)}"
    yield ""
    yield f"{_CAUGHT} refuses it, {_PASSED} does not, blank: not asked. A column ending in k recomputes with the key."
    if matrix.quick:
        yield "Quick: one mode a fault, and of each fault the claims that it names; a clean row is asked everything."
        return
    for column, faults in matrix.alone().items():
        if faults:
            yield f"{column} alone refuses {len(faults)}: {', '.join(faults)}"
    if whole(matrix):
        for column in unexplained(matrix):
            yield f"{column} refuses nothing alone and says nothing of why it stays"


def page(matrix: Matrix) -> str:
    """docs/faults-matrix.md."""
    lines = [
        "# The fault matrix",
        "",
        "Made by `make faults`; do not edit. [The fault catalogue](faults.md) explains how to read it.",
        "",
        f"Catalogue `{catalogue_digest()}`, seed {matrix.seed}: {len({row.fault for row in matrix.planted})} faults in "
        f"{len(matrix.planted)} trials, and {len(matrix.rows) - len(matrix.planted)} runs without a fault.",
        "",
    ]
    asked = _asked(matrix)
    lines += ["## No fault", "", *_table([row for row in matrix.rows if row.fault is None], asked)]
    for kind in Kind:
        rows = [row for row in matrix.planted if FAULTS[row.fault or ""].kind is kind]
        if rows:
            lines += ["", f"## {kind.capitalize()}", "", *_table(rows, asked)]
    lines += ["", "## What each claim alone refuses", "", "| claim | faults that no other claim refuses |", "|---|---|"]
    for column, faults in matrix.alone().items():
        if column in asked:
            lines.append(f"| {column} | {_alone(column, faults)} |")
    return "\n".join(lines) + "\n"


def _alone(column: str, faults: list[str]) -> str:
    if faults:
        return ", ".join(f"`{fault.partition(' ')[0]}` {fault.partition(' ')[2]}" for fault in faults)
    return f"none. {STAYS.get(column, '')}".strip()


def _table(rows: list[Row], asked: list[str]) -> Iterator[str]:
    yield f"| fault | mode | {' | '.join(_SHORT[column] for column in asked)} | first | values looked at |"
    yield f"|---|---|{':-:|' * len(asked)}---|--:|"
    for row in rows:
        marks = " | ".join(_mark(row.findings.get(column)) for column in asked)
        first = row.caught_by[0] if row.caught_by else str(row.outcome)
        samples = f"{row.findings[row.caught_by[0]].samples:,}" if row.caught_by else ""
        name = f"`{row.fault}`" if row.fault else f"none ({row.scenario})"
        yield f"| {name} | {row.mode} | {marks} | {first} | {samples} |"


def _asked(matrix: Matrix) -> list[str]:
    return [column for column in COLUMNS if any(column in row.findings for row in matrix.rows)]


def _mark(finding: Finding | None) -> str:
    if finding is None or finding.verdict is Verdict.NOT_ASSESSED:
        return " "
    return _CAUGHT if finding.refuses else _PASSED


def _outcome(row: Row) -> str:
    if not row.caught_by:
        return str(row.outcome)
    first = row.caught_by[0]
    said = f"{row.outcome}, first by {first} ({row.findings[first].samples:,} values)"
    return said + (f"; named and silent: {', '.join(row.missed)}" if row.missed else "")
