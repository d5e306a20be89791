"""One self-contained HTML page about a run: the verdict in words, the claims with their numbers, plots, limits.

The page asks for nothing from outside, escapes everything that it is given, and names no row, seed or drawn batch size.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from samelaw.contract.evidence import Evidence, TestResult, Verdict
from samelaw.contract.figures import rounded_down, rounded_up
from samelaw.equivalence import plots
from samelaw.equivalence.page_style import STYLE
from samelaw.equivalence.proofs import ProofStatus

MEANINGS = {
    Verdict.EQUAL: "compared to the bit on everything there was to compare, and the same",
    Verdict.EQUIVALENT: "shown to be within the stated margin, at the stated error rate",
    Verdict.NOT_REFUTED: "tested and not rejected; a gap of the size given would have been",
    Verdict.NOT_ASSESSED: "there was too little to judge by; nothing is said",
    Verdict.REFUTED: "found to be wrong",
}
_ORDER = "E1 E2 L1 S1 R1 M1 N1 A1"
_TONES = {Verdict.REFUTED: "bad", Verdict.NOT_ASSESSED: "open"}


def write_report(
    path: str | Path,
    manifest: Mapping[str, Any],
    evidence: Sequence[Evidence],
    series: Mapping[str, Any] | None = None,
) -> None:
    """Write the page whole or not at all.

    Args:
        path: report.html.
        manifest: the run's manifest.json.
        evidence: every claim, in the order of the page; empty for a training run.
        series: what else there is to plot, each optional:
            "curves": run name -> {"eager", "lazy"} -> steps, loss, auc; or {"lazy": ...} alone;
            "epsilon": by step, as columns (steps, lower, estimate, upper) or rows;
            "delays": steps owed by each row at release, for a run without evidence;
            "proofs": proofs.ProofStatus of each theorem.
    """
    target = Path(path)
    part = target.with_name(target.name + ".part")
    part.write_text(page(manifest, evidence, series or {}), encoding="utf-8")
    os.replace(part, target)


def page(manifest: Mapping[str, Any], evidence: Sequence[Evidence], series: Mapping[str, Any]) -> str:
    """The report as HTML."""
    title = f"samelaw {manifest['kind']}: {manifest['workload']['name']}"
    sections = (
        _headline(manifest, evidence),
        claims_section(_in_order(evidence)) if evidence else "",
        _proofs(series["proofs"]) if series.get("proofs") else "",
        _plots(evidence, series),
        _price(manifest, evidence),
        _parameters(manifest, series),
        _limits(manifest, evidence),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def _headline(manifest: Mapping[str, Any], evidence: Sequence[Evidence]) -> str:
    """The verdict in one sentence for everybody, then one for those who ask what it rests on."""
    name, fault = manifest["workload"]["name"], manifest["options"].get("fault")
    price = _price_words(manifest["statement"])
    refuted = sorted({e.claim for e in evidence if e.verdict is Verdict.REFUTED}, key=_ORDER.find)
    seeded = manifest["key"]["origin"] == "seed"
    if not evidence and seeded:
        tone = "open"
        sentence = "A test run: its noise comes from a fixed seed, which anybody can guess. Do not release this model."
        second = f"With a secret key, the privacy cost of the same run would be {price}."
    elif not evidence:
        tone, sentence = "good", f"This model was trained with differential privacy: its privacy cost is {price}."
        second = "A training run compares nothing: that the trainer does what it says is what samelaw verify checks."
    elif refuted:
        tone = "bad"
        many = len(refuted) > 1
        failed = f"claim{'s' * many} {', '.join(refuted)} fail{'' if many else 's'}"
        if fault:
            sentence = f"The fault that was planted on purpose, {fault}, was caught: {failed}."
            second = "This run shows the checks at work; its model is not fit for release."
        else:
            sentence = f"The fast trainer does not do the same as the textbook one: {failed}."
            second = "The privacy cost below is not to be relied on, and the model is not fit for release."
    else:
        open_ = sum(e.verdict is Verdict.NOT_ASSESSED for e in evidence)
        exact = sum(e.verdict is Verdict.EQUAL for e in evidence)
        tone = "good"
        sentence = "Nothing that was checked tells the fast private trainer from the textbook one, and " + (
            f"with a secret key the privacy cost would be {price}. This run's key came from a fixed seed: do not "
            "release its model."
            if seeded
            else f"the privacy cost of the released model is {price}."
        )
        second = (
            f"{len(evidence)} checks: {exact} found everything equal to the bit, {len(evidence) - exact - open_} "
            "held within a stated bound or error rate"
            + (f", {open_} had too little to judge by" if open_ else "")
            + (". A planted fault was NOT caught." if fault else ".")
        )
        tone = "bad" if fault else "open" if seeded else tone
    when = str(manifest["created"]).replace("T", " ")
    return (
        f"<header><h1>samelaw {escape(manifest['kind'])}: {escape(name)}</h1>"
        f'<p class="byline">{escape(when)}</p></header>\n'
        f'<div class="verdict {tone}"><p>{escape(sentence)}</p><p>{escape(second)}</p></div>'
    )


def _in_order(evidence: Sequence[Evidence]) -> list[Evidence]:
    return sorted(evidence, key=lambda e: (_ORDER.find(e.claim) % 100, e.claim))


def claims_section(evidence: Sequence[Evidence]) -> str:
    """One row a claim and run, in the order given; the tests inside a claim fold away."""
    rows: list[str] = []
    last = ""
    for item in evidence:
        if item.claim != last:
            rows.append(
                f'<tr class="claim"><td>{escape(item.claim)}</td><td colspan="4">{escape(item.title)}</td></tr>'
            )
            last = item.claim
        rows.append(
            f"<tr><td></td><td>{_mark(item.verdict)}</td><td>{escape(without_rows(item.summary))}"
            f'<div class="dim">{escape(item.scope)}</div>{_disagreement(item)}{_tests(item.tests)}</td>'
            f'<td class="number">{_false_alarm(item)}</td><td>{escape(_smallest_gap(item))}</td></tr>'
        )
    meanings = "".join(f"<dt>{_mark(verdict)}</dt><dd>{escape(text)}</dd>" for verdict, text in MEANINGS.items())
    return (
        '<h2>Claims</h2><div class="scroll"><table><thead><tr><th></th><th>verdict</th>'
        '<th class="wide">what was found</th><th class="number">false alarm</th>'
        "<th>smallest gap that would be seen</th></tr></thead><tbody>"
        + "\n".join(rows)
        + f"</tbody></table></div><h3>What the verdicts say</h3><dl>{meanings}</dl>"
        '<p class="dim">False alarm: the probability with which the checks of that line would have refused a correct '
        f"trainer; {sum(t.false_alarm for e in evidence for t in _random(e)):.1e} over the whole page, one budget for "
        "all tests (Holm). A dash: the comparison is exact and has no error rate.</p>"
    )


def _proofs(statuses: Sequence[ProofStatus]) -> str:
    """One row a theorem, by claim: what it says, and whether it was proved of the sources that are installed here."""
    rows: list[str] = []
    for status in sorted(statuses, key=lambda s: _ORDER.find(s.theorem.claim) % 100):
        mark = '<span class="mark good">proved</span>' if status.proved else '<span class="mark open">not proved</span>'
        rows.append(
            f"<tr><td>{escape(status.theorem.claim)}</td><td>{mark}</td><td>{escape(status.theorem.says)}"
            f'<div class="dim">{escape(status.theorem.theorem)}: {escape(status.words)}</div></td></tr>'
        )
    return (
        '<h2>Proofs</h2><div class="scroll"><table><thead><tr><th></th><th>here</th>'
        '<th class="wide">theorem</th></tr></thead><tbody>' + "\n".join(rows) + "</tbody></table></div>"
        '<p class="dim">Machine-checked with Coq, before this run, about the functions in the files that each line '
        "names, with the digests shown; checked again by make proofs. The trainers that call these functions, the "
        "textbook ones included, are tested, not proved, and so are the fast trainer and everything that runs on a "
        "GPU. The privacy cost is priced, not proved.</p>"
    )


def _disagreement(item: Evidence) -> str:
    wrong = item.first_disagreement
    if wrong is None:
        return ""
    if str(wrong) in item.summary:
        return '<div class="dim">evidence.json names the row.</div>'
    return (
        f'<div class="code">first at {escape(without_rows(wrong.where))}: expected '
        f"{escape(without_rows(wrong.expected))}, found {escape(without_rows(wrong.found))}</div>"
        '<div class="dim">evidence.json names the row.</div>'
    )


def _tests(tests: Sequence[TestResult]) -> str:
    if not tests:
        return ""
    refuted = sum(t.verdict is Verdict.REFUTED for t in tests)
    rows = "".join(
        f"<tr><td>{escape(t.name)}</td><td>{_mark(t.verdict)}</td>"
        f'<td class="number">{_figure(t.statistic)}</td><td class="number">{_figure(t.threshold)}</td>'
        f'<td class="number">{t.samples:,}</td><td class="number">{_figure(t.detectable)}</td>'
        f'<td class="number">{_figure(t.adjusted_p_value)}</td>'
        f"<td>{escape(t.gap)}</td><td>{escape(without_rows(t.note))}</td></tr>"
        for t in tests
    )
    count = f"{len(tests)} tests" + (f", {refuted} refuted" if refuted else "")
    return (
        f'<details><summary>{count}</summary><div class="scroll"><table><thead><tr><th>test</th><th>verdict</th>'
        '<th class="number">found</th><th class="number">allowed</th><th class="number">samples</th>'
        '<th class="number">detectable</th><th class="number">p (Holm)</th><th>unit</th><th>note</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _plots(evidence: Sequence[Evidence], series: Mapping[str, Any]) -> str:
    figures: list[str] = []

    def add(svg: str, caption: str) -> None:
        figures.append(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>")

    law = _law_to_show(evidence)
    if law is not None:
        numbers = law.numbers
        if numbers["quantiles"]:
            add(
                plots.noise_quantiles(numbers["quantiles"]),
                f"Noise that rows received ({law.scope}), divided by the std that the law gives it, against the normal "
                "law. Points on the line: the noise has the shape and size that it should have. Touched rows were "
                "settled when a batch read them, idle rows when the model was released. Below, the difference; a "
                "correct trainer's point lies in the band of its colour 999 times in 1000.",
            )
            add(
                plots.variance_by_steps_owed(numbers["variance_by_steps_owed"]),
                "Variance that a row received when it was settled, by the number of steps that it owed, and the "
                "variance that those very steps owed (idle rows owe late steps, whose learning rate may be lower). "
                "A std that grows with the steps, or a step too few, leaves the line. Bars: where a correct trainer "
                "lies 999 times in 1000.",
            )
    if series.get("curves"):
        runs = _runs(series["curves"])
        twins = any(len(t) > 1 for t in runs.values())
        add(
            plots.utility(runs),
            "Held-out AUC and loss as training goes on."
            + (
                " Rings: the textbook trainer; line: the fast one. In replay mode they coincide. The run is short and "
                "noisy: made to be compared, not to predict well."
                if twins
                else ""
            ),
        )
    delays = _delays(law, series)
    if delays is not None:
        add(plots.delays(*delays), "How many steps of noise a row owed when it was settled: what lazy payment saves.")
    if series.get("epsilon") is not None:
        add(
            plots.epsilon(series["epsilon"]),
            "Privacy cost if the run had been released after so many steps, and its bounds (found "
            "faster, and so wider, than those of the privacy statement).",
        )
    return "<h2>Plots</h2>" + "\n".join(figures) if figures else ""


def _law_to_show(evidence: Sequence[Evidence]) -> Evidence | None:
    """The noise evidence with most samples, aggregate mode first: there it is the claim itself."""
    found = [e for e in evidence if "variance_by_steps_owed" in e.numbers]
    size = {id(e): sum(t.samples for t in e.tests) for e in found}
    return max(found, key=lambda e: (e.numbers.get("mode") == "aggregate", size[id(e)]), default=None)


def _runs(curves: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Curves by run; a single run may come without its name. Runs without a point are left out."""
    nested = not set(curves) <= {"lazy", "eager"}
    runs: dict[str, Mapping[str, Any]] = dict(curves) if nested else {"": curves}
    return {
        name: twins for name, twins in runs.items() if any(len(plots.Curve.of(c).steps) for c in twins.values())
    } or {"": {}}


