"""The audit as one page: a summary that anybody can read, then the checks, then what they map to.

The page holds what the public record holds and nothing more; it asks for nothing from outside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from samelaw.audit.findings import MEANINGS, Verdict
from samelaw.contract.figures import rounded_up
from samelaw.equivalence.page_style import STYLE

_TONES = {"REFUTED": "bad", "NOT ASSESSED": "open"}
_GROUPS = (
    ("I", "Does the folder tell one story?"),
    ("K", "The key"),
    ("A", "What the run costs"),
    ("R", "Executed again, with key and transcript"),
    ("S", "What the weights show"),
)


def page(record: Mapping[str, Any]) -> str:
    """The page of a public record (`record.public_record`)."""
    body = (
        _headline(record),
        _summary(record),
        _checks(record["checks"]),
        _table(
            "NIST SP 800-226: the layers of a guarantee",
            ("Layer", "Checks", "What this audit says there"),
            _layers(record),
        ),
        _table("Hazards", ("Hazard", "Checks that would notice"), _hazards(record)),
        _table("What a report should state", ("Item", "Answer"), _answers(record)),
        _list("What the promise rests on", record["guarantee"]["assumptions"]),
        _list("What it does not cover", [*record["guarantee"]["not_included"], *record["unprotected"]]),
        _verdicts(),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>samelaw audit</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def headline(record: Mapping[str, Any]) -> str:
    """The outcome in one sentence."""
    checks: Sequence[Mapping[str, Any]] = record["checks"]
    if record["outcome"] == "REFUTED":
        refuted = ", ".join(c["check"] for c in checks if c["verdict"] == "REFUTED")
        return f"This run does not keep what it promises, or cannot be trusted: {refuted} refuted. Do not release it."
    if record["outcome"] == "NOT ASSESSED":
        missing = ", ".join(c["check"] for c in checks if c["verdict"] == "NOT ASSESSED" and c["required"])
        return f"Nothing was refuted, but too little could be checked to sign: {missing} not assessed."
    return "Nothing that was checked speaks against this run's promise."


def _headline(record: Mapping[str, Any]) -> str:
    tone = {"REFUTED": "bad", "NOT REFUTED": "good"}.get(record["outcome"], "")
    guarantee = record["guarantee"]
    cost = "The ledger cannot be priced, so no epsilon may be quoted."
    if guarantee["epsilon"] is not None:
        cost = (
            f"By its ledger the run costs epsilon {rounded_up(guarantee['epsilon'])} at delta "
            f"{rounded_up(guarantee['total_delta'])}, for {guarantee['unit']}."
        )
        if guarantee["generator_delta"]:
            cost += f" {rounded_up(guarantee['generator_delta'], 2)} of it is for the cut tail of the noise."
    return (
        "<h1>samelaw audit</h1>\n"
        f'<p class="byline">Version {escape(record["auditor"]["version"])}; the reviewer had the run folder'
        f"{''.join(f' and the {escape(what)}' for what in record['reviewer_had'])}.</p>\n"
        f'<div class="verdict {tone}"><p>{escape(headline(record))}</p><p>{escape(cost)}</p></div>'
    )


def _odds(epsilon: float) -> str:
    """What epsilon means for somebody who bets; e to the power epsilon, rounded up."""
    if epsilon > 20:
        return "so large that it is no practical limit on what can be told"
    return (
        f"seeing it changes the odds by a factor of at most {rounded_up(math.exp(epsilon))}, but for a chance of delta"
    )


def _summary(record: Mapping[str, Any]) -> str:
    """What was promised, what was shown, what was not: for a reader without the field's words."""
    checks: Sequence[Mapping[str, Any]] = record["checks"]
    guarantee = record["guarantee"]
    promised = (
        "Nothing that can be read."
        if guarantee["promised_epsilon"] is None
        else "That anybody who sees the model can tell whether any one training example was used only as well as "
        f"epsilon {rounded_up(guarantee['promised_epsilon'])} allows: {_odds(guarantee['promised_epsilon'])}."
    )
    shown = [c["title"] for c in checks if c["verdict"] in ("PROVED", "EQUIVALENT")]
    tested = [c["title"] for c in checks if c["verdict"] == "NOT REFUTED"]
    wrong = [f"{c['title']} {c['said']}" for c in checks if c["verdict"] == "REFUTED"]
    silent = [f"{c['title']} {c['said']}" for c in checks if c["verdict"] == "NOT ASSESSED"]
    parts = [f"<h2>In short</h2>\n<h3>Promised</h3><p>{escape(promised)}</p>"]
    for title, items in (
        ("Found wrong", wrong),
        ("Shown, by doing it again", shown),
        ("Tested and not contradicted", tested),
        ("Not looked at", silent),
    ):
        if items:
            parts.append(f"<h3>{title}</h3><ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>")
    parts.append(
        "<h3>Never shown by any audit of a finished run</h3><p>That the key stayed secret; that each single example "
        "was clipped before it was added up; that nothing else about the data left the house.</p>"
    )
    return "\n".join(parts)


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
    rows: list[str] = []
    for letter, title in _GROUPS:
        group = [c for c in checks if c["check"].startswith(letter)]
        if group:
            rows.append(f'<tr class="claim"><td colspan="3">{escape(title)}</td></tr>')
        for c in group:
            tone = _TONES.get(c["verdict"], "good")
            gap = (
                f'<br><span class="dim">Would have been seen: {escape(c["detectable"])}.</span>'
                if c["detectable"]
                else ""
            )
            rows.append(
                f'<tr><td>{escape(c["check"])}</td><td><span class="mark {tone}">{escape(c["verdict"])}</span></td>'
                f"<td>{escape(c['title'])}<br>{escape(c['said'])}{gap}</td></tr>"
            )
    head = '<tr><th>Check</th><th>Verdict</th><th class="wide">What was found</th></tr>'
    return f'<h2>The checks</h2>\n<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _layers(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(x["layer"], _with_verdicts(record, x["checks"]), x["says"]) for x in record["nist_sp_800_226"]["pyramid"]]


def _hazards(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(x["hazard"], _with_verdicts(record, x["checks"])) for x in record["nist_sp_800_226"]["hazards"]]


def _answers(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(x["item"], x["answer"]) for x in record["how_to_dp_fy_ml"]]


def _with_verdicts(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """Checks with what they found."""
    verdicts = {c["check"]: str(c["verdict"]).lower() for c in record["checks"]}
    return ", ".join(f"{n} {verdicts.get(n, 'not run')}" for n in names) or "none: not looked at"


def _table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<h2>{escape(title)}</h2>\n<div class="scroll"><table><tr>{top}</tr>{cells}</table></div>'


def _list(title: str, items: Sequence[str]) -> str:
    return f"<h2>{escape(title)}</h2>\n<ul>{''.join(f'<li>{escape(i)}</li>' for i in items)}</ul>" if items else ""


def _verdicts() -> str:
    rows = [(str(verdict), MEANINGS[verdict]) for verdict in Verdict]
    return _table("The verdicts", ("Word", "What it says"), [tuple(row) for row in rows])
