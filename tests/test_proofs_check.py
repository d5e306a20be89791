"""The proofs as a whole, and what their machinery refuses: a check that has never failed is a hope."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "proofs"))

import check
import coq
import translate

SCHEDULE, TRUNCATION = translate.TARGETS
needs_coq = pytest.mark.skipif(
    coq.find() is None, reason="Coq is not installed here, so the proofs are not checked; README says how to install it"
)


def source(target: translate.Target = SCHEDULE) -> str:
    return (translate.ROOT / target.source).read_text(encoding="utf-8")


@needs_coq
def test_every_proof_holds_and_is_about_the_python_that_runs(capsys):
    assert check.main([]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "Schedule.lazy_is_eager" in printed
    assert "theorems in" in printed


def test_generated_theories_are_what_the_sources_translate_to():
    check.check_generated()


def test_no_theory_assumes_anything_on_the_quiet():
    check.check_words(check.theories())


@pytest.mark.parametrize(
    "line",
    [
        "Admitted.",
        "Axiom x : False.",
        "Parameter p : nat.",
        "  admit.",
        "Conjecture c : 1 = 2.",
        "Unset Guard Checking.",
    ],
)
def test_a_word_that_would_assume_something_is_found(line):
    with pytest.raises(check.ProofError, match=line.split()[0].strip(".")):
        check.check_words({"Bad": f"Lemma l : 1 = 1.\n{line}\n"})


def test_such_a_word_inside_a_comment_is_no_assumption():
    check.check_words({"Good": "(* Axiom (* nested *) Admitted *) Lemma l : 1 = 1. Proof. reflexivity. Qed."})


def test_an_axiom_that_is_not_on_the_list_is_refused():
    printed = "@@ T.x\nAxioms:\nmystery : forall n : nat, n = 0\nClassical_Prop.classic : forall P : Prop, P \\/ ~ P\n"
    found = check.assumptions(printed)
    assert found == {"T.x": ["Classical_Prop.classic", "mystery"]}
    with pytest.raises(check.ProofError, match="mystery"):
        check.check_assumptions(check.Claims.read(), found)
    assert check.assumptions("@@ T.y\nClosed under the global context\n") == {"T.y": []}


def test_what_cannot_be_read_is_no_pass():
    with pytest.raises(check.ProofError, match="cannot be read"):
        check.assumptions("@@ T.x\nsomething else\n")


def test_every_link_of_the_table_of_claims_leads_somewhere():
    claims = check.Claims.read()
    check.check_links(claims)
    check.check_digests(claims)


def test_a_stale_digest_is_found():
    claims = check.Claims.read()
    stale = check.Claims(claims.allowed, claims.claims, claims.digests | {"reference/rows.py": "0" * 64})
    with pytest.raises(check.ProofError, match=r"another reference/rows\.py"):
        check.check_digests(stale)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("    due = distinct(rows)\n", "    due = sorted(rows)\n", "whole right-hand side"),
        ("    due = distinct(rows)\n", "    due = rows if until else rows\n", "test"),
        ("    due = distinct(rows)\n", "    if until:\n        due = distinct(rows)\n", "outside the subset"),
        ("    due = distinct(rows)\n", "    other = weights\n    due = distinct(rows)\n", "one name only"),
        ("    due = distinct(rows)\n", "    due = distinct(rows)\n    due += due\n", "outside the subset"),
        ("history[due] = until", "history[due] = rows", "is wanted"),
        ("step + 1, weights[everyone]", "step - 1, weights[everyone]", "no translation"),
        ("def settle_rows(", "@cache\ndef settle_rows(", "decorators"),
        ("until: int, rows: Rows, owed", "until: int, rows, owed", "needs a type"),
        ("history, step, touched, owed)", "weights, step, touched, owed)", "is wanted"),
        ("    touched, gradient, side = model(read)\n    weights", "    side = model(read)\n    weights", "not bound"),
        ("        side = eager_step(", "        print(step)\n        side = eager_step(", "whole right-hand side"),
    ],
)  # fmt: skip
def test_the_translator_refuses_what_is_outside_its_language(old, new, why):
    text = source()
    assert old in text, "the case no longer applies"
    with pytest.raises(translate.Refused, match=why):
        translate.translate(text.replace(old, new, 1), SCHEDULE)


@pytest.mark.parametrize(
    ("old", "new"),
    [("np.trunc(", "np.floor("), ("np.int64)", "np.int32)"), ("target / norm", "math.nextafter(target / norm, 2)")],
)
def test_the_translator_refuses_other_arithmetic(old, new):
    assert old in source(TRUNCATION)
    with pytest.raises(translate.Refused):
        translate.translate(source(TRUNCATION).replace(old, new, 1), TRUNCATION)


def test_a_refusal_names_file_line_and_text():
    with pytest.raises(translate.Refused, match=r"reference/lazy_schedule\.py:\d+: .*: while True:"):
        translate.translate(source() + "\nwhile True:\n    pass\n", SCHEDULE)