def _delays(law: Evidence | None, series: Mapping[str, Any]) -> tuple[list[int], list[int]] | None:
    """Settlements by steps owed, in octaves."""
    if law is not None:
        counted = law.numbers["settlement_delays"]
        return counted["at_most"], counted["settlements"]
    owed = np.asarray(series.get("delays", ()), dtype=np.int64)
    owed = owed[owed > 0]
    if owed.size == 0:
        return None
    counts = np.bincount(np.ceil(np.log2(owed)).astype(np.int64))
    return [1 << k for k in range(len(counts))], [int(c) for c in counts]


def _price(manifest: Mapping[str, Any], evidence: Sequence[Evidence]) -> str:
    statement = dict(manifest["statement"])
    for name, bound in (("lower", rounded_down), ("upper", rounded_up), ("second_opinion", rounded_up),
                        ("renyi", rounded_up), ("delta", rounded_up), ("generator_delta", rounded_up),
                        ("total_delta", rounded_up)):  # fmt: skip
        if isinstance(statement.get(name), float):
            statement[name] = bound(statement[name], 6)
    left_open = [one["sentence"] for item in evidence for one in item.numbers.get("tolerances", ())]
    words = "".join(f"<p>{escape(sentence)}</p>" for sentence in left_open)
    if words:
        words = f"<h3>What the tolerances of the tests could cost</h3>{words}"
    return f"<h2>Privacy cost</h2>{definition_list(statement)}{words}"


