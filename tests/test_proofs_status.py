"""The proof status: "proved" is said of the sources that were checked, and of no others."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from samelaw.cli.installed import source_digests
from samelaw.cli.verify import _print_proofs
from samelaw.contract.errors import InputError
from samelaw.equivalence.proofs import ProofStatus, Theorem, proof_status, source_digest, theorems
from samelaw.equivalence.report import _proofs

ROOT = Path(__file__).parents[1]
SOURCES = {"reference/lazy_schedule.py": "a" * 64, "reference/rows.py": "b" * 64}
THEOREM = Theorem("E1", "Replay.same", "generated", "Lazy & eager agree.", (), SOURCES)


def status(theorem: Theorem, installed: dict[str, str]) -> ProofStatus:
    return proof_status(installed, [theorem])[0]


def test_Q1_a_theorem_counts_for_the_sources_that_were_checked():
    found = status(THEOREM, SOURCES)
    assert found.proved
    assert found.words.startswith("proved of reference/lazy_schedule.py (aaaaaaaaaaaa), reference/rows.py")


@pytest.mark.parametrize("source", SOURCES)
def test_Q1_one_changed_source_takes_the_proof_away_and_both_digests_are_named(source):
    found = status(THEOREM, SOURCES | {source: "c" * 64})
    assert not found.proved
    assert found.words == (
        f"not proved for this source: {source} is cccccccccccc here, and {SOURCES[source][:12]} was checked"
    )


def test_Q1_a_missing_source_takes_the_proof_away():
    assert "missing" in status(THEOREM, {"reference/rows.py": "b" * 64}).words
    assert not status(THEOREM, {}).proved


def test_a_model_written_by_hand_is_called_one():
    by_hand = replace(THEOREM, bound="by hand")
    assert status(by_hand, SOURCES).words.startswith("proved of a model that was written by hand after ")
    alone = replace(THEOREM, bound="none", sources={})
    assert status(alone, {}).words == "proved; mathematics alone, about no source"


def test_every_theorem_on_record_is_about_the_sources_that_are_installed():
    """Red means: a proved source has changed. Run `make proofs-record`, which checks every proof first."""
    everything = theorems()
    assert len(everything) >= 20
    found = proof_status(source_digests(source for t in everything for source in t.sources))
    assert [s.words for s in found if not s.proved] == []


def test_the_record_and_the_table_of_claims_name_the_same_theorems_and_digests():
    claims = tomllib.loads((ROOT / "proofs" / "claims.toml").read_text())
    record = json.loads((ROOT / "equivalence" / "proof_status.json").read_text())
    assert [(c["id"], c["theorem"], c["bound"], c["says"]) for c in claims["claim"]] == [
        (t["claim"], t["theorem"], t["bound"], t["says"]) for t in record["theorems"]
    ]
    for source, recorded in claims["digests"].items():
        path, _, constant = source.partition("#")
        assert source_digest((ROOT / path).read_bytes(), constant) == recorded, source


def test_a_source_that_is_not_installed_has_no_digest():
    assert source_digests(["reference/no_such_file.py"]) == {}
    (digest,) = source_digests(["reference/rows.py"]).values()
    assert digest == hashlib.sha256((ROOT / "reference" / "rows.py").read_bytes()).hexdigest()


def test_the_page_shows_claim_theorem_and_status_and_escapes_them():
    text = _proofs([status(THEOREM, SOURCES), status(replace(THEOREM, claim="R1"), {})])
    assert text.index(">E1<") < text.index(">R1<")
    assert "Lazy &amp; eager agree." in text
    assert text.count("mark good") == 1
    assert text.count("mark open") == 1
    assert "tested, not proved" in text


def test_the_terminal_says_proved_of_nothing_but_what_was_checked(capsys):
    by_hand = replace(THEOREM, bound="by hand", theorem="Bounds.far")
    _print_proofs([status(THEOREM, SOURCES), status(by_hand, SOURCES), status(replace(THEOREM, claim="R1"), {})])
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.endswith("PROVED       of the textbook trainer's sources installed here: Replay.same")
    assert second.endswith("PROVED       of models written by hand after sources installed here: Bounds.far")
    assert third.startswith("R1  not proved for this source: reference/lazy_schedule.py is missing here")
    assert "PROVED" not in third


def test_the_digest_of_a_constant_is_of_its_value_and_of_nothing_else():
    text = b"# why\nMARGIN = 2.0**-20\nOTHER = 1\n"
    digest = source_digest(text, "MARGIN")
    assert source_digest(b"OTHER = 2\nMARGIN = 2.0 ** -20  # layout\n", "MARGIN") == digest
    assert source_digest(text.replace(b"-20", b"-21"), "MARGIN") != digest
    for wrong in (b"OTHER = 1\n", text + b"MARGIN = 0\n"):
        with pytest.raises(InputError, match="assigned"):
            source_digest(wrong, "MARGIN")
