"""What a transcript is held against, step by step, while it is read once from end to end."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from samelaw.audit.findings import Finding, Verdict, finding, not_assessed
from samelaw.audit.folder import RunFolder
from samelaw.audit.replay import most_wrong
from samelaw.contract.noise import NoiseStream
from samelaw.contract.spec import PrivacySpec
from samelaw.contract.transcript import RecordedStep, TranscriptReader
from samelaw.equivalence.laws import FALSE_ALARM
from samelaw.reference.sampling import poisson_sample


class Binding:
    """R1: the transcript is of this run, step by step and at both ends."""

    def __init__(self, folder: RunFolder, reader: TranscriptReader) -> None:
        self._problems: list[str] = []
        self._reader, self._folder = reader, folder
        self._charged: dict[int, set[str]] = {}
        for entry in folder.entries:
            if entry.event == "step":
                self._charged.setdefault(entry.data["step"], set()).add(entry.hash)
        assert folder.account is not None
        self._examples = [step["examples"] for step in folder.account.steps]
        if reader.opened != folder.opened:
            self._problems.append("It opens with another law, key or model than the ledger.")

    def step(self, record: RecordedStep) -> None:
        if record.entry not in self._charged.get(record.step, ()):
            self._note("A step was not charged for by this ledger.")
        elif record.examples != self._examples[record.step]:
            self._note("A step drew another number of examples than the ledger says.")
        if record.examples == 0 and any(rows.size for rows in record.rows.values()):
            self._note("A step without examples has gradients.")

    def finding(self, steps: int) -> Finding:
        reader, stated = self._reader, self._folder.manifest.get("transcript")
        if steps != len(self._examples):
            self._note("It has another number of steps than the ledger.")
        releases = [entry.hash for entry in self._folder.entries if entry.event == "release"]
        if reader.release not in releases:
            self._note("It ends in another release than the ledger's.")
        if stated is None:
            self._note("The manifest names no transcript, so nothing shows that this one was recorded then.")
        elif stated != {"head": reader.head, "frames": reader.frames}:
            self._note("It is not the transcript that the manifest names.")
        if self._problems:
            return finding("R1", Verdict.REFUTED, "The transcript is not of this run. " + " ".join(self._problems))
        return finding("R1", Verdict.PROVED, "The transcript is the one that the manifest names, step by step.")

    def _note(self, problem: str) -> None:
        if problem not in self._problems:
            self._problems.append(problem)


class Sampling:
    """R2: the keyed sampler, executed again, draws the numbers of examples that the ledger charges for.

    Args:
        budget: words that may be drawn; with more examples times steps, a random choice of steps is executed.
    """

    def __init__(
        self, folder: RunFolder, spec: PrivacySpec, stream: NoiseStream, rng: np.random.Generator, budget: float
    ) -> None:
        assert folder.account is not None
        self._account, self._spec, self._stream = folder.account, spec, stream
        self._total = len(folder.account.steps)
        self._affordable = int(budget / folder.opened["examples"])
        self._few = max(1, min(self._total, self._affordable))
        self._chosen = sorted(rng.choice(self._total, self._few, replace=False).tolist()) if self._total else []

    def finding(self, confidence: float) -> Finding:
        examples, rate = self._account.opened["examples"], self._spec.sampling_rate
        sizes = np.array([step["examples"] for step in self._account.steps], dtype=np.float64)
        # Chernoff: P(a batch at least this far from its mean) <= exp(-examples * divergence), on either side.
        unlikely = examples * _divergence(sizes / examples, rate) > math.log(max(1, self._total) / FALSE_ALARM)
        if unlikely.any():
            said = "A batch has a size that the sampler at the law's rate cannot be expected to draw."
            return finding("R2", Verdict.REFUTED, said, private={"steps": np.flatnonzero(unlikely)[:20].tolist()})
        if not self._affordable:
            return not_assessed(
                "R2", "There are more examples than the sampler can be executed again for.", required=True
            )
        wrong = [
            step
            for step in self._chosen
            if poisson_sample(self._stream, step, self._spec.sampling_rate, self._account.opened["examples"]).size
            != self._account.steps[step]["examples"]
        ]
        if wrong:
            said = "A batch does not have the size that the keyed sampler draws, so it was not drawn by it."
            return finding("R2", Verdict.REFUTED, said, private={"steps": wrong[:20]})
        if not self._chosen:
            return not_assessed("R2", "No step was made.")
        if self._few == self._total:
            return finding("R2", Verdict.PROVED, f"The sampler was executed again for all {self._total} steps.")
        return finding(
            "R2",
            Verdict.NOT_REFUTED,
            f"The sampler was executed again for {self._few} of {self._total} steps, chosen at random.",
            detectable=f"more than {most_wrong(self._total, self._few, confidence)} wrong steps, "
            f"at confidence {confidence:g}",
        )


def _divergence(seen: np.ndarray, rate: float) -> np.ndarray:
    """Relative entropy of two coins, in nats; infinite where the second never shows what the first does."""
    return special.rel_entr(seen, rate) + special.rel_entr(1 - seen, 1 - rate)


class Norms:
    """R5: n examples clipped at C sum up to at most n C, tables and dense parameters together.

    The grid's own bound is in integers; the dense part is float32, rounded once from an exact sum. The clip target
    stays 2^-20 below C, which covers that rounding.
    """

    def __init__(self, spec: PrivacySpec) -> None:
        self._spec = spec
        self.largest = 0.0
        self._over: list[int] = []

    def step(self, record: RecordedStep) -> None:
        square = sum(float((s.astype(np.float64) ** 2).sum()) for s in record.sums.values())
        square = math.ldexp(square, 2 * self._spec.contribution_exponent)
        square += sum(float((d.astype(np.float64) ** 2).sum()) for d in record.dense_sum.values())
        bound = record.examples * self._spec.clip_norm
        ratio = math.sqrt(square) / bound if bound > 0 else math.inf if square > 0 else 0.0
        self.largest = max(self.largest, ratio)
        if ratio > 1 + 2.0**-20:
            self._over.append(record.step)

    def finding(self) -> Finding:
        private = {"largest_sum_over_bound": self.largest, "steps_over": self._over[:20]}
        if self._over:
            said = "A gradient sum is larger than its examples, each clipped at C, could make it."
            return finding("R5", Verdict.REFUTED, said, private=private)
        return finding(
            "R5",
            Verdict.NOT_REFUTED,
            "Every recorded sum is within what its number of examples allows. This bounds no single example: only the "
            "training data could show that each was clipped.",
            detectable="examples so much alike, and so much larger than C, that their sum exceeds the bound",
            private=private,
        )
