"""What the released weights show by themselves, without key or transcript (checks S1, S2, S3 and S5)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32
from scipy import stats

from samelaw.audit.findings import Finding, Verdict, finding, not_assessed
from samelaw.audit.folder import RunFolder
from samelaw.contract.evidence import Verdict as TestVerdict
from samelaw.contract.spec import PrivacySpec
from samelaw.equivalence import laws

NEAR = 1e-4
SMALL_BALL = 1e-3
RESOLUTION = 32
_WEIGHTS_AT_ONCE = 1 << 22
_MOST_COMPARED = 1 << 24
_LACKING = (
    "The folder holds no initial weights, so the change of a row cannot be told. Train without --no-initial-weights."
)


def check_structure(folder: RunFolder, spec: PrivacySpec | None) -> list[Finding]:
    """S1 to S3."""
    steps = len(folder.account.steps) if folder.account is not None else 0
    if folder.initial is None or spec is None:
        why = _LACKING if folder.initial is None else "The law could not be rebuilt, so no std is known."
        return [not_assessed("S1", why, required=True), not_assessed("S2", why), not_assessed("S3", why)]
    if steps == 0 or spec.noise_multiplier == 0:
        why = "The run owed no noise."
        return [not_assessed("S1", why, required=True), not_assessed("S2", why), not_assessed("S3", why)]
    clock = spec.clock
    whole = math.ldexp(math.sqrt(float(clock.at(np.array([steps]))[0])), clock.exponent)
    return [_unmoved(folder, whole), _duplicates(folder, whole), _small_ball(folder, float(clock.scale(steps - 1)))]


def check_two_runs(
    first: RunFolder, second: RunFolder, specs: tuple[PrivacySpec | None, PrivacySpec | None]
) -> Finding:
    """S5: another run's folder beside this one."""
    if not (first.opened and second.opened):
        return not_assessed("S5", "One of the two ledgers tells of no run.")
    if first.opened["key_commitment"] == second.opened["key_commitment"]:
        said = "Both runs used one key: they share their noise, and the difference of their weights shows the data."
        return finding("S5", Verdict.REFUTED, said)
    if first.initial is None or second.initial is None or specs[0] is None or specs[1] is None:
        return not_assessed("S5", _LACKING)
    found, compared, alarm = 0, 0, laws.share(laws.FALSE_ALARM, max(1, len(first.table_names())))
    for name in sorted(set(first.table_names()) & set(second.table_names())):
        if first.opened["tables"][name][1] != second.opened["tables"][name][1]:
            continue
        mine, theirs = _residuals(first, specs[0], name), _residuals(second, specs[1], name)
        alone = laws.duplicates(mine, within=NEAR), laws.duplicates(theirs, within=NEAR)
        test = laws.duplicates(np.concatenate([mine, theirs]), within=NEAR, false_alarm=alarm)
        if test.verdict is not TestVerdict.NOT_ASSESSED:
            compared += len(mine) + len(theirs)
            found += int(test.statistic - sum(t.statistic for t in alone))
    if found > 0:
        said = f"{found} rows of the two runs hold the same noise."
        return finding("S5", Verdict.REFUTED, said)
    if compared == 0:
        return not_assessed("S5", "The two runs have no tables wide enough to compare.")
    said = "The runs commit to different keys, and no row of one changed as a row of the other did."
    return finding("S5", Verdict.NOT_REFUTED, said, detectable="one row that nobody read with the same noise in both")