def _parameters(manifest: Mapping[str, Any], series: Mapping[str, Any]) -> str:
    law = dict(manifest["law"])
    schedule = law.pop("schedule")
    law["learning rate"], law["steps"] = schedule["name"], schedule["steps"]
    law["digest of the law"] = manifest["law_digest"]
    key = manifest["key"]
    folder = {"noise key": f"from {_KEY_ORIGINS.get(key['origin'], key['origin'])}"}
    folder |= {"commitment to the key": key["commitment"], "head of the ledger": manifest["ledger"]["head"]}
    folder |= {f"SHA-256 of {name}": digest for name, digest in manifest["files"].items()}
    options = {k: v for k, v in manifest["options"].items() if v is not None}
    return (
        f"<h2>Parameters</h2><h3>Law of the run</h3>{definition_list(law)}"
        f"<h3>Data</h3>{definition_list({**manifest['workload'], **_skipped(series)})}"
        + (f"<h3>Options</h3>{definition_list(options)}" if options else "")
        + f"<h3>Files and key</h3>{definition_list(folder)}"
        f"<h3>Versions and machine</h3>{definition_list(manifest['environment'])}"
    )


def _skipped(series: Mapping[str, Any]) -> dict[str, Any]:
    """Lines of the data that were left out: for this page alone, since their number comes from the data."""
    return {"skipped lines": dict(series["skipped_lines"])} if series.get("skipped_lines") else {}


