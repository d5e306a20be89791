"""One audit: every check on one run folder, in the order of the report."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from samelaw.accounting.statement import PrivacyStatement
from samelaw.audit.findings import Finding, Verdict, finding, not_assessed, outcome
from samelaw.audit.folder import LARGEST_WEIGHTS, RunFolder
from samelaw.audit.integrity import check_integrity
from samelaw.audit.noise_totals import NoiseTotals
from samelaw.audit.observers import Binding, Norms, Sampling
from samelaw.audit.reaccounting import check_price
from samelaw.audit.replay import Replay, checked_steps, most_wrong, normals_needed, sampled_rows
from samelaw.audit.structure import check_structure, check_two_runs
from samelaw.contract.errors import InputError
from samelaw.contract.noise import NoiseKey, NoiseStream
from samelaw.contract.spec import PrivacySpec
from samelaw.contract.transcript import TranscriptReader

BUDGET = 3e8
"""Normals (and sampler words) that are drawn before a random sample is executed in place of the whole."""


class Rows(StrEnum):
    """How much is executed again."""

    ALL = "all"
    SAMPLE = "sample"


@dataclass(frozen=True)
class Request:
    """What the reviewer asks for.

    Attributes:
        key: the escrowed key, if it was handed over.
        transcript: where the transcript lies, if it was.
        rows: how much to execute again; None lets the cost decide, and makes replay optional.
        confidence: of what a sample says, in (0, 1).
        other: a second run folder, to look for shared noise.
        budget: see BUDGET.
        sample_rows: rows of a sample; by default what the budget buys.
        largest_weights: weight files of more bytes are refused.
    """

    key: NoiseKey | None = None
    transcript: Path | None = None
    rows: Rows | None = None
    confidence: float = 0.95
    other: Path | None = None
    budget: float = BUDGET
    sample_rows: int | None = None
    largest_weights: int = LARGEST_WEIGHTS

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise InputError(f"confidence must be in (0, 1), got {self.confidence!r}")
        if self.sample_rows is not None and self.sample_rows < 1:
            raise InputError(f"a sample must have >= 1 rows, got {self.sample_rows}")


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        findings: one a check, in the order of the report.
        statement: the auditor's own privacy statement; None if the ledger cannot be priced.
        opened: data of the ledger's opening entry.
        manifest: as it lies in the folder; nothing in it is vouched for.
        given: what the reviewer had beside the folder.
    """

    findings: tuple[Finding, ...]
    statement: PrivacyStatement | None
    opened: dict[str, Any]
    manifest: dict[str, Any]
    given: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        return outcome(self.findings)


def audit(path: str | Path, request: Request | None = None, *, rng: np.random.Generator | None = None) -> Audit:
    """Audit a run folder.

    Args:
        path: the folder. Nothing in it is believed, executed or written to.
        request: what else there is.
        rng: chooses samples; from the operating system by default, so that whoever made the folder cannot know them.

    Raises:
        UntrustedFileError: something cannot be read at all, or changed while it was read.
    """
    request = request or Request()
    rng = rng or np.random.default_rng()
    with ExitStack() as stack:
        folder = stack.enter_context(RunFolder.open(path, largest_weights=request.largest_weights))
        reader = None if request.transcript is None else stack.enter_context(TranscriptReader(request.transcript))
        integrity = check_integrity(folder, None if reader is None else reader.schedule)
        findings, spec = list(integrity.findings), integrity.spec
        findings = [_with_key(f, folder, request.key) if f.check == "K1" else f for f in findings]
        priced = check_price(folder)
        findings.append(priced.finding)
        findings += _executed_again(folder, reader, spec, request, rng, findings)
        findings += _structure(folder, spec, findings)
        if request.other is not None:
            other = stack.enter_context(RunFolder.open(request.other, largest_weights=request.largest_weights))
            findings.append(check_two_runs(folder, other, (spec, check_integrity(other, None).spec)))
        folder.check_unchanged()
        if reader is not None:
            reader.check_unchanged()
    given = [name for name, there in (("key", request.key), ("transcript", request.transcript)) if there is not None]
    ordered = sorted(findings, key=lambda f: ("IKARS".index(f.check[0]), f.check))
    return Audit(tuple(ordered), priced.statement, folder.opened, folder.manifest, tuple(given))


def _with_key(origin: Finding, folder: RunFolder, key: NoiseKey | None) -> Finding:
    """K1 with the escrowed key in hand."""
    if key is None or not folder.opened or origin.verdict is Verdict.REFUTED:
        return origin
    if key.commitment() != folder.opened["key_commitment"]:
        said = (
            "The key given is not the one that the ledger commits to: it is another run's, or this run's noise was not "
            "drawn from the key in escrow."
        )
        return finding("K1", Verdict.REFUTED, said)
    return finding(
        "K1",
        Verdict.NOT_REFUTED,
        "The key given is the one that the ledger commits to. That it was random and stayed secret cannot be seen.",
        detectable=origin.detectable,
    )


def _refuted(findings: list[Finding], *checks: str) -> bool:
    return any(f.check in checks and f.verdict is not Verdict.PROVED for f in findings)


