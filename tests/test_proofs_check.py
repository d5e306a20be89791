"""The proofs as a whole, and what their machinery refuses: a check that has never failed is a hope."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "proofs"))

import check
import coq
import translate
import vernacular

SCHEDULE, TRUNCATION = translate.TARGETS
UNUSABLE = coq.unusable()
needs_coq = pytest.mark.skipif(UNUSABLE is not None, reason=f"the proofs are not checked here: {UNUSABLE}")
OPAQUE = "@@ about {0}\n{0} : forall x : nat, x = x\n\n{0} is opaque\nExpands to: Constant samelaw.{0}\n"


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
    with pytest.raises(vernacular.TheoryError, match=line.split()[0].strip(".")):
        check.check_words({"Bad": f"Lemma l : 1 = 1.\n{line}\n"})


def test_such_a_word_inside_a_comment_is_no_assumption():
    check.check_words({"Good": "(* Axiom (* nested *) Admitted *) Lemma l : 1 = 1. Proof. reflexivity. Qed."})


def test_an_axiom_that_is_not_on_the_list_is_refused():
    printed = (
        "@@ T.x\nAxioms:\nmystery : forall n : nat, n = 0\nClassical_Prop.classic\n  : forall P : Prop, P \\/ ~ P\n"
    )
    found = check.assumptions(printed + OPAQUE.format("T.x"))
    assert found == {"T.x": ["Classical_Prop.classic", "mystery"]}
    with pytest.raises(check.ProofError, match="mystery"):
        check.check_assumptions(check.Claims.read(), found)
    assert check.assumptions("@@ T.y\nClosed under the global context\n" + OPAQUE.format("T.y")) == {"T.y": []}


@pytest.mark.parametrize(
    "said",
    [
        "something else\n",
        "",
        "Axioms:\n",
        "Axioms:\nClassical_Prop.classic : forall P : Prop, P \\/ ~ P\n\u03a9.any : forall P : Prop, P\n",
        "Axioms:\nClassical_Prop.classic : forall P : Prop, P \\/ ~ P\nany is assumed to be guarded.\n",
        "Axioms:\nany is assumed to be guarded.\n",
        "Section Variables:\nany : forall P : Prop, P\n",
        "Closed under the global context\nAxioms:\nany : forall P : Prop, P\n",
        "Axioms:\n  hidden : forall P : Prop, P\n",
    ],
)
def test_what_cannot_be_read_is_no_pass(said):
    with pytest.raises(check.ProofError, match="cannot be read"):
        check.assumptions("@@ T.x\n" + said + OPAQUE.format("T.x"))


@pytest.mark.parametrize(
    "said",
    [
        "S.x : nat\n\nS.x is transparent\nExpands to: Constant samelaw.S.x\n",
        "S.x : nat\n\nS.x is opaque\nExpands to: Constant samelaw.Release.S.x\n",
        "S.x is opaque\nExpands to: Constant samelaw.S.x\nS.x is opaque\nExpands to: Variable x\n",
    ],
)
def test_a_name_that_is_no_opaque_theorem_of_its_theory_is_refused(said):
    with pytest.raises(check.ProofError, match="not a theorem of its theory"):
        check.assumptions(f"@@ S.x\nClosed under the global context\n@@ about S.x\n{said}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Variable \u03a9 : forall P : Prop, P.", "plain ASCII"),
        ("Variable any : forall P : Prop, P.", "outside a section"),
        ("Section S. End S. #[local] Hypothesis any : forall P : Prop, P.", "outside a section"),
        ("Section S. End T. Context (any : False).", "without its Section"),
        ('Ltac say := idtac "(*". Unset Guard Checking. Ltac said := idtac "*)".', "a comment's mark"),
        ('(* " (* " *) Unset Guard Checking. (* " *) " *)', "a comment's mark"),
        ('Notation "x \\in. y" := (x = y).', "full stop"),
        ('Notation "x "" y" := (x = y).', "a quote"),
        ("(* (* *) Lemma l : True.", "comment with no end"),
        ("Lemma l : True. Proof. idtac", "no end"),
        ("Unset Positivity Checking.", "Unset"),
        ("Lemma l : True. Proof. - { Unset Guard Checking.", "Unset"),
        ("#[bypass_check(guard)] Fixpoint any (n : nat) : False := any n.", "bypass_check"),
        ("#[export, universes(polymorphic)] Instance i : c := d.", "no known kind"),
        ("#[global] Instance i : c := d.", "attribute global"),
        ("Global Instance i : c := d.", "Global"),
        ('Load "../notes/More.v".', "Load"),
        ('Cd "x".', "Cd"),
        ('Redirect "x" Print nat.', "Redirect"),
        ('Add LoadPath "x" as y.', "LoadPath"),
        ('Declare ML Module "x".', "Declare"),
        ("Extraction x.", "Extraction"),
        ("Module Sensitivity. Definition x := 0. End Sensitivity.", "Module"),
        ("Module Type T.", "Module"),
        ("Program Definition x := 0.", "may hold"),
        ("Set Default Proof Mode x.", "may hold"),
        ("Require Import Extraction.", "Extraction"),
        ("Require Import Ltac2.Ltac2.", "may not require"),
        ("Require Import Bad.", "may not require"),
        ("From samelaw Require Import Other.", "may not require"),
        ("From samelaw Require Import Statements.", "may not require"),
        ("From Coq Require Import Uint63.", "may not require"),
        ("Import Bad.", "imported"),
    ],
)  # fmt: skip
def test_a_theory_may_not_assume_load_or_switch_off(text, why):
    with pytest.raises(vernacular.TheoryError, match=why):
        check.check_words({"Bad": text + "\n", "Statements": ""})


def test_a_theory_may_not_take_the_name_of_a_library():
    with pytest.raises(vernacular.TheoryError, match="of its own"):
        check.check_words({"List": "Lemma l : 1 = 1. Proof. reflexivity. Qed.\n"})


@pytest.mark.parametrize("name", ["notes/More.v", "\u03a9.v", "x.txt"])
def test_the_folder_of_theories_holds_plain_theories_alone(tmp_path, monkeypatch, name):
    monkeypatch.setattr(check, "THEORIES", tmp_path)
    (tmp_path / "Good.v").write_text("Lemma l : 1 = 1. Proof. reflexivity. Qed.\n")
    check.check_words(check.theories())
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("Lemma m : 1 = 1. Proof. reflexivity. Qed.\n")
    with pytest.raises((check.ProofError, vernacular.TheoryError)):
        check.check_words(check.theories())


def test_every_claimed_theorem_is_stated_in_full():
    claims, texts = check.Claims.read(), check.theories()
    check.check_statements(claims, texts)
    check.check_definitions(texts)
    fewer = texts["Statements"].replace("Definition Replay__replay_same_bits", "Definition Replay__replay_same", 1)
    with pytest.raises(vernacular.TheoryError, match="not a statement"):
        check.check_statements(claims, texts | {"Statements": fewer})
    with pytest.raises(check.ProofError, match=r"Schedule\.lazy_is_eager"):
        check.check_statements(dataclasses.replace(claims, claims=claims.claims[1:]), texts)
    imported = texts["Statements"].replace("From samelaw Require Monads", "From samelaw Require Import Monads", 1)
    with pytest.raises(vernacular.TheoryError, match="not a statement"):
        check.check_statements(claims, texts | {"Statements": imported})


def test_recording_leaves_the_statements_alone(tmp_path, monkeypatch):
    claims, before = check.Claims.read(), check.theories()["Statements"]
    monkeypatch.setattr(check, "CLAIMS", tmp_path / "claims.toml")
    monkeypatch.setattr(check, "STATUS", tmp_path / "status.json")
    (tmp_path / "claims.toml").write_text("\n[digests]\n")
    check.record(claims, "{}")
    assert check.theories()["Statements"] == before


@pytest.mark.parametrize(
    "planted", ["Definition extra := 0.", "Lemma l : True. Proof. Definition extra := 0. exact I. Qed."]
)
def test_another_definition_behind_a_statement_is_found(planted):
    texts = check.theories()
    with pytest.raises(check.ProofError, match="what the theory GaussianCoupling defines"):
        check.check_definitions(texts | {"GaussianCoupling": texts["GaussianCoupling"] + planted + "\n"})


def test_another_proof_of_the_same_theorem_is_not_another_definition():
    texts = check.theories()
    check.check_definitions(texts | {"Replay": texts["Replay"] + "Lemma l : True. Proof. exact I. Qed.\n"})


@pytest.mark.parametrize("theorem", ["Sensitivity.truncation_shrinks", "GaussianCoupling.blocks_are_independent"])
def test_a_theorem_about_no_generated_definition_is_not_called_generated(theorem):
    claims = check.Claims.read()
    lie = tuple(
        dataclasses.replace(c, bound="generated", sources=("reference/truncation.py",)) if c.theorem == theorem else c
        for c in claims.claims
    )
    with pytest.raises(check.ProofError, match=f"{theorem} is called generated"):
        check.check_statements(dataclasses.replace(claims, claims=lie), check.theories())


@needs_coq
def test_a_theorem_that_says_less_than_its_pin_does_not_compile(tmp_path):
    theory = "Theorem t : forall n : nat, 0 <= n. Proof. induction n; auto. Qed.\n"
    pinned = "From samelaw Require A.\nDefinition A__t : {} := @samelaw.A.t.\n"
    good = pinned.format("forall n : nat, 0 <= n")
    coq.compile_all(tmp_path, {"A": theory, "Statements": good})
    with pytest.raises(coq.CoqError, match="has type"):
        coq.compile_all(tmp_path, {"A": theory, "Statements": pinned.format("forall n : nat, 0 <= n + n")})


@needs_coq
def test_coqchk_sees_a_check_that_was_switched_off(tmp_path):
    off = "Unset Guard Checking. Fixpoint any (P : Prop) (n : nat) {struct n} : P := any P n. Set Guard Checking.\n"
    theory = off + "Theorem t : 1 = 2. Proof. exact (any _ 0). Qed.\n"
    printed = coq.compile_all(
        tmp_path, {"A": theory, "B": "From samelaw Require A.\nPrint Assumptions samelaw.A.t.\nAbout samelaw.A.t.\n"}
    )
    assert "guarded" in printed["B"], "the case no longer applies"
    with pytest.raises(check.ProofError, match="cannot be read"):
        check.assumptions("@@ A.t\n" + printed["B"].replace("\nA.t :", "\n@@ about A.t\nA.t :", 1))
    with pytest.raises(check.ProofError, match="coqchk"):
        check.check_coqchk(check.Claims.read(), coq.recheck(tmp_path, ["A"]), libraries=False)


def coqc_that_says(folder: Path, script: str) -> str:
    path = folder / "coqc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ('[ "$1" = -where ] && echo /nowhere || echo 8.16.1 4.13.1', "Flocq and Coquelicot are not in"),
        ("echo 8.18.0 4.14.1", r"for Coq 8\.16, found 8\.18\.0"),
        ("echo 8.160 4.14.1", r"for Coq 8\.16, found 8\.160"),
        ("echo broken library >&2; exit 2", "fails .broken library."),
        ("exit 0", "says nothing"),
    ],
)
def test_a_coq_that_will_not_do_is_one_plain_message(tmp_path, monkeypatch, capsys, script, why):
    path = coqc_that_says(tmp_path, script)
    monkeypatch.setattr(coq, "find", lambda: path)
    assert check.main([]) == 1
    said = capsys.readouterr().err
    assert re.search(why, said)
    assert "apt-get install" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("path", [None, "/nowhere/coqc"])
def test_no_coq_is_one_plain_message(monkeypatch, capsys, path):
    monkeypatch.setattr(coq, "find", lambda: path)
    assert check.main(["--record"]) == 1
    assert "apt-get install" in capsys.readouterr().err


def test_the_traces_run_on_the_rows_of_this_checkout():
    schedule, _, rows = check.sources()
    assert schedule.distinct is rows.distinct
    assert schedule.each is rows.each
    assert Path(rows.distinct.__code__.co_filename) == translate.ROOT / "reference" / "rows.py"
    assert sys.modules["samelaw.reference.rows"] is not rows


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
