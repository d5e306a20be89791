"""The fault matrix: which claims refuse which faults, and what each claim alone refuses.

A trial is one fault in one mode, or no fault; its evidence comes from real trainers (cli/bench_runs.py). Judging it
needs no trainer, so it is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from samelaw.contract.errors import InputError
from samelaw.contract.evidence import Evidence, Verdict
from samelaw.contract.spec import Mode
from samelaw.equivalence.faults import FAULTS, WITH_KEY, Fault, Scenario, catalogue_digest

SCHEMA = "samelaw.fault_matrix/1"
COLUMNS = (
    "E1", "E2", "L1", WITH_KEY, "S1", "S2", "C1", "R1", "P1", "P1 with key", "A1", "A2", "N1", "N2", "K1",
)  # fmt: skip
_KEYED = "recomputed with the key"

STAYS: Mapping[str, str] = {
    "S1": "It needs neither twin nor transcript nor key: a trainer's probe is enough, and it states the bound that "
    "the accountant uses. C1 refuses the same faults with the definition beside it.",
    "S2": "It is the sensitivity that the accountant uses, word for word, and needs no definition of clipping beside "
    "it, as C1 does.",
    "R1": "It looks at the release and the ledger alone, and needs no record of the steps; what it refuses, E1, E2 or "
    "L1 refuse with a transcript.",
    "P1": "It needs no key: it is what can be asked of a sampler that draws by other means.",
    "P1 with key": "It compares thousands of batches that need not be trained on; A2 compares those that were.",
    "N1": "It names the bug in the generator, and runs on a machine or device where nothing has been trained yet.",
    "N2": "It needs no golden vectors: it can be asked of a keyed generator that is not this project's.",
}
"""Why a claim stays that refuses nothing alone."""


class Outcome(StrEnum):
    """What came of a trial."""

    CAUGHT = "caught"
    """Every claim that the fault names refuses it."""
    MISSED = "MISSED"
    """Some claim refuses it, but not all that it names."""
    ESCAPE = "ESCAPE"
    """No claim refuses it."""
    CLEAN = "clean"
    """No fault was planted, and nothing was refused."""
    FALSE_ALARM = "FALSE ALARM"
    """No fault was planted, and something was refused."""


@dataclass(frozen=True)
class Finding:
    """What one claim said in one trial.

    Attributes:
        verdict: of the claim, or of its part with or without the key.
        samples: how many values it looked at; where it refuses: until it did, or, for a test of law, the samples of
            the smallest test that refuses.
        where: the first disagreement.
    """

    verdict: Verdict
    samples: int
    where: str = ""

    @property
    def refuses(self) -> bool:
        return self.verdict is Verdict.REFUTED


@dataclass(frozen=True)
class Row:
    """One trial, judged.

    Attributes:
        fault: its name; None where nothing was planted.
        findings: column -> what that claim said; only claims that were asked.
        named: the columns that must refuse.
    """

    fault: str | None
    mode: Mode
    scenario: Scenario
    findings: Mapping[str, Finding]
    named: tuple[str, ...] = ()

    @property
    def caught_by(self) -> tuple[str, ...]:
        """Columns that refuse, the one that needed the fewest values first."""
        refusing = [column for column in COLUMNS if column in self.findings and self.findings[column].refuses]
        return tuple(sorted(refusing, key=lambda column: self.findings[column].samples))

    @property
    def missed(self) -> tuple[str, ...]:
        """Columns that were named and do not refuse."""
        return tuple(column for column in self.named if column not in self.caught_by)

    @property
    def outcome(self) -> Outcome:
        if self.fault is None:
            return Outcome.FALSE_ALARM if self.caught_by else Outcome.CLEAN
        if not self.caught_by:
            return Outcome.ESCAPE
        return Outcome.MISSED if self.missed else Outcome.CAUGHT

    @property
    def holds(self) -> bool:
        return self.outcome in (Outcome.CAUGHT, Outcome.CLEAN)


@dataclass(frozen=True)
class Matrix:
    """All trials of one call."""

    rows: tuple[Row, ...]
    seed: int
    quick: bool

    @property
    def holds(self) -> bool:
        """Whether nothing escaped and nothing was refused without a fault. An empty matrix holds nothing."""
        return bool(self.rows) and all(row.holds for row in self.rows)

    @property
    def planted(self) -> list[Row]:
        return [row for row in self.rows if row.fault is not None]

    def alone(self) -> dict[str, list[str]]:
        """Column -> faults, with the mode, that no other column refuses."""
        found: dict[str, list[str]] = {column: [] for column in COLUMNS}
        for row in self.planted:
            if len(row.caught_by) == 1:
                found[row.caught_by[0]].append(f"{row.fault} ({row.mode})")
        return found


def judge(fault: Fault | None, mode: Mode, scenario: Scenario, evidence: Iterable[Evidence]) -> Row:
    """One trial as a row.

    Raises:
        InputError: no evidence, or a claim that the matrix has no column for.
    """
    findings: dict[str, Finding] = {}
    for one in evidence:
        for column, finding in split(one).items():
            if column not in COLUMNS:
                raise InputError(f"the fault matrix has no column for claim {column!r}; add it to COLUMNS")
            findings[column] = finding
    if not findings:
        raise InputError(f"nothing was judged in the scenario {scenario!r}, so nothing can be said of a fault in it")
    return Row(fault.name if fault else None, mode, scenario, findings, fault.caught_by[mode] if fault else ())


def split(evidence: Evidence) -> dict[str, Finding]:
    """A claim's evidence by column: what was recomputed with the key stands apart from what the law alone says."""
    keyed = [test for test in evidence.tests if test.name.endswith(_KEYED)]
    others = [test for test in evidence.tests if not test.name.endswith(_KEYED)]
    where = str(evidence.first_disagreement or "")
    found: dict[str, Finding] = {}
    if keyed:
        refused = [test for test in keyed if test.verdict is Verdict.REFUTED]
        verdict = Verdict.REFUTED if refused else Verdict.EQUAL
        asked = [test for test in keyed if test.verdict is not Verdict.NOT_ASSESSED]
        if asked:
            samples = min(test.samples for test in refused or asked)
            found[f"{evidence.claim} with key"] = Finding(verdict, samples, where if refused else "")
    refused = [test for test in others if test.verdict is Verdict.REFUTED]
    refuted = evidence.verdict is Verdict.REFUTED
    # A claim can be refuted by a plain fact, beside its tests.
    by_fact = refuted and not refused and not any(finding.refuses for finding in found.values())
    if refused:
        found[evidence.claim] = Finding(Verdict.REFUTED, min(test.samples for test in refused), where)
    elif by_fact or not others:
        found[evidence.claim] = Finding(evidence.verdict, _looked_at(evidence), where)
    else:
        verdict = evidence.verdict if not refuted else Verdict.NOT_REFUTED
        found[evidence.claim] = Finding(verdict, sum(test.samples for test in others))
    return found


