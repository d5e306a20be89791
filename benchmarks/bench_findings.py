"""What does the bench find about Opacus 1.6, EANA, LazyDP and the trainers of this project?

Expect: plain DP-SGD, LazyDP with its flush and samelaw's own trainers hold every claim that they declare; EANA and
LazyDP without its flush fail where noise is missing (B4, B5, B7), and nowhere else; Opacus has the noise right and
fails on inputs of `nn.EmbeddingBag` (B2, in ghost mode B3), on padding rows (B9), and on empty batches in ghost mode
(B1).

    make findings            # runs every trainer, writes the figures and the page
    python benchmarks/bench_findings.py --page   # the page alone, from the figures on disk

Figures: benchmarks/results/bench-findings.json. Page: docs/bench-findings.md. Both are written by this script alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from samelaw.contract.evidence import Evidence, Verdict
from samelaw.equivalence.bench.claims import TITLES
from samelaw.equivalence.bench.conduct import run_here
from samelaw.equivalence.bench.conform import RUNS, conform

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "benchmarks" / "results" / "bench-findings.json"
PAGE = ROOT / "docs" / "bench-findings.md"
SEED = 0

TRAINERS = {
    "samelaw.adapters.plain:PlainDPSGD": "DP-SGD in plain torch, one example at a time",
    "samelaw.adapters.lazydp:LazyDP": "LazyDP from scratch in torch, noise of its own, with the final flush",
    "samelaw.adapters.lazydp:UnflushedLazyDP": "the same without the final flush",
    "samelaw.adapters.eana:EANA": "EANA: noise on the rows that a batch reads, and on no other",
    "samelaw.adapters.opacus:EmbeddingBagHooks": "Opacus, `nn.EmbeddingBag`, per-example gradients (hooks)",
    "samelaw.adapters.opacus:EmbeddingBagGhost": "Opacus, `nn.EmbeddingBag`, ghost clipping",
    "samelaw.adapters.opacus:EmbeddingHooks": "Opacus, `nn.Embedding` with one id a bag, per-example gradients (hooks)",
    "samelaw.adapters.opacus:EmbeddingGhost": "Opacus, `nn.Embedding` with one id a bag, ghost clipping",
    "samelaw.cli.bench_own:Eager": "samelaw's reference, keyed",
    "samelaw.cli.bench_own:Lazy": "samelaw's lazy trainer in replay mode, keyed",
    "samelaw.cli.bench_own:LazyBridge": "samelaw's lazy trainer in bridge mode",
    "samelaw.cli.bench_own:LazyAggregate": "samelaw's lazy trainer in aggregate mode",
}
_MARKS = {
    Verdict.EQUAL: "equal",
    Verdict.EQUIVALENT: "within 10 %",
    Verdict.NOT_REFUTED: "held",
    Verdict.REFUTED: "**refuted**",
    Verdict.NOT_ASSESSED: "–",
}


def assess(trainer: str) -> list[Evidence]:
    """One trainer on the bench, in this process."""
    from samelaw.cli.bench_own import reference

    module, _, name = trainer.partition(":")
    factory = getattr(import_module(module), name)
    return conform(lambda job: run_here(factory, job), factory.abilities, runs=RUNS, seed=SEED, twin=reference)


def figures_of(evidence: Sequence[Evidence]) -> dict[str, Any]:
    """What the page says of a trainer, by claim."""
    found: dict[str, Any] = {}
    for item in evidence:
        shown = [str(s) for key in ("failures", "wrong", "beyond_the_bound") for s in item.numbers.get(key, ())]
        wrong = item.first_disagreement
        found[item.claim] = {
            "verdict": str(item.verdict),
            "refuted_tests": [t.name for t in item.tests if t.verdict is Verdict.REFUTED],
            "first": None if wrong is None else str(wrong),
            "inputs": shown,
            "smallest_gap": item.numbers.get("smallest_gap"),
        }
    return found


def measure(say: Any) -> dict[str, Any]:
    """Every trainer that can run here."""
    trainers: dict[str, Any] = {}
    for name in TRAINERS:
        if ".opacus:" in name and find_spec("opacus") is None:
            raise SystemExit("the findings need Opacus: pip install --no-deps opacus==1.6.0 opt_einsum==3.4.0")
        trainers[name] = figures_of(assess(name))
        refuted = [claim for claim, item in trainers[name].items() if item["verdict"] == Verdict.REFUTED]
        say(f"{name}: {'refuted: ' + ', '.join(refuted) if refuted else 'holds'}")
    return {"runs": RUNS, "seed": SEED, "versions": versions(), "trainers": trainers}


def versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in ("opacus", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def page(figures: dict[str, Any]) -> str:
    """docs/bench-findings.md, from the figures alone."""
    trainers, used = figures["trainers"], figures["versions"]
    lines = [
        "# Findings of the bench",
        "",
        f"[The bench](bench.md) on twelve trainers: Opacus {used['opacus']} and torch {used['torch']}, on a CPU, "
        f"{figures['runs']} runs each, seed {figures['seed']}. One command runs all of it again and writes this page:",
        "",
        "```bash",
        "pip install opacus==1.6.0",
        "make findings",
        "```",
        "",
        "| trainer | " + " | ".join(TITLES) + " |",
        "|---|" + "---|" * len(TITLES),
    ]
    for name in TRAINERS:
        marks = [_MARKS[Verdict(trainers[name][claim]["verdict"])] for claim in TITLES]
        lines.append(f"| {_short(name)} | " + " | ".join(marks) + " |")
    lines += [
        "",
        "A dash: not declared, or (B7 after a crash) not assessed. *Within 10 %*: the scale of the noise is concluded "
        "to be that close; the gaps that would have been seen are smaller and stand below. The claims:",
        "",
    ]
    lines += [f"- **{claim}** {title}" for claim, title in TITLES.items()]
    lines += [""]
    for name, about in TRAINERS.items():
        lines += _section(name, about, trainers[name])
    lines += [
        "## What this does not say",
        "",
        "The bench dictates batches and gradients: Opacus's sampling, its accountants and its gradients of other "
        "layers were not looked at here. [What Opacus 1.6 does differently](opacus.md) lists more inputs of the two "
        "embedding layers, with the reason for each, and what samelaw does with them.",
        "",
    ]
    return "\n".join(lines)


def _section(name: str, about: str, found: dict[str, Any]) -> list[str]:
    refuted = [c for c in TITLES if found[c]["verdict"] == Verdict.REFUTED]
    held = [c for c in TITLES if found[c]["verdict"] not in (Verdict.REFUTED, Verdict.NOT_ASSESSED)]
    lines = [f"## {_short(name)}", "", f"{about[0].upper()}{about[1:]}. `samelaw conform {name} --seed {SEED}`", ""]
    lines.append(f"Held: {', '.join(held)}. Refuted: {', '.join(refuted) or 'none'}.")
    gaps = [f"{c}: {found[c]['smallest_gap']}" for c in ("B4", "B5", "B6") if c in held and found[c]["smallest_gap"]]
    if gaps:
        lines.append(
            "Smallest gaps seen: " + "; ".join(gap.removesuffix(" would have been seen") for gap in gaps) + "."
        )
    lines.append("")
    for claim in refuted:
        item = found[claim]
        lines.append(f"- **{claim}**, first at {item['first']}.")
        others = item["inputs"][1:]
        if others:
            lines.append("  Also: " + "; ".join(others) + ".")
        if item["refuted_tests"]:
            tests = item["refuted_tests"]
            more = f" and {len(tests) - 3} more" if len(tests) > 3 else ""
            lines.append(f"  Tests that refuse: {'; '.join(tests[:3])}{more}.")
    return [*lines, ""] if refuted else lines


def _short(name: str) -> str:
    module, _, factory = name.partition(":")
    package = module.rpartition(".")[2]
    return {"opacus": f"Opacus {factory}", "bench_own": f"samelaw {factory}"}.get(package, factory)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--page", action="store_true", help="write the page again from the figures on disk")
    arguments = parser.parse_args()
    if arguments.page:
        figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    else:
        figures = measure(lambda line: print(line, flush=True))
        FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    PAGE.write_text(page(figures), encoding="utf-8")
    print(f"written: {FIGURES.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
