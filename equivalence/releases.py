"""Claim R1: what is published has all the noise that it owes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from samelaw.contract.errors import LedgerError
from samelaw.contract.evidence import Disagreement, Evidence, TestResult, Verdict
from samelaw.contract.ledger import Entry, spent
from samelaw.contract.spec import PrivacySpec
from samelaw.equivalence import laws

R1 = "At release no row owes noise, and no row still equals its initial value."


def settled(
    initial: Mapping[str, np.ndarray],
    final: Mapping[str, np.ndarray],
    spec: PrivacySpec,
    *,
    step: int,
    histories: Mapping[str, np.ndarray] | None = None,
    entries: Sequence[Entry] | None = None,
    padding: Mapping[str, int] | None = None,
    false_alarm: float = laws.FALSE_ALARM,
    scope: str = "",
) -> Evidence:
    """R1: every row, one by one.

    Args:
        initial, final: tables before the run and as released.
        spec: the law of the run.
        step: steps that were run.
        histories: per table, the steps that each row has paid for, after release; None for a trainer that keeps none.
        entries: the verified ledger, which must show the release of this step and, for a trainer with histories, the
            settlement of every table just before it.
        padding: table -> its padding row, a constant that must have stayed as it was.
        false_alarm: probability with which a row of a correct trainer may round back to its initial value by chance,
            all tables together; a table that would exceed it is left out of the second half of the claim, and named.

    Returns:
        EQUAL, or REFUTED with the first row that owes or has not moved.
    """
    padding = padding or {}
    checked, left_out = 0, list[str]()
    by_chance = 0.0
    settles = set(initial) if histories is not None else set[str]()
    wrong = _unpaid(histories or {}, step, padding) or _unrecorded(entries, step, settles)
    std = float(spec.clock.std(spec.clock.at(np.array([step])))[0])
    unmoved = 0
    for name in sorted(initial):
        same = laws.unchanged_rows(initial[name], final[name])
        if name in padding:
            if not same[padding[name]] and wrong is None:
                wrong = Disagreement(f"table {name!r}, padding row {padding[name]}", "unchanged", "changed")
            same = np.delete(same, padding[name])
        checked += same.size
        possible = 1.0 if std == 0 else _by_chance(initial[name], std)
        if by_chance + possible > false_alarm:
            left_out.append(name)
            continue
        by_chance += possible
        unmoved += int(same.sum())
        if same.any() and wrong is None:
            row = int(np.flatnonzero(same)[0])
            row += int(name in padding and row >= padding[name])
            wrong = Disagreement(
                f"table {name!r}, row {row}, at release (step {step})",
                f"noise of std {std:.4g} in each dimension",
                f"its initial value, as in {int(same.sum())} rows of the table",
            )
    numbers = {"rows": checked, "rows_at_initial_value": unmoved, "tables_not_compared": left_out}
    scope = scope or f"every row of {len(initial)} tables, {spec.mode} mode, {step} steps"
    tests = (_unmoved_test(unmoved, checked, by_chance),) if len(left_out) < len(initial) else ()
    if wrong is not None:
        return Evidence("R1", R1, Verdict.REFUTED, f"A release lacks noise: {wrong}.", scope, wrong, tests, numbers)
    if not checked or len(left_out) == len(initial):
        return Evidence(
            "R1", R1, Verdict.NOT_ASSESSED, "No row owes noise that could be seen.", scope, None, (), numbers
        )
    kept = " (no history was given)" if histories is None else " and the history of each says so"
    said = f"; not compared with their initial values: {', '.join(left_out)}" if left_out else ""
    summary = f"All {checked:,} rows are settled through step {step}{kept}; none equals its initial value{said}."
    return Evidence("R1", R1, Verdict.EQUAL, summary, scope, None, tests, numbers)


def _unmoved_test(unmoved: int, rows: int, by_chance: float) -> TestResult:
    """No row may equal its initial value: one that does refutes, but for what rounding makes possible."""
    verdict = Verdict.REFUTED if unmoved else Verdict.NOT_REFUTED
    rate = max(by_chance, 1e-300)
    return TestResult(
        "rows at their initial value", verdict, float(unmoved), 0.0, rows, rate, 1.0, 1.0, "rows",
        f"by chance with probability {rate:.1e}", rate if unmoved else 1.0,
    )  # fmt: skip


def _unpaid(histories: Mapping[str, np.ndarray], step: int, padding: Mapping[str, int]) -> Disagreement | None:
    """The first row whose history is not `step`."""
    for name, history in sorted(histories.items()):
        behind = np.asarray(history) != step
        if name in padding:
            behind[padding[name]] = False
        if behind.any():
            row = int(np.flatnonzero(behind)[0])
            return Disagreement(
                f"table {name!r}, row {row}, at release",
                f"settled through step {step}",
                f"through step {int(history[row])}; {int(behind.sum())} rows owe",
            )
    return None


def _unrecorded(entries: Sequence[Entry] | None, step: int, settles: set[str]) -> Disagreement | None:
    """A ledger that does not show this release, and before it the settlement of these tables."""
    if entries is None:
        return None
    try:
        account = spent(list(entries))
    except LedgerError as cause:
        return Disagreement("the ledger", "a run that can be priced", str(cause))
    if len(account.steps) != step or not account.releases or account.releases[-1]["step"] != step:
        released = account.releases[-1]["step"] if account.releases else "none"
        return Disagreement(
            "the ledger", f"a release at step {step}", f"{len(account.steps)} steps, last release: {released}"
        )
    last = [entry for entry in entries if entry.event in ("settle", "step", "release")][-2:-1]
    if settles and not (last and last[0].event == "settle" and set(last[0].data["rows"]) == settles):
        found = f"{last[0].event} of step {last[0].data['step']}" if last else "nothing"
        return Disagreement("the ledger, before its release", f"the settlement of {len(settles)} tables", found)
    return None


def _by_chance(table: np.ndarray, std: float) -> float:
    """Bound on the probability that noise of this std leaves some row as it was: each value within one ulp of home."""
    largest = np.abs(table).max(axis=1, initial=0.0)
    one_value = np.minimum(1.0, np.spacing(largest).astype(np.float64) / (std * np.sqrt(2 * np.pi)))
    return float((one_value ** table.shape[1]).sum())