_COUNTS = ("examples", "pairs", "rows", "values", "blocks", "released_values", "steps", "spans")


def _looked_at(evidence: Evidence) -> int:
    """How many values a claim without tests of law compared."""
    compared = evidence.numbers.get("compared")
    if isinstance(compared, Mapping):
        return sum(int(n) for n in compared.values())
    for name in _COUNTS:
        if name in evidence.numbers:
            return int(evidence.numbers[name])
    return 0


def matrix_record(matrix: Matrix) -> dict[str, Any]:
    """fault-matrix.json."""
    return {
        "schema": SCHEMA,
        "catalogue": catalogue_digest(),
        "seed": matrix.seed,
        "quick": matrix.quick,
        "holds": matrix.holds,
        "claims": list(COLUMNS),
        "rows": [_row_record(row) for row in matrix.rows],
        "alone": matrix.alone(),
        "stays": dict(STAYS),
    }


def _row_record(row: Row) -> dict[str, Any]:
    return {
        "fault": row.fault,
        "mode": str(row.mode),
        "scenario": str(row.scenario),
        "outcome": str(row.outcome),
        "named": list(row.named),
        "caught_by": list(row.caught_by),
        "missed": list(row.missed),
        "first": row.caught_by[0] if row.caught_by else None,
        "samples": row.findings[row.caught_by[0]].samples if row.caught_by else None,
        "findings": {
            column: {"verdict": str(f.verdict), "samples": f.samples, "where": f.where}
            for column, f in row.findings.items()
        },
    }


def unexplained(matrix: Matrix) -> list[str]:
    """Columns that refuse nothing alone and do not say why they stay; for a matrix of the whole catalogue."""
    asked = {column for row in matrix.rows for column in row.findings}
    return [
        column for column, faults in matrix.alone().items() if column in asked and not faults and column not in STAYS
    ]


def whole(matrix: Matrix) -> bool:
    """Whether every fault of the catalogue was planted in every mode in which it is one."""
    planted = {(row.fault, row.mode) for row in matrix.planted}
    return planted == {(fault.name, mode) for fault in FAULTS.values() for mode in fault.modes}


def rows_of(matrix: Matrix, fault: str | None) -> Sequence[Row]:
    return [row for row in matrix.rows if row.fault == fault]