def _pairs(folder: RunFolder) -> Iterator[tuple[str, int, Float32[np.ndarray, "_n _d"], Float32[np.ndarray, "_n _d"]]]:
    """(table, first row, initial, released), a bounded number of rows at a time, the padding row left out."""
    assert folder.initial is not None
    for name in folder.table_names():
        rows, dim, padding = folder.opened["tables"][name]
        at_once = max(1, _WEIGHTS_AT_ONCE // dim)
        for start in range(0, rows, at_once):
            stop = min(start + at_once, rows)
            kept = np.arange(start, stop) != (-1 if padding is None else padding)
            before, after = (f.rows(f"{name}.weight", start, stop)[kept] for f in (folder.initial, folder.weights))
            yield name, start, before, after


def _unmoved(folder: RunFolder, std: float) -> Finding:
    """S1.

    Noise of std S leaves a float32 value w where it was only if it is below the spacing of w, which has probability at
    most ulp(w) / (S sqrt(2 pi)); over a row's dimensions these multiply, over rows they add up. Chance counts as no
    excuse while the sum stays below the error budget.
    """
    chance, places, count, rows = 0.0, list[str](), 0, 0
    for name, start, before, after in _pairs(folder):
        ulp = np.spacing(np.abs(before)).astype(np.float64)
        chance += float(np.prod(np.minimum(1.0, ulp / (std * math.sqrt(2 * math.pi))), axis=1).sum())
        same = laws.unchanged_rows(before, after)
        rows, count = rows + same.size, count + int(same.sum())
        places += [f"{name}, about row {start + int(i)}" for i in np.flatnonzero(same)[:3]]
    for name, shape in folder.opened["dense"].items():
        assert folder.initial is not None
        if math.prod(shape) >= 4 and np.array_equal(folder.initial.whole(name), folder.weights.whole(name)):
            count += 1
            places.append(name)
    if chance > laws.FALSE_ALARM:
        return not_assessed("S1", "The noise is so small beside the weights that rows may round back by chance.")
    if count:
        return finding(
            "S1",
            Verdict.REFUTED,
            f"{count} of {rows} rows were released exactly as they were before training: they got no noise at all. The "
            "rows that did move are then those that somebody in the data read.",
            private={"places": places[:20]},
        )
    said = f"None of {rows} rows equals its initial value, nor does any dense parameter."
    return finding("S1", Verdict.NOT_REFUTED, said, detectable="one row without any noise")


def _duplicates(folder: RunFolder, std: float) -> Finding:
    """S2."""
    by_width: dict[int, list[np.ndarray]] = {}
    kept = 0
    for _, _, before, after in _pairs(folder):
        if kept < _MOST_COMPARED:
            by_width.setdefault(before.shape[1], []).append((after.astype(np.float64) - before) / std)
            kept += before.size
    tests = [
        laws.duplicates(np.concatenate(parts), within=NEAR, false_alarm=laws.share(laws.FALSE_ALARM, len(by_width)))
        for parts in by_width.values()
    ]
    judged = [test for test in tests if test.verdict is not TestVerdict.NOT_ASSESSED]
    if not judged:
        return not_assessed("S2", "The tables are too narrow: two rows may change alike by chance.")
    copies = int(sum(test.statistic for test in judged))
    if copies:
        said = f"{copies} rows changed in the same way as another row: they share their noise, or got none."
        return finding("S2", Verdict.REFUTED, said, tests=tuple(judged))
    return finding(
        "S2", Verdict.NOT_REFUTED, "No two rows changed alike.",
        detectable="one draw given to two rows that nobody read", tests=tuple(judged),
    )  # fmt: skip


def _small_ball(folder: RunFolder, last: float) -> Finding:
    """S3.

    Whatever came before, the last step adds independent noise of std s to every coordinate. By Anderson's inequality a
    Gaussian puts the most mass on a ball when it is centred there, so a row ends within any ball around its initial
    value at most as often as noise of std s alone would. The number of rows inside the ball that such noise enters with
    probability p is then at most binomial(rows, p).
    """
    rows = inside = 0
    for _, _, before, after in _pairs(folder):
        ulp = np.spacing(np.abs(before).max(axis=1) + np.float32(8 * last)).astype(np.float64)
        seen = last >= RESOLUTION * ulp
        distance = (((after.astype(np.float64) - before) / last) ** 2).sum(axis=1)
        # The last rounding may carry a coordinate half a spacing into the ball, which is made smaller by that much.
        radius = math.sqrt(float(stats.chi2.ppf(SMALL_BALL, before.shape[1])))
        ball = max(0.0, radius - math.sqrt(before.shape[1]) / (2 * RESOLUTION)) ** 2
        rows, inside = rows + int(seen.sum()), inside + int((distance[seen] < ball).sum())
    if rows == 0:
        return not_assessed("S3", "The noise of the last step is too narrow beside the weights' rounding to be seen.")
    allowed = int(stats.binom.isf(laws.FALSE_ALARM, rows, SMALL_BALL))
    if inside > allowed:
        said = f"{inside} of {rows} rows moved less than the last step's noise alone would move them."
        return finding("S3", Verdict.REFUTED, said)
    return finding(
        "S3",
        Verdict.NOT_REFUTED,
        "Rows moved at least as far as the noise of the last step takes them. Without a transcript no more can be "
        "asked of a row: training may have moved it too.",
        detectable=f"more than {allowed} of {rows} rows nearly without noise",
    )


def _residuals(folder: RunFolder, spec: PrivacySpec, name: str) -> np.ndarray:
    """Changes of a table's rows in units of the whole run's std, as far as they fit in memory."""
    assert folder.initial is not None
    assert folder.account is not None
    steps = len(folder.account.steps)
    std = math.ldexp(math.sqrt(float(spec.clock.at(np.array([steps]))[0])), spec.clock.exponent)
    dim = folder.opened["tables"][name][1]
    stop = min(folder.opened["tables"][name][0], max(1, _MOST_COMPARED // dim))
    before, after = (f.rows(f"{name}.weight", 0, stop) for f in (folder.initial, folder.weights))
    return (after.astype(np.float64) - before) / max(std, 1e-300)
