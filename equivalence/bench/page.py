"""The bench's report: one self-contained page about a trainer, with the tables and plots of every other report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from samelaw.contract.evidence import Evidence, Verdict
from samelaw.equivalence import plots
from samelaw.equivalence.page_style import STYLE
from samelaw.equivalence.report import claims_section, definition_list

_LIMITS = (
    "A pass says “not rejected; a gap of the size given would have been”. It is no proof of privacy, and it says "
    "nothing about a smaller gap.",
    "Gradients came from the bench's linear model. How the trainer takes gradients of another model (attention, shared "
    "layers, batch norm) was not looked at.",
    "Batches came from the bench. Whether the trainer's own sampling is the one that its accountant prices was not "
    "looked at, and neither was the accountant.",
    "Seeds came from the bench. Whether the trainer seeds itself well when nobody gives it a seed was not looked at.",
    "Checkpoints, several processes and other devices were not looked at.",
)


def bench_page(record: Mapping[str, Any], evidence: Sequence[Evidence]) -> str:
    """The page as HTML.

    Args:
        record: bench.json, as `samelaw conform` writes it.
        evidence: every claim, in the order of the page.
    """
    title = f"samelaw conform: {record['trainer']}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1>"
        f'<p class="byline">{escape(str(record["created"]).replace("T", " "))}</p></header>\n'
        + _headline(evidence)
        + claims_section(evidence)
        + _failures(evidence)
        + _tolerances(record)
        + _plot(evidence)
        + f"<h2>What the trainer declares</h2>{definition_list(record['abilities'])}"
        + f"<h2>How it was asked</h2>{definition_list(record['options'])}"
        + f"<h3>Versions and machine</h3>{definition_list(record['environment'])}"
        + "<h2>Limits</h2><ul>"
        + "".join(f"<li>{escape(limit)}</li>" for limit in _LIMITS)
        + "</ul>\n</body>\n</html>\n"
    )


def headline(evidence: Sequence[Evidence]) -> tuple[str, str]:
    """The verdict in one sentence, and what it rests on in another."""
    refuted = [e.claim for e in evidence if e.verdict is Verdict.REFUTED]
    open_ = [e.claim for e in evidence if e.verdict is Verdict.NOT_ASSESSED]
    held = len(evidence) - len(refuted) - len(open_)
    if refuted == ["B1"] and not held:
        first = "Nothing could be judged: the trainer did not come to an end on its inputs (claim B1)."
    elif refuted == ["B1"]:
        first = "This trainer fails on inputs that it declares (claim B1)."
    elif refuted:
        fail = f"claim {refuted[0]} fails" if len(refuted) == 1 else f"claims {', '.join(refuted)} fail"
        first = f"This trainer is not DP-SGD as it declares it: {fail}."
    elif not held:
        first = "Nothing could be judged."
    else:
        first = "Nothing that the bench tried tells this trainer from DP-SGD as it declares it."
    rest = f"{held} claims held" + (f"; not assessed: {', '.join(open_)}" if open_ else "") + "."
    return first, rest


def _headline(evidence: Sequence[Evidence]) -> str:
    first, rest = headline(evidence)
    bad = any(e.verdict is Verdict.REFUTED for e in evidence)
    return f'<div class="verdict {"bad" if bad else "good"}"><p>{escape(first)}</p><p>{escape(rest)}</p></div>'


def _failures(evidence: Sequence[Evidence]) -> str:
    """Every input that shows something wrong: the page names the first of each claim above, and all of them here."""
    shown = [
        f"<li>{escape(e.claim)}: {escape(str(line))}</li>"
        for e in evidence
        for key in ("failures", "wrong", "beyond_the_bound")
        for line in e.numbers.get(key, ())
    ]
    return f"<h2>Inputs that show it</h2><ul>{''.join(shown)}</ul>" if shown else ""


def _tolerances(record: Mapping[str, Any]) -> str:
    """What a gap that would have passed could cost."""
    if not record.get("tolerances"):
        return ""
    items = "".join(f"<li>{escape(one['sentence'])}</li>" for one in record["tolerances"])
    return f"<h2>What the tolerance could cost</h2><ul>{items}</ul>"


def _plot(evidence: Sequence[Evidence]) -> str:
    quantiles: dict[str, Any] = {}
    for item in evidence:
        quantiles |= {kind: found for kind, found in item.numbers.get("quantiles", {}).items() if found}
    if not quantiles:
        return ""
    caption = (
        "What is left of the released weights when the known signal is taken away, divided by the std that the law "
        "gives it, against the normal law. Touched rows were read during the run; idle rows never. Points on the line: "
        "the noise has the shape and size that it should have."
    )
    return (
        f"<h2>Noise</h2><figure>{plots.noise_quantiles(quantiles)}<figcaption>{escape(caption)}</figcaption></figure>"
    )
