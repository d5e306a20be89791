"""The audit on runs that are as they say, and on runs with planted faults."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers are neighbours, whatever way pytest imports test modules
import audit_runs as runs

from samelaw.audit.auditing import Request, Rows
from samelaw.audit.auditing import audit as judge
from samelaw.audit.findings import Verdict, finding, outcome
from samelaw.audit.folder import RunFolder
from samelaw.audit.record import check_record, public_record
from samelaw.audit.replay import most_wrong, sampled_rows
from samelaw.audit.report_page import page
from samelaw.cli.canary_run import scaled_noise
from samelaw.cli.main import main
from samelaw.contract.errors import InputError
from samelaw.contract.transcript import TranscriptReader
from samelaw.equivalence.faults import FAULTS

EXACT = {"I1", "I2", "I3", "I4", "I5", "I6", "I7", "R1", "R2", "R3", "R4"}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    return runs.make_run(tmp_path_factory.mktemp("good"))


@pytest.fixture(params=["replay", pytest.param("bridge", marks=pytest.mark.slow), "aggregate"])
def each_mode(request: pytest.FixtureRequest, good: runs.Run, tmp_path: Path) -> runs.Run:
    return good.copy(tmp_path) if request.param == "aggregate" else runs.make_run(tmp_path, mode=request.param)


def test_a_good_run_is_executed_again_to_the_bit_in_every_mode(each_mode):
    found = runs.findings(each_mode, replay=True)
    assert {check for check, verdict in found.items() if verdict == "PROVED"} == EXACT
    assert found["A1"] == "EQUIVALENT"
    assert set(found) - EXACT - {"A1"} == {"K1", "R5", "S1", "S2", "S3", "S4"}
    assert all(found[check] == "NOT REFUTED" for check in set(found) - EXACT - {"A1"})
    assert runs.audit(each_mode, replay=True) == 0


def test_the_folder_alone_is_enough_for_integrity_price_and_structure(good, tmp_path):
    run = good.copy(tmp_path)
    found = runs.findings(run)
    assert runs.audit(run) == 0
    assert all(found[check] == "NOT ASSESSED" for check in ("R1", "R2", "R3", "R4", "R5", "S4"))


@pytest.mark.parametrize("beside", [(), ("--key",), ("--transcript",)])
def test_a_replay_that_is_asked_for_and_cannot_be_made_is_inconclusive(good, tmp_path, beside):
    run = good.copy(tmp_path)
    paths = {"--key": run.key, "--transcript": run.transcript}
    options = [part for name in beside for part in (name, paths[name])]
    assert runs.audit(run, "--replay", "all", *options) == 2


@pytest.mark.slow
def test_a_folder_without_initial_weights_is_inconclusive(tmp_path):
    run = runs.make_run(tmp_path, "--no-initial-weights")
    assert not (run.folder / "initial_weights.safetensors").exists()
    found = runs.findings(run)
    assert found["S1"] == "NOT ASSESSED"
    assert runs.audit(run) == 2


@pytest.mark.parametrize(
    ("fault", "without_replay"),
    [
        ("touched-rows-only", {"I7", "S1", "S2", "S3"}),
        pytest.param("no-final-settle", {"I7", "S1", "S2", "S3"}, marks=pytest.mark.slow),
    ],
)
def test_unpaid_rows_are_seen_without_any_key(tmp_path, fault, without_replay):
    run = runs.make_run(tmp_path, prepare=FAULTS[fault].apply)
    assert runs.refuted(run) == without_replay
    assert {"R3", "S4"} <= runs.refuted(run, replay=True)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["off-by-one", "paid-twice", "reused-noise", "last-step-only", "stale-learning-rate"])
def test_every_fault_of_the_noise_is_seen_by_replay(tmp_path, fault):
    run = runs.make_run(tmp_path, prepare=FAULTS[fault].apply)
    assert "R3" in runs.refuted(run, replay=True)


@pytest.mark.slow
def test_a_dense_part_without_noise_is_seen_by_replay(tmp_path):
    run = runs.make_run(tmp_path, prepare=FAULTS["dense-noise-missing"].apply)
    assert runs.refuted(run, replay=True) == {"R4", "S4"}


@pytest.mark.parametrize("mode", [pytest.param("replay", marks=pytest.mark.slow), "aggregate"])
def test_noise_a_tenth_too_small_is_seen_by_replay_alone_in_a_folder_that_is_consistent(tmp_path, mode):
    run = runs.make_run(tmp_path, mode=mode, prepare=scaled_noise(0.9))
    assert runs.refuted(run) == set()
    assert {"R3", "R4"} <= runs.refuted(run, replay=True)


def test_gradients_that_nobody_clipped_exceed_what_their_examples_allow(tmp_path):
    def unclipped(trainer: Any) -> None:
        trainer.square_norms = lambda calls, pooled, dense: dense * 0

    run = runs.make_run(tmp_path, "--clip-norm", "0.0001", prepare=unclipped)
    assert "R5" in runs.refuted(run, replay=True)


@pytest.mark.slow
def test_a_resumed_run_has_one_whole_transcript(good, tmp_path):
    class Stop(Exception):
        pass

    def stopping(trainer: Any) -> None:
        train_batch = trainer.train_batch

        def until_five(batch: Any) -> Any:
            if trainer.step_index == 5:
                raise Stop
            return train_batch(batch)

        trainer.train_batch = until_five

    options = ("--checkpoint-every", "2")
    with pytest.raises(Stop):
        runs.make_run(tmp_path, *options, prepare=stopping)
    run = runs.make_run(tmp_path, *options, "--resume")
    assert runs.audit(run, replay=True) == 0
    with TranscriptReader(run.transcript) as reader:
        assert [step.step for step in reader.steps()] == list(range(runs.STEPS))
    assert (run.folder / "weights.safetensors").stat().st_size == (good.folder / "weights.safetensors").stat().st_size


@pytest.mark.slow
def test_two_runs_with_one_key_are_refuted_and_with_two_keys_are_not(good, tmp_path):
    other = runs.make_run(tmp_path, key=runs.OTHER_KEY)
    assert runs.findings(other, "--other", good.folder)["S5"] == "NOT REFUTED"
    (tmp_path / "same").mkdir()
    same = runs.make_run(tmp_path / "same")
    assert runs.findings(same, "--other", good.folder)["S5"] == "REFUTED"


def test_shared_noise_is_seen_even_where_the_ledgers_name_two_keys(good, tmp_path):
    same = good.copy(tmp_path)
    forged = [
        (event, {**data, "key_commitment": "a" * 64} if event == "open" else data) for event, data in runs.events(same)
    ]
    runs.rewrite_ledger(same, forged)
    runs.edit_manifest(same, lambda m: m["key"].update(commitment="a" * 64))
    assert runs.refuted(same, "--other", good.folder) == {"S5"}


# What a sample says.


def test_a_sample_finds_what_it_looks_at_and_says_what_it_may_have_missed(good, tmp_path):
    run = good.copy(tmp_path)
    request = Request(key=runs.KEY, transcript=run.transcript, rows=Rows.SAMPLE, sample_rows=60)
    with runs.fast_pricing():
        found = {f.check: f for f in judge(run.folder, request, rng=np.random.default_rng(3)).findings}
    assert found["R3"].verdict is Verdict.NOT_REFUTED
    assert found["R3"].detectable == f"more than {most_wrong(340, 60, 0.95)} wrong rows, at confidence 0.95"


def test_most_wrong_is_the_largest_number_that_a_clean_sample_leaves_possible():
    for total, sampled, confidence in ((340, 60, 0.95), (1000, 10, 0.99), (50, 50, 0.95), (10, 1, 0.5)):
        largest = most_wrong(total, sampled, confidence)

        def clean(wrong: int, total: int = total, sampled: int = sampled) -> float:
            return (
                float(np.prod([(total - wrong - i) / (total - i) for i in range(sampled)]))
                if wrong <= total - sampled
                else 0.0
            )

        assert clean(largest) > 1 - confidence
        assert clean(largest + 1) <= (1 - confidence) * (1 + 1e-9)


def test_a_sample_misses_wrong_rows_as_often_as_it_says(good):
    """34 wrong rows of 340, samples of 12: the hypergeometric law misses them all with probability p = .2730. Of 2000
    samples, binomial(2000, p) is more than 100 = 5 sigma from its mean with probability 6e-7; the seeds are fixed."""
    with RunFolder.open(good.folder) as folder:
        samples = [sampled_rows(folder, 12, np.random.default_rng(seed)) for seed in range(2000)]
    assert all(sum(map(len, sample.values())) == 12 for sample in samples)
    missed = sum(not (sample["tables.item"] < 34).any() for sample in samples)
    p = float(np.prod([(340 - 34 - i) / (340 - i) for i in range(12)]))
    assert abs(missed - 2000 * p) <= 100


def test_a_request_out_of_range_is_refused():
    for wrong in ({"confidence": 1.0}, {"confidence": 0.0}, {"sample_rows": 0}):
        with pytest.raises(InputError):
            Request(**wrong)


def test_the_outcome_follows_from_the_findings():
    fine = finding("I1", Verdict.PROVED, "")
    open_ = finding("R3", Verdict.NOT_ASSESSED, "")
    assert outcome([fine]) is Verdict.NOT_REFUTED
    assert outcome([fine, open_]) is Verdict.NOT_ASSESSED
    assert outcome([fine, open_, finding("S1", Verdict.REFUTED, "")]) is Verdict.REFUTED
    assert outcome([]) is Verdict.NOT_ASSESSED


# What is public and what is not.


def test_the_record_matches_its_schema_and_the_page_asks_nobody_for_anything(good, tmp_path):
    run = good.copy(tmp_path)
    runs.audit(run, "--out", tmp_path / "a.html", "--junit", tmp_path / "a.xml", replay=True)
    record = json.loads((tmp_path / "a.record.json").read_text())
    check_record(record)
    assert 0 < record["guarantee"]["generator_delta"] < 1e-6
    html = (tmp_path / "a.html").read_text()
    assert "default-src 'none'" in html
    assert "<script" not in html
    promised = json.loads((tmp_path / "a.record.json").read_text())["guarantee"]["promised_epsilon"]
    odds = float(re.search(r"changes the odds by a factor of at most ([0-9.]+), but", html)[1])
    assert math.exp(promised) <= odds <= 1.01 * math.exp(promised)
    assert "http" not in html.replace("http-equiv", "")
    assert (tmp_path / "a.evidence.json").stat().st_mode & 0o077 == 0
    suite = ElementTree.parse(tmp_path / "a.xml").getroot()
    assert suite.get("tests") == str(len(record["checks"]))
    assert suite.get("failures") == suite.get("errors") == "0"


def test_no_seed_batch_size_row_or_step_of_the_data_is_in_anything_public(good, tmp_path):
    """A folder forged so that private places carry marks: each is found, and none is shown to the public."""
    run = good.copy(tmp_path)
    marked = 271
    runs.rewrite_weights(run, lambda t: t["tables.item.weight"].__setitem__(marked, 0.125))
    runs.audit(run, "--out", tmp_path / "a.html", "--junit", tmp_path / "a.xml", replay=True)
    public = "".join((tmp_path / name).read_text() for name in ("a.html", "a.record.json", "a.xml"))
    private = json.loads((tmp_path / "a.evidence.json").read_text())
    found = next(f for f in private["findings"] if f["check"] == "R3")
    assert found["private"]["first_rows"] == {"tables.item": [marked]}
    drawn = [step["examples"] for event, step in runs.events(run) if event == "step"]
    assert str(marked) not in public
    assert str(drawn)[1:-1] not in public
    numbers = set(_numbers(json.loads((tmp_path / "a.record.json").read_text())))
    allowed = {float(n) for n in (40, 300, 8, 3, 12, 64, 32, 16, 1, 0)}  # shapes, steps, rounds, B: public by the law
    assert not ({float(n) for n in drawn} - allowed) & numbers
    assert runs.KEY.to_bytes().hex() not in public


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for item in value.values() for n in _numbers(item)]
    if isinstance(value, list):
        return [n for item in value for n in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_what_a_transcript_shows_of_the_data_stays_in_the_private_evidence(good, tmp_path):
    run = good.copy(tmp_path)
    request = Request(key=runs.KEY, transcript=run.transcript)
    with runs.fast_pricing():
        found = judge(run.folder, request)
    noise = next(f for f in found.findings if f.check == "S4")
    assert noise.tests
    public = page(public_record(found)) + json.dumps(public_record(found))
    for test in noise.tests:
        assert test.name not in public
        assert f"{test.statistic:.6g}" not in public or test.statistic == 0


def test_the_audit_imports_neither_torch_nor_numba(good, tmp_path):
    run = good.copy(tmp_path)
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        "        assert name.partition('.')[0] not in ('torch', 'numba'), name\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from samelaw.cli.main import main\n"
        f"sys.exit(main(['audit', {str(run.folder)!r}, '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    check_record(json.loads(done.stdout))


@pytest.mark.parametrize(
    "arguments",
    [
        ["audit"],
        ["audit", "--nope"],
        ["audit", "run", "--attack", "zipf"],
        ["audit", "run", "--replay", "some"],
        ["audit", "no-such-folder"],
        ["audit", "/dev/null", "--largest-weights", "nan"],
        ["audit", "/dev/null", "--largest-weights", "-1"],
        ["audit", "/dev/null"],
    ],
)
def test_bad_usage_is_bad_input_and_not_inconclusive(arguments):
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 3


def test_nothing_is_written_into_the_folder_that_is_judged(good, tmp_path):
    run = good.copy(tmp_path)
    before = sorted(path.name for path in run.folder.iterdir())
    for option in ("--out", "--junit"):
        assert runs.audit(run, option, run.folder / "a.html") == 3
    assert runs.audit(run, "--out", tmp_path / "a.txt") == 3
    assert sorted(path.name for path in run.folder.iterdir()) == before


@pytest.mark.parametrize("where", ["in the folder", "there already", "without a folder"])
def test_a_transcript_is_never_shown_or_overwritten(tmp_path, where):
    place = {
        "in the folder": tmp_path / "run" / "t",
        "there already": tmp_path / "t",
        "without a folder": tmp_path / "none" / "t",
    }[where]
    if where == "there already":
        place.touch()
    with pytest.raises(InputError, match="--transcript"):
        runs.make_run(tmp_path, "--transcript", str(place))
