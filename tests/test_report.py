"""The report page: readable by anybody, self-contained, escaped, and silent about rows, seeds and batch sizes."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from samelaw.contract.errors import SchemaError
from samelaw.contract.evidence import Disagreement, Evidence, TestResult, Verdict
from samelaw.contract.ledger import Ledger
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import PrivacySpec
from samelaw.equivalence import schemas
from samelaw.equivalence.report import page, without_rows, write_report

SPEC = PrivacySpec(
    clip_norm=0.5, noise_multiplier=1.1, sampling_rate=0.01, expected_batch_size=100.0, delta=1e-5,
    schedule=Schedule.constant(0.1, steps=160),
)  # fmt: skip
DIGEST = "ab" * 32


STATEMENT = {
    "schema": "samelaw.statement/3",
    "lower": 1.81,
    "estimate": 1.82,
    "upper": 1.84,
    "delta": 1e-5,
    "generator_delta": 2e-7,
    "total_delta": 1.02e-5,
    "generator": "the cut adds at most 2e-7",
    "engine": "contour",
    "note": "",
    "reason": "composition of subsampled steps",
    "second_opinion": 1.84,
    "second_engine": "dp-accounting PLD",
    "renyi": None,
    "mechanism": {"sampling_rate": 0.01, "noise_multiplier": 1.0, "steps": 80},
    "plan": {
        "phases": [{"sampling_rate": 0.01, "noise_multiplier": 1.0, "steps": 80}],
        "assumptions": {
            "adjacency": "add_remove",
            "sampler": "poisson",
            "examples_per_unit": 1,
            "released": "every_iterate",
            "public_batch_size": True,
        },
        "spends": [],
    },
    "adjacency": "add_remove",
    "assumptions": ["Poisson", "q"],
    "not_included": ["the density error of the generator"],
    "caveats": [],
}


def manifest(kind="verify", **changed):
    record = {
        "schema": "samelaw.manifest/1",
        "kind": kind,
        "created": "2026-11-22T20:01:02+00:00",
        "workload": {"name": "movielens-100k", "source": "recbole==1.2.1", "licence": "research", "notes": {"n": 3}},
        "law": SPEC.to_json(),
        "law_digest": SPEC.digest(),
        "key": {"origin": "os", "commitment": DIGEST},
        "ledger": {"head": DIGEST, "entries": 162},
        "statement": STATEMENT,
        "options": {"device": "cpu", "fault": None},
        "files": {"ledger.jsonl": DIGEST},
        "environment": {"python": "3.11.7"},
    }
    if kind == "verify":
        record["verdict"] = "HOLDS"
    return record | changed


def one_test(name="scale, touched rows", verdict=Verdict.EQUIVALENT):
    return TestResult(name, verdict, 0.001, 0.01, 12345, 1e-11, 0.021, 0.999999, "relative error of the std")


def law(verdict=Verdict.EQUIVALENT, **changed):
    bins = [
        {
            "steps_owed": k,
            "owed": k * 1e-4,
            "received_over_owed": 1.0,
            "usual_low": 0.9,
            "usual_high": 1.1,
            "samples": 9,
        }
        for k in (1, 2, 3.5)
    ]
    quantiles = {"probability": [0.1, 0.5, 0.9], "found": [-1.3, 0.0, 1.3], "samples": 500}
    numbers = {
        "mode": "aggregate",
        "quantiles": {"touched rows": quantiles, "idle rows": quantiles},
        "variance_by_steps_owed": {"touched rows": bins, "idle rows": bins},
        "settlement_delays": {"at_most": [1, 2, 4], "settlements": [5, 6, 7]},
    }
    tests = (one_test(), one_test("scale, idle rows"))
    return replace(
        Evidence("L1", "The noise follows its law.", verdict, "Fine.", "edge cases", None, tests, numbers), **changed
    )


def claim(name="E1", verdict=Verdict.EQUAL, **changed):
    return replace(Evidence(name, "A claim.", verdict, "All the same.", "a scope"), **changed)


WRONG = Disagreement("step 3, read of 'user', row 4711, dimension 2", "0.5 (bits 3f000000)", "0.25 (bits 3e800000)")
CURVE = SimpleNamespace(steps=[1, 20, 40], loss=[0.69, 0.65, 0.6], auc=[0.5, 0.6, 0.7])
SERIES = {
    "curves": {"movielens-100k, replay": {"lazy": CURVE, "eager": CURVE}},
    "epsilon": {
        "steps": [1, 80, 160],
        "lower": [0.2, 1.0, 1.8],
        "estimate": [0.2, 1.0, 1.81],
        "upper": [0.3, 1.1, 1.84],
    },
}


class Tags(HTMLParser):
    """Checks nesting, and collects attributes and ids."""

    VOID = {"meta", "br", "link", "img"}

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.ids, self.names = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    return tags


def test_the_verdict_comes_first_and_in_words():
    text = page(manifest(), [claim(), law()], SERIES)
    words = re.sub(r"<[^>]+>", " ", text[text.index("<body>") :]).replace("\u00a0", " ")
    assert words.index("Nothing that was checked tells the fast private trainer from the textbook one") < 200
    assert "at most ε = 1.84 at δ = 1.02e-05" in words
    assert "2 checks: 1 found everything equal to the bit, 1 held" in words


def test_what_a_tolerance_could_cost_stands_beside_the_price():
    sentence = "A noise scale 1 % too small could have passed; it would make epsilon at most 1.86 instead of <1.83>."
    one = law(numbers={**law().numbers, "tolerances": [{"sentence": sentence}]})
    text = page(manifest(), [claim(), one], SERIES)
    assert sentence.replace("<", "&lt;").replace(">", "&gt;") in text[text.index("<h2>Privacy cost</h2>") :]
    assert "What the tolerances" not in page(manifest(), [claim(), law()], SERIES)


def test_a_refuted_claim_turns_the_headline():
    text = page(manifest(), [claim(), claim("S1", Verdict.REFUTED, first_disagreement=WRONG)], {})
    assert "does not do the same as the textbook one: claim S1 fails" in text
    assert "not fit for release" in text
    assert "Nothing that was checked" not in text


def test_a_planted_fault_is_said_to_be_planted():
    caught = page(
        manifest(options={"fault": "off-by-one"}), [claim("E1", Verdict.REFUTED, first_disagreement=WRONG)], {}
    )
    assert "planted on purpose, off-by-one, was caught: claim E1 fails" in caught
    missed = page(manifest(options={"fault": "off-by-one"}), [claim()], {})
    assert "NOT caught" in missed
    assert 'class="verdict bad"' in missed


def test_the_page_asks_for_nothing_from_outside():
    tags = parsed(page(manifest(), [claim(), law()], SERIES))
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(tags.names)
    for key, value in tags.attributes:
        assert key not in {"src", "srcset"}
        assert not key.startswith("on")
        if key in {"href", "xlink:href"}:
            assert value.startswith("#")
        assert "http:" not in (value or "")
        assert "https:" not in (value or "")
    assert "@import" not in page(manifest(), [claim()], {})


def test_every_reference_inside_a_plot_has_its_target_and_ids_do_not_clash():
    text = page(manifest(), [claim(), law()], SERIES)
    ids = parsed(text).ids
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    assert referred
    assert referred <= set(ids)


def test_plots_take_the_colours_of_the_page():
    text = page(manifest(), [claim(), law()], SERIES)
    svgs = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(svgs) == 5
    for svg in svgs:
        assert "#0" not in re.sub(r'(href|clip-path)="[^"]*"', "", svg)
        assert "currentColor" in svg
        assert "<text" in svg  # text stays text
        assert 'aria-label="' in svg
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("nasty", ["<script>alert(1)</script>", '"><b>&', "'>"])
def test_everything_is_escaped(nasty):
    record = manifest()
    record["workload"] = {"name": nasty, "source": nasty, "licence": nasty, "notes": {nasty: [nasty]}}
    record["statement"] = record["statement"] | {"engine": nasty}
    record["options"] = {nasty: nasty}
    record["files"], record["environment"] = {nasty: nasty}, {nasty: nasty}
    odd = Disagreement(nasty, nasty, nasty)
    tests = (replace(one_test(), name=nasty, gap=nasty, note=nasty),)
    evidence = [
        claim(
            "E1", Verdict.REFUTED, title=nasty, summary=nasty + "!", scope=nasty, first_disagreement=odd, tests=tests
        ),
        law(scope=nasty),
    ]
    text = page(record, evidence, {"curves": {nasty: {"lazy": CURVE}}})
    assert nasty not in text
    tags = parsed(text)
    assert not {"script", "b"} & set(tags.names)


def test_no_row_and_no_seed_is_named():
    refuted = claim("E1", Verdict.REFUTED, summary=f"The twins part at {WRONG}.", first_disagreement=WRONG)
    other = claim("R1", Verdict.REFUTED, summary="A release lacks noise.", first_disagreement=WRONG)
    text = page(manifest(), [refuted, other], {})
    assert "4711" not in text
    assert "dimension 2" in text
    assert "0.25 (bits 3e800000)" in text
    assert without_rows("rows 7, 19, 512; row 3") == "rows (not shown); row (not shown)"
    assert without_rows("a row several times") == "a row several times"


def test_a_seeded_key_is_a_warning():
    seeded = manifest(key={"origin": "seed", "commitment": DIGEST})
    for kind, evidence in (("verify", [claim()]), ("train", [])):
        seeded["kind"] = kind
        text = page(seeded, evidence, {})
        headline = text[text.index('<div class="verdict') : text.index("</header>") + 900]
        assert re.search("[Dd]o not release", headline)
        assert 'class="verdict open"' in headline  # not green: the price is no promise about these weights
    assert "o not release" not in page(manifest(), [claim()], {})


def test_the_headline_promises_no_more_than_the_manifest():
    statement = {**manifest()["statement"], "upper": 4.403848, "delta": 3e-6, "total_delta": 4.0340e-06}
    assert "ε\u00a0=\u00a04.41 at δ\u00a0=\u00a04.04e-06" in page(manifest(statement=statement), [claim()], {})
    tiny = {**statement, "upper": 1e-300}
    assert "ε\u00a0=\u00a01e-300" in page(manifest(statement=tiny), [claim()], {})


def test_a_training_run_has_no_claims_but_its_price_and_plots():
    series = {"curves": {"lazy": CURVE}, "delays": np.array([1, 2, 3, 9, 0]), "epsilon": [(1, 0.2), (80, 1.0)]}
    text = page(manifest("train"), [], series)
    assert "was trained with differential privacy" in text
    assert "<h2>Claims</h2>" not in text
    assert text.count("<svg") == 3
    assert "at least" not in text
    parsed(text)


@pytest.mark.parametrize(
    "series", [{}, {"curves": {}}, {"curves": {"a": {"lazy": {"steps": [], "loss": [], "auc": []}}}}]
)
def test_nothing_to_plot_is_no_error(series):
    parsed(page(manifest(), [claim()], series))


def test_a_not_assessed_claim_is_counted_as_such():
    text = page(manifest(), [claim(), claim("S1", Verdict.NOT_ASSESSED)], {})
    assert "1 had too little to judge by" in text


def test_the_page_is_written_whole_and_the_same_twice(tmp_path):
    write_report(tmp_path / "report.html", manifest(), [claim(), law()], SERIES)
    first = (tmp_path / "report.html").read_text(encoding="utf-8")
    write_report(tmp_path / "report.html", manifest(), [claim(), law()], SERIES)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == first
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


# --- schemas ----------------------------------------------------------------------------------------------------


def test_evidence_of_every_kind_matches_its_schema():
    evidence = [
        claim(),
        law(),
        claim("S1", Verdict.REFUTED, first_disagreement=WRONG, numbers={"x": np.float64(np.inf), "y": np.int64(3)}),
        claim("A1", Verdict.NOT_ASSESSED, tests=(replace(one_test(), statistic=float("nan"), detectable=None),)),
    ]
    record = json.loads(json.dumps(schemas.evidence_record(evidence), allow_nan=False))
    schemas.check_evidence(record)
    assert record["holds"] is False
    assert record["claims"][2]["numbers"] == {"x": None, "y": 3}
    assert record["claims"][2]["first_disagreement"]["where"] == WRONG.where
    assert schemas.evidence_record([])["holds"] is False
    assert schemas.evidence_record([claim()])["holds"] is True


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda r: r.update(schema="samelaw.evidence/1"), "schema"),
        (lambda r: r["claims"][0].update(verdict="PASSED"), "claims/0"),
        (lambda r: r["claims"][0].update(verdict="REFUTED"), "claims/0"),  # without a disagreement
        (lambda r: r["claims"][1]["tests"][0].pop("false_alarm"), "claims/1/tests/0"),
        (lambda r: r["claims"][1]["tests"][0].update(power=2), "claims/1/tests/0/power"),
        (lambda r: r.update(extra=1), "top level"),
    ],
)
def test_evidence_that_does_not_match_is_refused_by_place(change, place):
    record = schemas.evidence_record([claim(), law()])
    change(record)
    with pytest.raises(SchemaError, match=place):
        schemas.check_evidence(record)


@pytest.mark.parametrize("kind", ["verify", "train"])
def test_a_manifest_matches_its_schema(kind):
    schemas.check_manifest(manifest(kind))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["options"].update(seed=3),
        lambda r: r["key"].update(words=[1]),
        lambda r: r["key"].update(commitment="short"),
        lambda r: r["law"].pop("delta"),
        lambda r: r.update(created="yesterday"),
        lambda r: r.pop("verdict"),
        lambda r: r["statement"].pop("upper"),
        lambda r: r["statement"].pop("total_delta"),
        lambda r: r["statement"].update(generator_delta=None),
        lambda r: r["statement"].update(generator_delta=-1e-9),
        lambda r: r["statement"].update(schema="samelaw.statement/2"),
        lambda r: r["statement"].update(seed=3),
        lambda r: r["statement"]["mechanism"].update(steps=-1),
        lambda r: r["statement"]["plan"].pop("spends"),
        lambda r: r["files"].update(x="not a digest"),
        lambda r: r.update(batch_sizes=[1, 2]),
    ],
)
def test_a_manifest_that_says_too_much_or_too_little_is_refused(change):
    record = json.loads(json.dumps(manifest()))
    change(record)
    with pytest.raises(SchemaError, match=r"manifest\.json does not match"):
        schemas.check_manifest(record)


def test_a_training_manifest_claims_no_verdict():
    with pytest.raises(SchemaError):
        schemas.check_manifest(manifest("train", verdict="HOLDS"))


def ledger_lines():
    ledger = Ledger()
    law = {"law": SPEC.to_json(), "law_digest": SPEC.digest(), "key_commitment": DIGEST, "key_origin": "os"}
    ledger.append("open", law | {"tables": {"a": [10, 4, None], "b": [3, 4, 0]}, "dense": {"w": [2, 2]}, "examples": 7})
    ledger.append("step", {"step": 0, "examples": 0, "lr": 0.1, "noise_std": 0.5, "sampler": "keyed-poisson"})
    ledger.append("checkpoint", {"step": 1})
    ledger.append("resume", {"step": 1, "seq": 2, "head": DIGEST})
    ledger.append("settle", {"step": 1, "rows": {"a": 10, "b": 2}})
    ledger.append("release", {"step": 1})
    return [entry.line() for entry in ledger.entries]


def test_every_event_of_a_ledger_matches_its_schema():
    schemas.check_ledger_lines(ledger_lines())


@pytest.mark.parametrize(
    ("line", "old", "new"),
    [
        (0, '"examples":7', '"examples":0'),
        (0, '"tables":{"a":[10,4,null]', '"tables":{"a":[10,4]'),
        (1, '"sampler":"keyed-poisson"', '"sampler":"shuffled"'),
        (1, '"lr":0.1,', ""),
        (4, '"a":10', '"a":-1'),
        (5, '"event":"release"', '"event":"publish"'),
    ],
)
def test_a_line_of_another_shape_is_refused_by_number(line, old, new):
    lines = ledger_lines()
    assert old in lines[line]
    lines[line] = lines[line].replace(old, new)
    with pytest.raises(SchemaError, match=f"line {line + 1}"):
        schemas.check_ledger_lines(lines)


def test_a_line_that_is_no_json_is_refused():
    with pytest.raises(SchemaError, match="line 1"):
        schemas.check_ledger_lines(["{"])
