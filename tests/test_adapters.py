"""The adapters behave on the bench as docs/bench-findings.md says, and the page says what the figures say."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from samelaw.cli.bench_own import Lazy, reference
from samelaw.contract.bench import Abilities
from samelaw.contract.evidence import Evidence, Verdict
from samelaw.equivalence.bench.conduct import Outcome, run_here
from samelaw.equivalence.bench.conform import conform
from samelaw.equivalence.bench.problems import Job

SLOW = {f"samelaw.cli.bench_own:{name}" for name in ("Eager", "Lazy", "LazyBridge", "LazyAggregate")}


def script() -> ModuleType:
    """benchmarks/bench_findings.py, which is no package's module."""
    path = Path(__file__).parent.parent / "benchmarks" / "bench_findings.py"
    spec = importlib.util.spec_from_file_location("bench_findings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FINDINGS = script()
FIGURES: dict[str, Any] = json.loads(FINDINGS.FIGURES.read_text(encoding="utf-8"))


@cache
def assess(trainer: str, runs: int = 2) -> dict[str, Evidence]:
    module, _, name = trainer.partition(":")
    factory = getattr(import_module(module), name)
    found = conform(lambda job: run_here(factory, job), factory.abilities, runs=runs, seed=20, twin=reference)
    return {item.claim: item for item in found}


def test_the_page_is_made_from_the_figures() -> None:
    assert FINDINGS.PAGE.read_text(encoding="utf-8") == FINDINGS.page(FIGURES)


def test_the_figures_hold_every_trainer_and_opacus_16() -> None:
    assert set(FIGURES["trainers"]) == set(FINDINGS.TRAINERS)
    assert FIGURES["versions"]["opacus"].startswith("1.6")


def needs(trainer: str) -> None:
    if ".opacus:" not in trainer:
        return
    pytest.importorskip("opacus", reason="the findings about Opacus need it: pip install opacus==1.6.0")
    if version("opacus") != FIGURES["versions"]["opacus"]:
        pytest.skip(f"the page is about Opacus {FIGURES['versions']['opacus']}; make findings measures another")


@pytest.mark.parametrize("trainer", [t for t in FINDINGS.TRAINERS if t not in SLOW])
def test_the_same_claims_are_refuted_again_with_other_seeds(trainer: str) -> None:
    needs(trainer)
    found = assess(trainer)
    then = {claim for claim, item in FIGURES["trainers"][trainer].items() if item["verdict"] == Verdict.REFUTED}
    assert {claim for claim, item in found.items() if item.verdict is Verdict.REFUTED} == then


@pytest.mark.slow
@pytest.mark.parametrize("trainer", sorted(SLOW))
def test_the_same_claims_are_refuted_again_by_the_slow_ones(trainer: str) -> None:
    test_the_same_claims_are_refuted_again_with_other_seeds(trainer)


def test_the_inputs_that_show_what_ghost_clipping_does_are_the_same_again() -> None:
    trainer = "samelaw.adapters.opacus:EmbeddingBagGhost"
    needs(trainer)
    # These inputs are judged without noise, so the figures do not depend on a seed.
    for claim in ("B2", "B3"):
        found = FINDINGS.figures_of(list(assess(trainer).values()))[claim]["inputs"]
        assert found == FIGURES["trainers"][trainer][claim]["inputs"]
    assert any("ids [3] * 20): 20 C" in line for line in FIGURES["trainers"][trainer]["B3"]["inputs"])


KEYED = Abilities(noise="keyed", noise_off=True, padding=True)


def test_keyed_noise_must_have_the_bits_of_its_own_key() -> None:
    def run(job: Job) -> Outcome:
        other_key = job.name == "the noise of one step"
        return run_here(lambda problem, seed: Lazy(problem, seed + other_key), job)

    found = {item.claim: item for item in conform(run, KEYED, runs=2, seed=20, twin=reference)}
    wrong = found.pop("E1").first_disagreement
    assert wrong is not None
    assert wrong.where.startswith("the noise of one step")  # so every run before it, of 8 steps too, had the bits
    assert all(item.verdict.holds for item in found.values())  # another key is another noise of the same law


def test_eana_is_told_apart_by_rows_that_never_got_noise() -> None:
    wrong = assess("samelaw.adapters.eana:EANA")["B5"].first_disagreement
    assert wrong is not None
    assert "noise in every column" in wrong.expected
    assert "349 of 349" in wrong.found  # rows of the item table that no batch of the run reads
