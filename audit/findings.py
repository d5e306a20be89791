"""What an audit finds: one verdict a check, what may be said in public, and what may not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from samelaw.contract.evidence import TestResult
from samelaw.contract.evidence import Verdict as TestVerdict


class Verdict(StrEnum):
    """What may be said of a check. None says "private"."""

    PROVED = "PROVED"
    """Recomputed in full and found the same, to the bit."""
    EQUIVALENT = "EQUIVALENT"
    """The stated margin was concluded, at the stated error rate."""
    NOT_REFUTED = "NOT REFUTED"
    """Tested and not rejected; a gap of `detectable` would have been."""
    REFUTED = "REFUTED"
    NOT_ASSESSED = "NOT ASSESSED"


MEANINGS = {
    Verdict.PROVED: "recomputed in full from the folder (and the key and transcript, where named) and found the same",
    Verdict.EQUIVALENT: "shown to lie within the stated margin, at the stated error rate",
    Verdict.NOT_REFUTED: "tested and not rejected; a gap of the size given would have been",
    Verdict.REFUTED: "found to be wrong",
    Verdict.NOT_ASSESSED: "nothing is said: what it needs was not there, or there was too little of it",
}


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        check: its id, e.g. "I3".
        title: what it checks, in one sentence.
        verdict: what was found.
        said: one sentence, fit for everybody: no row, no drawn batch size, no count that depends on the data.
        detectable: for NOT REFUTED and EQUIVALENT, the smallest gap that would have been seen, in words.
        required: NOT ASSESSED leaves the audit inconclusive.
        private: what only the owner and the reviewer may see.
        tests: statistical tests behind the verdict; private as well where they come from a transcript.
    """

    check: str
    title: str
    verdict: Verdict
    said: str
    detectable: str = ""
    required: bool = True
    private: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tests: tuple[TestResult, ...] = ()


TITLES = {
    "I1": "The folder holds plain files, those that the manifest binds, and no others.",
    "I2": "The manifest has the shape of its schema.",
    "I3": "The ledger is one unbroken chain that tells of one run from its opening to its release.",
    "I4": "Every file has the digest that the manifest says, and the ledger ends where the manifest says.",
    "I5": "Manifest and ledger state one and the same law, and every step followed it.",
    "I6": "The released weights are those of the ledger's model, at the ledger's release, and finite.",
    "I7": "Every row was settled just before the release.",
    "K1": "The noise key was drawn at random and can be tied to this run.",
    "A1": "The ledger costs no more than the manifest promises.",
    "R1": "The transcript is that of this run.",
    "R2": "The batches were drawn by the keyed sampler: re-execution draws as many examples at each step.",
    "R3": "Released tables equal a re-execution from initial weights, recorded gradient sums and key, to the bit.",
    "R4": "Released dense parameters equal the same re-execution, to the bit.",
    "R5": "No recorded gradient sum is larger than its examples, each clipped at C, could make it.",
    "S1": "No row was released at its initial value.",
    "S2": "No two rows were released with the same change.",
    "S3": "Every row moved at least as far as the noise of the last step alone takes it.",
    "S4": "The noise that rows received has the std that the ledger charges for, however often a row was read.",
    "S5": "Two runs share neither key nor noise.",
    "S6": "The run's own evidence refutes nothing.",
}


def finding(check: str, verdict: Verdict, said: str, **more: Any) -> Finding:
    """A finding under its check's title."""
    return Finding(check, TITLES[check], verdict, said, **more)


def not_assessed(check: str, why: str, *, required: bool = False, **more: Any) -> Finding:
    return finding(check, Verdict.NOT_ASSESSED, why, required=required, **more)


def of_tests(tests: Sequence[TestResult], *, all_of_one: bool) -> Verdict:
    """The verdict of several tests of one statement.

    Args:
        all_of_one: whether "equivalent" may be said when the tests that can conclude it all do.
    """
    verdicts = {test.verdict for test in tests} - {TestVerdict.NOT_ASSESSED}
    if TestVerdict.REFUTED in verdicts:
        return Verdict.REFUTED
    if not verdicts:
        return Verdict.NOT_ASSESSED
    if all_of_one and TestVerdict.EQUIVALENT in verdicts:
        return Verdict.EQUIVALENT
    return Verdict.NOT_REFUTED


def outcome(findings: Sequence[Finding]) -> Verdict:
    """The audit's own: REFUTED if any is, NOT ASSESSED if anything required is, else NOT REFUTED."""
    if any(f.verdict is Verdict.REFUTED for f in findings):
        return Verdict.REFUTED
    if not findings or any(f.required and f.verdict is Verdict.NOT_ASSESSED for f in findings):
        return Verdict.NOT_ASSESSED
    return Verdict.NOT_REFUTED
