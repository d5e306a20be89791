"""Claim L1: the noise that every row and every dense parameter received follows its known law.

One transcript of a closed-loop run is enough: no twin is needed, because the law is known (docs/arithmetic.md) and the
noise can be read off the transcript (spans.py). In aggregate mode this is the claim; in replay and bridge it is a
second, independent look at what E1 and E2 compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samelaw.contract.evidence import Disagreement, Evidence, TestResult, Verdict
from samelaw.contract.run import Transcript
from samelaw.contract.spec import Mode, PrivacySpec
from samelaw.equivalence import laws
from samelaw.equivalence.budget import Budget
from samelaw.equivalence.laws import Measured, check_rate
from samelaw.equivalence.noise_tests import measure_noise
from samelaw.equivalence.received import Received, figures, receive
from samelaw.equivalence.recomputed import Found, Normals, recomputed_dense, recomputed_tables
from samelaw.equivalence.spans import unpaid_changes, variance

TITLE = "The noise that each row and dense parameter received follows the law that the accountant prices."
MARGIN = 0.01


@dataclass(frozen=True, repr=False)
class MeasuredLaw:
    """Claim L1 of one run, measured: it waits for its share of the suite's error budget.

    Attributes:
        tests: how many tests will spend that share.
    """

    received: Received
    spec: PrivacySpec
    measured: Sequence[Measured]
    exact: Sequence[Found]
    wrong: Disagreement | None
    margin: float
    false_pass: float
    claim: str
    scope: str

    @property
    def tests(self) -> int:
        return sum(test.p_value is not None for test in self.measured)

    def conclude(self, share: float) -> Evidence:
        """The evidence, every test judged at this false-alarm rate."""
        tests = [test.at(share, self.false_pass) for test in self.measured]
        wrong = self.wrong
        for test, place in self.exact:
            tests.append(test)
            wrong = wrong or place
        refuted = [test for test in tests if test.verdict is Verdict.REFUTED]
        if wrong is None and refuted:
            wrong = _locate(refuted[0], self.received, self.spec)
        verdict = _verdict(tests, wrong, self.received)
        return Evidence(
            self.claim,
            TITLE,
            verdict,
            _summary(verdict, tests, refuted, wrong, self.received),
            self.scope,
            wrong,
            tuple(tests),
            figures(self.received, self.spec, self.margin, share * self.tests, self.false_pass),
        )

    def __repr__(self) -> str:
        return f"MeasuredLaw({self.scope!r}, tests={self.tests})"


def measure(
    transcript: Transcript,
    spec: PrivacySpec,
    *,
    padding: Mapping[str, int] | None = None,
    normals: Normals | None = None,
    restarts: Sequence[int] = (),
    margin: float = MARGIN,
    false_pass: float = laws.FALSE_PASS,
    claim: str = "L1",
    scope: str = "",
) -> MeasuredLaw:
    """Measure all noise of a run against its law; see `aggregate`, which also judges it.

    Raises:
        InputError: a rate is not in (0, 0.5], or the margin not > 0.
    """
    check_rate("false_pass", false_pass, f"claim {claim}")
    laws.check_margin(margin, f"claim {claim}")
    padding = padding or {}
    received = receive(transcript, spec, padding)
    return MeasuredLaw(
        received,
        spec,
        measure_noise(received, spec, margin=margin, restarts=restarts),
        _recomputed(transcript, received, spec, normals),
        _first_unlawful_change(transcript, received, spec, padding),
        margin,
        false_pass,
        claim,
        scope or f"{spec.mode} mode, {len(transcript.steps)} steps, {len(received.spans)} tables",
    )


def aggregate(
    transcript: Transcript,
    spec: PrivacySpec,
    *,
    padding: Mapping[str, int] | None = None,
    normals: Normals | None = None,
    restarts: Sequence[int] = (),
    margin: float = MARGIN,
    false_alarm: float = laws.FALSE_ALARM,
    false_pass: float = laws.FALSE_PASS,
    claim: str = "L1",
    scope: str = "",
) -> Evidence:
    """Test all noise of a run against its law, touched and idle spans apart.

    Args:
        transcript: of a released run of a lazy trainer, any mode; or of the eager one in replay mode. Each span is
            judged from its own two ends, and taken to have been paid with the roundings of its mode (eager steps in
            aggregate or bridge mode round more often).
        spec: the law of the run.
        padding: table -> its padding row, which must not change at all.
        normals: with the key, dense parameters and (in aggregate mode) every settlement are also recomputed to the
            bit. Only for a run in which no row was read outside the recorded steps.
        restarts: steps at which the run was taken up from a checkpoint; noise is compared across each.
        margin: what the equivalence test of scale concludes, in ln std.
        false_alarm: for all tests of this call together, by Holm. A suite of several claims shares one Budget instead.
        false_pass: of each test, at its detectable gap; also of the equivalence test, at `margin`.
        scope: workload and mode in the report's words.

    Returns:
        EQUIVALENT if nothing is refuted and the scale of touched rows, of idle rows and of the dense part was
        concluded to be within the margin (the dense part: or recomputed to the bit); NOT REFUTED if nothing is refuted.

    Raises:
        InputError: a rate is not in (0, 0.5], or the margin not > 0.
    """
    waiting = measure(
        transcript, spec, padding=padding, normals=normals, restarts=restarts, margin=margin, false_pass=false_pass,
        claim=claim, scope=scope,
    )  # fmt: skip
    return Budget(false_alarm).conclude([waiting])[0]


def _recomputed(transcript: Transcript, received: Received, spec: PrivacySpec, normals: Normals | None) -> list[Found]:
    """What the key makes certain."""
    found: list[Found] = []
    if normals is not None and spec.mode is Mode.AGGREGATE:
        found.append(recomputed_tables(received.spans, spec, normals))
    if normals is not None and transcript.initial_dense:
        found.append(recomputed_dense(transcript, spec, normals))
    return found


def _first_unlawful_change(
    transcript: Transcript, received: Received, spec: PrivacySpec, padding: Mapping[str, int]
) -> Disagreement | None:
    """A padding row that changed, or a row that changed while it owed nothing."""
    for name, row in padding.items():
        start, end = transcript.initial_tables[name][row], transcript.final_tables[name][row]
        if not laws.unchanged_rows(start[None], end[None])[0]:
            return Disagreement(f"table {name!r}, padding row {row}", f"{start[0]!r} throughout", f"{end[0]!r}")
    for name, spans in received.spans.items():
        changed = unpaid_changes(spans, spec.clock)
        if len(changed):
            dim = int(np.flatnonzero(changed.before[0] != changed.after[0])[0])
            return Disagreement(
                f"table {name!r}, row {changed.row[0]}, dimension {dim}, at step {changed.until[0]}, owing nothing",
                f"{changed.before[0, dim]!r}, unchanged",
                f"{changed.after[0, dim]!r}",
            )
    return None


def _locate(test: TestResult, received: Received, spec: PrivacySpec) -> Disagreement:
    """The first span whose noise is implausible by itself, else the refuted test as a whole."""
    first: tuple[int, str, int, bool] | None = None
    for kind, tables in received.kinds().items():
        if kind not in test.name and "row" in test.name:
            continue
        for name, noise in tables.items():
            dim = noise.samples.shape[1]
            low, high = laws.std_limits(dim, 1e-9)
            rms = np.sqrt((noise.samples**2).mean(axis=1)) if dim else np.empty(0)
            for i in np.flatnonzero(~((rms >= low) & (rms <= high)))[:1]:
                here = (int(noise.spans.until[i]), name, int(i), kind == "idle rows")
                first = here if first is None or here[0] < first[0] else first
    if first is None:
        return Disagreement(
            test.name, f"at most {test.threshold:.6g} ({test.gap})", f"{test.statistic:.6g}; {test.note}"
        )
    _, name, i, idle = first
    noise = (received.idle if idle else received.touched)[name]
    span = noise.spans.take(np.array([i]))
    std = float(spec.clock.std(variance(span, spec.clock))[0])
    rms = float(np.sqrt((noise.samples[i] ** 2).mean())) * std
    end = "release" if idle else f"its read at step {span.until[0]}"
    return Disagreement(
        f"table {name!r}, row {span.row[0]}, steps {span.since[0]}..{span.until[0] - 1}, paid by {end}",
        f"noise of std {std:.6g} in each dimension",
        f"root mean square {rms:.6g}",
    )


def _verdict(tests: list[TestResult], wrong: Disagreement | None, received: Received) -> Verdict:
    if wrong is not None or any(test.verdict is Verdict.REFUTED for test in tests):
        return Verdict.REFUTED
    by_name = {test.name: test.verdict for test in tests}
    scales = [by_name[f"scale, {kind}"] for kind in received.kinds()]
    if all(verdict is Verdict.NOT_ASSESSED for verdict in scales):
        return Verdict.NOT_ASSESSED
    dense = (
        not received.dense
        or by_name.get("dense parameters, recomputed with the key") is Verdict.EQUAL
        or by_name["scale, dense parameters"] is Verdict.EQUIVALENT
    )
    equivalent = all(verdict is Verdict.EQUIVALENT for verdict in scales)
    return Verdict.EQUIVALENT if equivalent and dense else Verdict.NOT_REFUTED


def _summary(
    verdict: Verdict,
    tests: list[TestResult],
    refuted: list[TestResult],
    wrong: Disagreement | None,
    received: Received,
) -> str:
    if verdict is Verdict.REFUTED:
        named = f"{len(refuted)} of {len(tests)} tests refuse the law, first: {refuted[0].name}" if refuted else ""
        return f"The noise does not follow its law: {named or wrong}."
    if verdict is Verdict.NOT_ASSESSED:
        return "No noise could be assessed: it is too small for float32 weights to show, or nothing was run."
    parts = {test.name: test for test in tests}
    words = [
        f"{kind}: {parts[f'scale, {kind}'].samples:,} samples, std off by {parts[f'scale, {kind}'].statistic:.3%} "
        f"(a gap of {parts[f'scale, {kind}'].detectable or 0:.3%} would have been seen)"
        for kind in received.kinds()
        if parts[f"scale, {kind}"].verdict is not Verdict.NOT_ASSESSED
    ]
    hidden = f"; {received.unseen} spans owe too little for float32 to show" if received.unseen else ""
    return f"None of {len(tests)} tests refuses the law; " + "; ".join(words) + hidden + "."