_KEY_ORIGINS = {"os": "the operating system", "seed": "a fixed seed", "file": "a key file"}


def _limits(manifest: Mapping[str, Any], evidence: Sequence[Evidence]) -> str:
    """What the page does not say."""
    items: list[str] = []
    if evidence:
        items += [
            "A pass says “not rejected; a gap of the size given would have been”. It is no proof of privacy, and it "
            "says nothing about a smaller gap.",
            "It holds for this workload, these parameters, these versions and this machine. What was not run was not "
            "checked.",
        ]
    items += [
        "Assumed, not tested: that ChaCha is a good generator, that floating point follows IEEE 754 here, and that the "
        "accountant's theorem applies (every example joins a batch independently; neighbours differ in one example).",
        "The noise is float32: its tails end at 7.54 standard deviations, and it takes finitely many values. What is "
        "not included in the privacy cost is listed with it.",
        "The privacy cost covers the released weights alone. Loss, AUC and settlement delays on this page come from "
        "private data without noise: show the page only to those who may see the data.",
    ]
    if manifest["key"]["origin"] == "seed":
        items.append(
            "The noise key of this run came from a fixed seed. Whoever guesses the seed can remove the noise: do not "
            "release this model."
        )
    return "<h2>Limits</h2><ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _price_words(statement: Mapping[str, Any]) -> str:
    """Epsilon and delta, both rounded up: what holds at a smaller one holds at a larger one."""
    epsilon, delta = (
        rounded_up(float(statement["upper"])),
        rounded_up(float(statement.get("total_delta", statement["delta"]))),
    )
    return f"at most ε\u00a0=\u00a0{epsilon} at δ\u00a0=\u00a0{delta}"


