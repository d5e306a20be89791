"""Claim C1: from the values that a step read, the definition computes the sums that the step used."""

from __future__ import annotations

from collections.abc import Callable

from samelaw.contract.evidence import Evidence, Verdict
from samelaw.contract.run import StepRecord, Transcript
from samelaw.contract.trace import GradientSums
from samelaw.equivalence.exact import Compared, differences

C1 = "Every step's clipped sums are those that the definition computes from the settled rows that the step read."


def same_reads(
    transcript: Transcript, definition: Callable[[StepRecord], GradientSums], *, scope: str = ""
) -> Evidence:
    """C1: every step by itself, to the bit.

    E1 follows a twin through the whole run, which only replay allows. Here the definition starts each step at the rows
    and parameters that the trainer had, so clipping and the order of reading and paying are compared exactly in every
    mode.

    Args:
        transcript: of the run.
        definition: a step's record -> the clipped sums, by the definition, of that step's batch at the reads of the
            record.

    Returns:
        EQUAL, or REFUTED with the first value that differs.
    """
    expected = Transcript(transcript.initial_tables, transcript.initial_dense)
    expected.final_tables, expected.final_dense = transcript.final_tables, transcript.final_dense
    for record in transcript.steps:
        found = definition(record)
        expected.steps.append(
            StepRecord(
                record.step, record.examples, found.rows, record.reads, found.sums, dict(found.dense), record.loss
            )
        )
    compared = Compared()
    wrong = next(differences(expected, transcript, compared), None)
    sums = {what: n for what, n in compared.counts.items() if what in ("row ids", "gradient sums", "dense sums")}
    scope = scope or f"{len(transcript.steps)} steps"
    numbers = {"compared": sums}
    if wrong is not None:
        return Evidence("C1", C1, Verdict.REFUTED, f"A step used other sums: {wrong}.", scope, wrong, (), numbers)
    if not sums:
        return Evidence("C1", C1, Verdict.NOT_ASSESSED, "No step had a gradient.", scope, None, (), numbers)
    said = ", ".join(f"{n:,} {what}" for what, n in sums.items())
    return Evidence("C1", C1, Verdict.EQUAL, f"No bit differs in {said}.", scope, None, (), numbers)