def _structure(folder: RunFolder, spec: PrivacySpec | None, findings: list[Finding]) -> list[Finding]:
    if _refuted(findings, "I6"):
        why = "The weights are not those of the ledger's model."
        return [not_assessed("S1", why, required=True), *(not_assessed(c, why) for c in ("S2", "S3"))]
    return check_structure(folder, spec)


def _executed_again(
    folder: RunFolder,
    reader: TranscriptReader | None,
    spec: PrivacySpec | None,
    request: Request,
    rng: np.random.Generator,
    findings: list[Finding],
) -> list[Finding]:
    """R1 to R5 and S4: everything that takes the transcript, in one reading of it."""
    required = request.rows is not None or request.transcript is not None
    missing = _missing(folder, reader, spec, findings)
    if missing is not None or reader is None or spec is None:
        why = missing or ""
        return [not_assessed(check, why, required=required) for check in ("R1", "R2", "R3", "R4", "R5", "S4")]
    key = request.key if request.key is not None and not _is_wrong(findings) else None
    total = sum(size[0] for size in folder.opened["tables"].values())
    count = _rows_to_execute(folder, spec, request, total)
    chosen = sampled_rows(folder, count, rng)
    binding, norms, noise = Binding(folder, reader), Norms(spec), NoiseTotals(folder, spec, chosen)
    stream = None if key is None else NoiseStream(key, spec.rounds)
    replay = None if stream is None else Replay(folder, spec, stream, chosen)
    observers: list[Callable[[Any], None]] = [binding.step, norms.step, noise.step]
    if replay is not None:
        observers.append(replay.step)
    steps = 0
    account = folder.account
    assert account is not None
    for record in checked_steps(reader.steps(), folder):
        if steps >= len(account.steps):
            said = "The transcript has more steps than the ledger."
            refuted = finding("R1", Verdict.REFUTED, said)
            return [refuted, *(not_assessed(c, said, required=required) for c in ("R2", "R3", "R4", "R5", "S4"))]
        for observe in observers:
            observe(record)
        steps += 1
    found = [binding.finding(steps), norms.finding(), noise.finding()]
    if stream is None or replay is None:
        why = "The key was not given." if request.key is None else "The key given is not this run's."
        return [*found, *(not_assessed(c, why, required=required) for c in ("R2", "R3", "R4"))]
    found.append(Sampling(folder, spec, stream, rng, request.budget).finding(request.confidence))
    return [*found, *_compared(replay, folder, request, total)]


def _missing(
    folder: RunFolder, reader: TranscriptReader | None, spec: PrivacySpec | None, findings: list[Finding]
) -> str | None:
    """Why nothing can be executed again, if so."""
    if reader is None:
        return "No transcript was given."
    if spec is None:
        return "The law of the run could not be rebuilt."
    if folder.initial is None:
        return "The folder holds no initial weights to start from."
    if _refuted(findings, "I6"):
        return "The weights are not those of the ledger's model."
    return None


def _is_wrong(findings: list[Finding]) -> bool:
    """Whether the key given is another run's."""
    return any(f.check == "K1" and f.said.startswith("The key given is not") for f in findings)


def _rows_to_execute(folder: RunFolder, spec: PrivacySpec, request: Request, total: int) -> int:
    affordable = max(1, min(total, int(total * request.budget / max(1.0, normals_needed(folder, spec, total)))))
    if request.rows is Rows.ALL:
        return total
    if request.rows is Rows.SAMPLE or request.sample_rows is not None:
        return min(total, request.sample_rows or min(affordable, max(1, math.ceil(total / 10))))
    return affordable


def _compared(replay: Replay, folder: RunFolder, request: Request, total: int) -> list[Finding]:
    """R3 and R4."""
    found = replay.differences()
    tables = len(folder.opened["tables"])
    if found.rows:
        wrong, first = sum(map(len, found.rows.values())), {name: rows[:5] for name, rows in found.rows.items()}
        rows = finding(
            "R3",
            Verdict.REFUTED,
            "Rows that were executed again were released with other weights.",
            private={"rows": wrong, "of": found.compared, "first_rows": first},
        )
    elif found.compared == total:
        rows = finding("R3", Verdict.PROVED, f"All {total} rows of {tables} tables were executed again, to the bit.")
    else:
        left = most_wrong(total, found.compared, request.confidence)
        rows = finding(
            "R3",
            Verdict.NOT_REFUTED,
            f"{found.compared} of {total} rows, chosen at random, were executed again and agree to the bit.",
            detectable=f"more than {left} wrong rows, at confidence {request.confidence:g}",
        )
    names = folder.opened["dense"]
    if not names:
        return [rows, not_assessed("R4", "The model has no dense parameters.")]
    if found.parameters:
        said = "Dense parameters that were executed again were released with other values."
        return [rows, finding("R4", Verdict.REFUTED, said, private={"parameters": found.parameters})]
    return [rows, finding("R4", Verdict.PROVED, f"All {len(names)} dense parameters were executed again, to the bit.")]