def _mark(verdict: Verdict) -> str:
    return f'<span class="mark {_TONES.get(verdict, "good")}">{escape(str(verdict).lower())}</span>'


def _false_alarm(item: Evidence) -> str:
    total = sum(t.false_alarm for t in _random(item))
    return f"{total:.1e}" if total else "–"


def _random(item: Evidence) -> list[TestResult]:
    """The tests of a claim that a correct trainer could fail by chance."""
    return [test for test in item.tests if test.verdict is not Verdict.NOT_ASSESSED]


def _smallest_gap(item: Evidence) -> str:
    """The detectable gap of the claim's leading tests, in words."""
    shown = [t for t in item.tests if t.name.startswith("scale, ") and t.name.count(" ") == 2 and t.detectable]
    if shown:
        return "; ".join(
            f"{t.name.removeprefix('scale, ')}: std off by {100 * (t.detectable or 0):.2g} %" for t in shown
        )
    if item.verdict is Verdict.NOT_ASSESSED:
        return "–"
    gaps = {
        "E1": "one bit",
        "N1": "one bit",
        "R1": "one row",
        "E2": f"{_figure(item.numbers.get('largest_bound'))} in a weight",
        "M1": f"{_figure(item.numbers.get('tolerance'))} of the largest entry",
        "S1": "any excess over the clip norm, in the examples probed",
    }
    if "smallest_gap" in item.numbers:
        return str(item.numbers["smallest_gap"])
    return gaps.get(item.claim, "–")


def definition_list(values: Mapping[str, Any]) -> str:
    """A mapping as a definition list; mappings inside it are spelled out, long series left to the JSON."""
    items: list[str] = []
    for name, value in values.items():
        label = escape(str(name).replace("_", " "))
        if isinstance(value, Mapping):
            items.append(f"<dt>{label}</dt><dd>{definition_list(value)}</dd>")
        elif isinstance(value, list | tuple):
            text = "".join(f"<li>{escape(_word(v))}</li>" for v in value[:12])
            more = f"<li>… {len(value) - 12} more</li>" if len(value) > 12 else ""
            items.append(f"<dt>{label}</dt><dd><ul>{text}{more}</ul></dd>")
        else:
            items.append(f"<dt>{label}</dt><dd>{escape(_word(value))}</dd>")
    return f"<dl>{''.join(items)}</dl>"


def _word(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _figure(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.3g}"


def without_rows(text: str) -> str:
    """The text without the numbers of rows: which row was read when is private."""
    return re.sub(r"\b(rows?) \d+(, \d+)*", r"\1 (not shown)", text)
