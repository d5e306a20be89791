"""Claim A2: ledger and price say what the run did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from samelaw.contract.evidence import Disagreement, Evidence, Verdict
from samelaw.contract.ledger import Spent
from samelaw.contract.run import Transcript
from samelaw.contract.spec import PrivacySpec

A2 = "The ledger and the price are those of the run: its steps, its batches as trained on, its sampler."
ROUNDING = 2.0**-20  # by which float32 scales may lower the multiplier that is priced (accounting.mechanism)


def recorded(
    account: Spent,
    transcript: Transcript,
    spec: PrivacySpec,
    *,
    batches: Sequence[np.ndarray],
    keyed: Callable[[int], np.ndarray],
    mechanism: Mapping[str, Any] | None = None,
    scope: str = "",
) -> Evidence:
    """A2: every step of the ledger against the step that was run, and what was priced against both.

    A1 holds the ledger against the law; a ledger that repeats the law and not the run passes it.

    Args:
        account: the resolved ledger.
        transcript: of the run.
        spec: its law.
        batches: indices of the examples that were trained on, a step.
        keyed: the indices that the key draws for a step.
        mechanism: what was priced ("sampling_rate", "noise_multiplier", "steps"); None if nothing was.

    Returns:
        EQUAL, or REFUTED with the first step that differs.
    """
    wrong = _steps_differ(account, transcript, batches, keyed)
    if wrong is None and mechanism is not None:
        wrong = _price_differs(mechanism, transcript, spec)
    scope = scope or f"{len(transcript.steps)} steps"
    numbers = {"steps": len(account.steps), "priced": mechanism is not None}
    if wrong is not None:
        return Evidence("A2", A2, Verdict.REFUTED, f"The books do not match: {wrong}.", scope, wrong, (), numbers)
    if not transcript.steps:
        return Evidence("A2", A2, Verdict.NOT_ASSESSED, "No step was run.", scope, None, (), numbers)
    books = "The ledger and its price agree" if mechanism is not None else "The ledger agrees"
    summary = f"{books} with {len(transcript.steps)} steps as they were run."
    return Evidence("A2", A2, Verdict.EQUAL, summary, scope, None, (), numbers)


def _steps_differ(
    account: Spent, transcript: Transcript, batches: Sequence[np.ndarray], keyed: Callable[[int], np.ndarray]
) -> Disagreement | None:
    if not len(account.steps) == len(transcript.steps) == len(batches):
        return Disagreement("the ledger", f"{len(transcript.steps)} steps", f"{len(account.steps)}")
    for entry, record, batch in zip(account.steps, transcript.steps, batches, strict=True):
        place = f"ledger, step {record.step}"
        if entry["examples"] != batch.size or record.examples != batch.size:
            return Disagreement(f"{place}, examples", str(batch.size), f"{entry['examples']}")
        drawn = np.array_equal(batch, keyed(record.step))
        if (entry["sampler"] == "keyed-poisson") and not drawn:
            return Disagreement(f"{place}, sampler", "a batch that the key draws", "another batch")
    return None


def _price_differs(mechanism: Mapping[str, Any], transcript: Transcript, spec: PrivacySpec) -> Disagreement | None:
    steps, sigma = len(transcript.steps), spec.noise_multiplier
    if mechanism["steps"] != steps:
        return Disagreement("what was priced, steps", str(steps), str(mechanism["steps"]))
    if mechanism["sampling_rate"] != spec.sampling_rate:
        rate = str(mechanism["sampling_rate"])
        return Disagreement("what was priced, sampling rate", str(spec.sampling_rate), rate)
    if not sigma * (1 - ROUNDING) <= mechanism["noise_multiplier"] <= sigma:
        found = str(mechanism["noise_multiplier"])
        return Disagreement("what was priced, noise multiplier", f"{sigma}, or less by rounding", found)
    return None
