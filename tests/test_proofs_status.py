"""The proof status: "proved" is said of the sources that were checked, and of no others."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from samelaw.cli import installed
from samelaw.cli.installed import source_digests
from samelaw.cli.verify import _print_proofs
from samelaw.contract import spec
from samelaw.contract.errors import InputError
from samelaw.equivalence.proofs import ProofStatus, Theorem, constant_value, proof_status, source_digest, theorems
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
    assert "The trainers that call these functions, the textbook ones included, are tested, not proved" in text
    assert "textbook trainer" not in text


def test_the_terminal_says_proved_of_nothing_but_what_was_checked(capsys):
    by_hand = replace(THEOREM, bound="by hand", theorem="Bounds.far")
    _print_proofs([status(THEOREM, SOURCES), status(by_hand, SOURCES), status(replace(THEOREM, claim="R1"), {})])
    first, second, third, last = capsys.readouterr().out.splitlines()
    assert first == "E1  PROVED       of lazy_schedule.py and rows.py as installed: Replay.same"
    assert second.endswith("of a model written by hand after lazy_schedule.py and rows.py as installed: Bounds.far")
    assert third.startswith("R1  not proved for this source: reference/lazy_schedule.py is missing here")
    assert "PROVED" not in third
    assert last.endswith("the trainers that call their functions are tested.")


def test_a_constant_is_named_with_its_file_and_mathematics_alone_names_none(capsys):
    margin = {"reference/truncation.py": "a" * 64, "contract/spec.py#CLIP_MARGIN": "b" * 64}
    alone = replace(THEOREM, bound="none", sources={})
    _print_proofs([status(replace(THEOREM, claim="S1", sources=margin), margin), status(alone, {})])
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == "S1  PROVED       of truncation.py and CLIP_MARGIN of spec.py as installed: Replay.same"
    assert second == "E1  PROVED       as mathematics alone: Replay.same"


def test_the_digest_of_a_constant_is_of_its_value_and_of_nothing_else():
    text = b"# why\nMARGIN = 2.0**-20\nOTHER = 1\n"
    digest = source_digest(text, "MARGIN")
    assert source_digest(b"OTHER = 2\nMARGIN = 2.0 ** -20  # layout\n", "MARGIN") == digest
    assert source_digest(text.replace(b"-20", b"-21"), "MARGIN") != digest
    for wrong in (b"OTHER = 1\n", text + b"MARGIN = 0\n", b"MARGIN = (\n"):
        with pytest.raises(InputError, match="assigned"):
            source_digest(wrong, "MARGIN")


@pytest.mark.parametrize(
    "again",
    [
        "CLIP_MARGIN -= 2.0**-3",
        "CLIP_MARGIN = 0.0",
        "CLIP_MARGIN: float = 0.0",
        "OTHER = CLIP_MARGIN = 0.0",
        "OTHER, CLIP_MARGIN = 0.0, 0.0",
        "for CLIP_MARGIN in (0.0,):\n    pass",
        "with open('f') as CLIP_MARGIN:\n    pass",
        "if True:\n    CLIP_MARGIN = 0.0",
        "print(CLIP_MARGIN := 0.0)",
        "del CLIP_MARGIN",
        "import math as CLIP_MARGIN",
        "import CLIP_MARGIN",
        "from math import tau as CLIP_MARGIN",
        "from math import *",
        "def f():\n    global CLIP_MARGIN\n    CLIP_MARGIN = 0.0",
        "def CLIP_MARGIN():\n    pass",
        "class CLIP_MARGIN:\n    pass",
        "try:\n    pass\nexcept OSError as CLIP_MARGIN:\n    pass",
        "match 0:\n    case CLIP_MARGIN:\n        pass",
        "globals()['CLIP_MARGIN'] = 0.0",
    ],
)
def test_a_proved_constant_that_is_bound_again_in_any_way_is_refused(again, monkeypatch, tmp_path):
    """A proof about 2^-20 says nothing of a trainer that clips with another number."""
    text = (ROOT / "contract" / "spec.py").read_bytes()
    source_digest(text, "CLIP_MARGIN")
    changed = text + b"\n" + again.encode() + b"\n"
    with pytest.raises(InputError, match="assigned"):
        source_digest(changed, "CLIP_MARGIN")
    (tmp_path / "spec.py").write_bytes(changed)
    monkeypatch.setattr(installed, "files", lambda _: tmp_path)
    source = "contract/spec.py#CLIP_MARGIN"
    (digest,) = source_digests([source]).values()
    assert digest not in {t.sources.get(source) for t in theorems()}


def test_a_constant_that_is_another_number_once_imported_is_not_the_proved_one(monkeypatch):
    source = "contract/spec.py#CLIP_MARGIN"
    text = (ROOT / "contract" / "spec.py").read_bytes()
    assert source_digests([source]) == {source: source_digest(text, "CLIP_MARGIN")}
    assert constant_value(text, "CLIP_MARGIN") == spec.CLIP_MARGIN == 2.0**-20
    monkeypatch.setattr(spec, "CLIP_MARGIN", 2.0**-20 - 2.0**-3)
    assert source_digests([source]) != {source: source_digest(text, "CLIP_MARGIN")}
    found = proof_status(source_digests(s for t in theorems() for s in t.sources))
    lost = {s.theorem.theorem for s in found if not s.proved}
    assert "Sensitivity.contribution_within_clip_norm" in lost


@pytest.mark.parametrize("value", ["f()", "2.0**-a", "'text'", "2.0 * 3"])
def test_a_proved_constant_must_be_written_as_a_number(value):
    with pytest.raises(InputError, match="must be a number"):
        constant_value(f"M = {value}\n".encode(), "M")
