"""The fault catalogue and the command that plants it: no escape goes unseen, and nothing is caught that was not there.

`samelaw faults --quick` runs every fault in CI (.ci/run), and `make faults` in every mode; here is what surrounds them.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from samelaw.cli import bench_runs
from samelaw.cli.bench_runs import Bench
from samelaw.cli.faults_command import planned, run_matrix
from samelaw.cli.main import main
from samelaw.cli.models import Problem
from samelaw.contract.errors import InputError, SchemaError
from samelaw.contract.evidence import Evidence, TestResult, Verdict
from samelaw.contract.noise import NoiseKey, NoiseStream, Purpose
from samelaw.contract.schedule import NoiseClock, Schedule
from samelaw.contract.spec import Mode
from samelaw.equivalence.faults import FAULTS, WITH_KEY, Fault, FaultError, Kind, Scenario, catalogue_digest, settling
from samelaw.equivalence.faults.fault import by_mode, everywhere, patch, tables_of
from samelaw.equivalence.faults.noise import laplace, tail_of_24_bits, uniform
from samelaw.equivalence.faults.redrawn import Redrawn
from samelaw.equivalence.matrix import COLUMNS, STAYS, Finding, Matrix, Outcome, Row, judge, matrix_record, split
from samelaw.equivalence.matrix_page import page, terminal
from samelaw.equivalence.schemas import check_fault_matrix
from samelaw.fast.cpu import CpuKernels
from samelaw.fast.dlrm import bce_loss
from samelaw.fast.kernels import NoisePlan

PAGE = Path(__file__).parent.parent / "docs" / "faults-matrix.md"

ASKED_FOR = [
    "no-final-settle",
    "off-by-one",
    "linear-std",
    "stale-learning-rate",
    "reused-noise",
    "touched-rows-only",
    "per-table-clip",
    "bag-duplicates-once",
    "dense-noise-missing",
    "empty-batch-no-noise",
    "history-lost-on-resume",
    "last-step-only",
    "paid-twice",
    "one-number-per-row",
    "tails-cut",
    "ids-shared-across-tables",
    "dense-norm-ignored",
    "clip-norm-doubled",
    "batch-size-from-data",
    "read-before-settle",
    "flush-off-by-one",
    "own-step-omitted",
    "own-step-doubled",
    "look-ahead-current-batch",
    "fourth-root-std",
    "clip-norm-missing",
    "clip-norm-squared",
    "batch-size-missing",
    "history-advanced-first",
    "duplicates-paid-twice",
    "blocks-repeat",
    "noise-shared-across-rows",
    "noise-shared-across-threads",
    "noise-shared-across-epochs",
    "noise-shared-across-restarts",
    "seed-of-31-bits",
    "tails-end-at-5.77",
    "uniform-noise",
    "laplace-noise",
    "scale-1-percent-low",
    "scale-half-percent-low",
    "one-table-outside",
    "clipped-after-averaging",
    "microstep-advances-history",
    "counter-wraps-at-2^8",
    "counter-wraps-at-2^16",
    "counter-wraps-at-2^31",
    "float32-prefix-sums",
    "half-precision",
    "last-batch-dropped",
    "epoch-resets-history",
    "shuffled-as-poisson",
    "rate-off-by-one-example",
    "noise-shared-between-runs",
]


def fault_of(apply, *, name="planted", claims="N2", scenario=Scenario.EDGE):
    return Fault(name, Kind.NOISE, "A fault of this test.", everywhere(claims), apply, scenario=scenario)


# --- the catalogue ----------------------------------------------------------------------------------------------------


def test_the_catalogue_holds_every_fault_that_was_asked_for_and_says_what_each_is():
    assert set(ASKED_FOR) <= FAULTS.keys()
    assert len(FAULTS) >= 45
    assert {fault.kind for fault in FAULTS.values()} == set(Kind)
    assert {fault.scenario for fault in FAULTS.values()} == set(Scenario)
    for name, fault in FAULTS.items():
        assert fault.name == name
        assert fault.sentence.endswith(".")
        assert fault.modes
        for claims in fault.caught_by.values():
            assert claims
            assert set(claims) <= set(COLUMNS)


def test_every_column_is_named_by_some_fault():
    named = {claim for fault in FAULTS.values() for claims in fault.caught_by.values() for claim in claims}
    assert named == set(COLUMNS)
    assert STAYS.keys() <= set(COLUMNS)


def test_the_committed_page_is_that_of_this_catalogue():
    text = PAGE.read_text(encoding="utf-8")
    assert f"Catalogue `{catalogue_digest()}`" in text, "the catalogue has changed; run `make faults`"
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \|.*\| ([\w ]+) \| ([\d,]*) \|$", text, re.M)
    wanted = [
        (fault.name, str(mode))
        for kind in Kind
        for fault in FAULTS.values()
        if fault.kind is kind
        for mode in fault.modes
    ]
    assert [(name, mode) for name, mode, _, _ in rows] == wanted
    assert "ESCAPE" not in text
    assert "MISSED" not in text
    assert "FALSE ALARM" not in text
    for _, _, first, samples in rows:
        assert first in COLUMNS
        assert int(samples.replace(",", "")) > 0
    for column in COLUMNS:
        said = re.search(rf"^\| {column} \| (.*) \|$", text, re.M)
        assert said, column
        assert "`" in said.group(1) or len(said.group(1)) > len("none. "), f"{column} does not say why it stays"


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_whole_plan_meets_every_fault_in_each_of_its_modes_and_a_sound_run_beside_each():
    trials = list(planned(list(FAULTS.values()), tuple(Mode), quick=False))
    faulty = [(fault.name, mode) for fault, mode, _, _ in trials if fault is not None]
    assert sorted(faulty) == sorted((fault.name, mode) for fault in FAULTS.values() for mode in fault.modes)
    sound = {(mode, scenario) for fault, mode, scenario, _ in trials if fault is None}
    assert sound == {(mode, scenario) for fault, mode, scenario, _ in trials if fault is not None}
    assert all(asked is None for _, _, _, asked in trials)


def test_the_quick_plan_meets_every_fault_once_every_mode_and_every_claim_that_is_named():
    trials = list(planned(list(FAULTS.values()), tuple(Mode), quick=True))
    assert [fault.name for fault, _, _, _ in trials if fault is not None] == list(FAULTS)
    assert {mode for _, mode, _, _ in trials} == set(Mode)
    sound = {(mode, scenario): asked for fault, mode, scenario, asked in trials if fault is None}
    for fault, mode, scenario, asked in trials:
        if fault is not None:
            assert asked <= sound[mode, scenario]
            assert {claim.partition(" ")[0] for claim in fault.caught_by[mode]} == asked


# --- the runner cannot be fooled --------------------------------------------------------------------------------------


def test_a_fault_that_does_nothing_is_an_escape_and_exits_1(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(FAULTS, "inert", fault_of(lambda trainer: None, name="inert", claims="N1, N2"))
    code = main(["faults", "--only", "inert", "--mode", "aggregate", "--quick", "--quiet", "--out", str(tmp_path)])
    assert code == 1
    said = capsys.readouterr()
    assert "ESCAPE: inert, aggregate, not refused by N1, N2" in said.err
    assert "0 of 1 faults" in said.err
    record = json.loads((tmp_path / "fault-matrix.json").read_text())
    assert not record["holds"]
    assert [row["outcome"] for row in record["rows"]] == ["clean", "ESCAPE"]


@pytest.mark.parametrize("claims", ["E1", "L1", "S1", "S2", "C1", "R1", "A2"])
def test_a_fault_that_does_nothing_escapes_each_claim_about_a_run(claims, monkeypatch):
    inert = fault_of(lambda trainer: None, claims=claims)
    matrix = run_matrix([inert], (Mode.REPLAY,), 7, quick=True)
    assert [row.outcome for row in matrix.rows] == [Outcome.CLEAN, Outcome.ESCAPE]
    assert not matrix.holds


def test_a_fault_whose_seam_is_gone_is_an_error_and_not_caught(monkeypatch, capsys):
    stale = fault_of(lambda trainer: patch(trainer, "settle_everything", lambda method: method), name="stale")
    monkeypatch.setitem(FAULTS, "stale", stale)
    assert main(["faults", "--only", "stale", "--mode", "aggregate", "--quick", "--quiet"]) == 2
    assert "has no attribute 'settle_everything'" in capsys.readouterr().err


def test_a_patch_on_what_is_no_method_or_on_no_table_is_an_error():
    class Empty:
        tables = {}
        kernels = None

    with pytest.raises(FaultError, match="is no method"):
        patch(Empty(), "tables", lambda method: method)
    with pytest.raises(FaultError, match="no tables"):
        FAULTS["paid-twice"].apply(Empty())


def test_an_error_inside_a_run_is_not_called_caught(monkeypatch):
    def broken(trainer):
        raise ZeroDivisionError("a bug of the fault itself")

    with pytest.raises(ZeroDivisionError):
        run_matrix([fault_of(broken)], (Mode.AGGREGATE,), 7, quick=True)


def test_a_fault_that_only_some_named_claims_refuse_is_missed(capsys, monkeypatch):
    wraps = FAULTS["counter-wraps-at-2^8"]
    monkeypatch.setitem(FAULTS, "half", fault_of(wraps.apply, name="half", claims="N2, S1"))
    assert main(["faults", "--only", "half", "--mode", "aggregate", "--quick", "--quiet"]) == 1
    assert "MISSED: half, aggregate, not refused by S1" in capsys.readouterr().err


def test_one_fault_of_each_scenario_is_caught_by_the_claims_that_it_names():
    names = ["off-by-one", "counter-wraps-at-2^31", "rate-off-by-one-example", "priced-by-central-limit"]
    matrix = run_matrix([FAULTS[name] for name in names], (Mode.AGGREGATE,), 7, quick=True)
    assert {row.fault: row.outcome for row in matrix.planted} == dict.fromkeys(names, Outcome.CAUGHT)
    assert matrix.holds
    lines = list(terminal(matrix))
    assert any(line.startswith("counter-wraps-at-2^31") and "first by N2" in line for line in lines)


def test_the_worked_example_of_the_docs_is_caught_by_the_claims_that_it_names():
    text = (PAGE.parent / "faults.md").read_text(encoding="utf-8")
    patch_code, fault_code = re.findall(r"```python\n(.*?)```", text, re.S)
    scope = {**vars(settling), "by_mode": by_mode, "Fault": Fault, "Kind": Kind, "tables_of": tables_of}
    exec(patch_code, scope)
    fault = eval(fault_code.strip().rstrip(","), scope)
    matrix = run_matrix([fault], (Mode.AGGREGATE,), 7, quick=True)
    assert [row.outcome for row in matrix.rows] == [Outcome.CLEAN, Outcome.CAUGHT]


def test_no_two_faults_of_the_sampler_draw_the_same_batches(tmp_path):
    # A pass over data that divides into whole batches has no last batch to drop, and two faults are then one.
    bench = Bench(7, tmp_path)
    drawn = {}
    for name, fault in FAULTS.items():
        if fault.kind is Kind.SAMPLING:
            spec = replace(bench.edge.spec, sampling_rate=16 / bench.crowd.examples, expected_batch_size=16.0)
            trainer = bench._trainer(Problem(bench.model.model, bce_loss, bench.crowd.examples), spec, bench.key, fault)
            drawn[name] = tuple(tuple(trainer.sample(ahead=step)) for step in range(20))
    assert len(drawn) == len(set(drawn.values())) >= 6


@pytest.mark.slow
def test_all_sound_runs_of_a_command_share_one_budget(monkeypatch):
    rates = []

    class Watched(Bench):
        def __init__(self, seed, folder, budget=None):
            rates.append(budget.false_alarm)
            super().__init__(seed, folder, budget)

        def evidence(self, scenario, mode, fault, asked=None):
            found = super().evidence(scenario, mode, fault, asked)
            assert self.budget.spent(found) <= self.budget.false_alarm * (1 + 1e-9)
            assert any(test.p_value is not None for claim in found for test in claim.tests)
            return found

    monkeypatch.setattr(bench_runs, "Bench", Watched)
    faults = [FAULTS[name] for name in ("paid-twice", "rate-off-by-one-example", "noise-shared-between-runs")]
    assert run_matrix(faults, (Mode.AGGREGATE,), 7, quick=False).holds
    assert rates == [1e-9 / 3]


@pytest.mark.slow
def test_nothing_escapes_in_any_mode_and_no_sound_run_is_refused():
    matrix = run_matrix(list(FAULTS.values()), tuple(Mode), 11, quick=False)
    assert [(row.fault, str(row.mode), row.missed, row.caught_by) for row in matrix.rows if not row.holds] == []
    check_fault_matrix(matrix_record(matrix))


# --- judging ----------------------------------------------------------------------------------------------------------


def law_test(name, verdict, samples):
    return TestResult(name, verdict, 1.0, 1.0, samples, 1e-9, None, None, "gap")


def test_what_the_key_shows_stands_apart_from_what_the_law_shows():
    keyed = law_test("settlements, recomputed with the key", Verdict.REFUTED, 900)
    sound = law_test("scale, idle rows", Verdict.EQUIVALENT, 500)
    found = split(Evidence("L1", "", Verdict.REFUTED, "", "", None, (sound, keyed)))
    assert found["L1"] == Finding(Verdict.NOT_REFUTED, 500)
    assert found[WITH_KEY].refuses
    assert found[WITH_KEY].samples == 900


def test_the_smallest_test_that_refuses_says_how_many_samples_it_took():
    tests = (law_test("a", Verdict.REFUTED, 900), law_test("b", Verdict.REFUTED, 70), law_test("c", Verdict.EQUAL, 5))
    assert split(Evidence("L1", "", Verdict.REFUTED, "", "", None, tests))["L1"] == Finding(Verdict.REFUTED, 70)


def test_a_claim_refuted_by_a_plain_fact_counts_as_refuted():
    sound = law_test("scale, idle rows", Verdict.EQUIVALENT, 500)
    assert split(Evidence("L1", "", Verdict.REFUTED, "", "", None, (sound,)))["L1"].refuses
    assert split(Evidence("S1", "", Verdict.REFUTED, "", "", None, (), {"examples": 3}))["S1"].samples == 3


def test_a_sound_run_that_is_refused_is_a_false_alarm_and_an_empty_matrix_holds_nothing():
    row = judge(None, Mode.REPLAY, Scenario.EDGE, [Evidence("E1", "", Verdict.REFUTED, "", "")])
    assert row.outcome is Outcome.FALSE_ALARM
    assert not Matrix((row,), 0, True).holds
    assert not Matrix((), 0, True).holds


def test_what_was_not_assessed_does_not_refuse():
    fault = fault_of(lambda trainer: None)
    row = judge(fault, Mode.REPLAY, Scenario.EDGE, [Evidence("N2", "", Verdict.NOT_ASSESSED, "", "")])
    assert row.outcome is Outcome.ESCAPE


def test_a_claim_without_a_column_and_a_trial_without_evidence_are_errors():
    with pytest.raises(InputError, match="no column for claim 'Z9'"):
        judge(None, Mode.REPLAY, Scenario.EDGE, [Evidence("Z9", "", Verdict.EQUAL, "", "")])
    with pytest.raises(InputError, match="nothing was judged"):
        judge(None, Mode.REPLAY, Scenario.EDGE, [])


def small_matrix():
    caught = Row("off-by-one", Mode.REPLAY, Scenario.EDGE, {"E1": Finding(Verdict.REFUTED, 9, "row 3")}, ("E1",))
    both = {"E1": Finding(Verdict.REFUTED, 9), "L1": Finding(Verdict.REFUTED, 4)}
    return Matrix((caught, Row("paid-twice", Mode.REPLAY, Scenario.EDGE, both, ("E1",))), 3, False)


def test_a_claim_catches_alone_what_no_other_claim_refuses():
    assert small_matrix().alone()["E1"] == ["off-by-one (replay)"]
    assert small_matrix().rows[1].caught_by == ("L1", "E1")  # the fewest values first
    assert "| `paid-twice` | replay | X | X | L1 | 4 |" in page(small_matrix())


def test_the_record_matches_its_schema_and_a_changed_one_does_not():
    record = matrix_record(small_matrix())
    check_fault_matrix(record)
    record["rows"][0]["outcome"] = "fine"
    with pytest.raises(SchemaError, match="rows/0/outcome"):
        check_fault_matrix(record)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "no-such-fault"], "got 'no-such-fault'"),
        (["--only", ","], "at least one name"),
        (["--only", "float32-prefix-sums", "--mode", "replay"], "use --mode bridge or aggregate"),
        (["--seed", "-1"], "--seed"),
        (["--out", __file__], "is a file"),
        (["--page", "/no/such/folder/page.md"], "no /no/such/folder"),
        (["--page", str(Path(__file__).parent)], "is a folder"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(arguments, said, capsys):
    assert main(["faults", "--quick", "--quiet", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_catalogue_is_listed_a_line_a_fault(capsys):
    assert main(["faults", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(FAULTS)


def test_verify_sends_a_fault_that_it_cannot_show_to_the_command_that_can(capsys):
    assert main(["verify", "--fault", "shuffled-as-poisson", "--steps", "8"]) == 2
    assert "samelaw faults --only shuffled-as-poisson" in capsys.readouterr().err


# --- the parts that faults are made of --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(Mode))
def test_redrawn_kernels_with_the_same_draws_pay_the_same_bits(mode):
    schedule = Schedule.piecewise([3, 5, 11], [0.3, 0.0, 0.1, 0.7], steps=21)
    clock = NoiseClock.of(schedule, noise_multiplier=1.1, clip_norm=0.5, expected_batch_size=7.0)
    plan = NoisePlan(mode, NoiseStream(NoiseKey.from_seed(3)), clock, 2, 19)
    rng = np.random.default_rng(4)
    before = torch.from_numpy(rng.standard_normal((50, 19)).astype(np.float32))
    rows = torch.from_numpy(rng.permutation(50)[:30].astype(np.int64))
    kernels = CpuKernels(1)
    for until in (1, 8, 21):
        since = torch.from_numpy(rng.integers(0, until + 1, 30))
        expected, found = before.clone(), before.clone()
        kernels.settle(expected, rows, since, until, plan)
        Redrawn(kernels, lambda normals: normals).settle(found, rows, since, until, plan)
        assert (expected != before).any()
        assert torch.equal(expected.view(torch.int32), found.view(torch.int32))


def test_redrawn_kernels_with_the_same_draws_pay_dense_parameters_the_same_bits():
    kernels, stream = CpuKernels(1), NoiseStream(NoiseKey.from_seed(3))
    expected = torch.linspace(-1, 1, 37)
    found = expected.clone()
    scale = float(np.float32(0.0317))
    kernels.subtract_noise(expected, stream, Purpose.DENSE, 1, 5, scale)
    Redrawn(kernels, lambda normals: normals).subtract_noise(found, stream, Purpose.DENSE, 1, 5, scale)
    assert torch.equal(expected.view(torch.int32), found.view(torch.int32))


def test_the_false_laws_have_the_variance_of_the_true_one_and_the_coarse_radius_its_end():
    z = np.random.default_rng(5).standard_normal((20_000, 16))
    for change in (uniform, laplace, tail_of_24_bits):
        # The variance of a square is at most 5 (Laplace), so its mean over 320,000 has std 0.004 or less.
        assert abs(np.mean(change(z) ** 2) - 1) < 0.024
    assert np.abs(uniform(z)).max() <= np.sqrt(3)
    far = np.zeros((1, 16))
    far[0, 0] = 7.0
    assert np.isclose(np.abs(tail_of_24_bits(far)).max(), np.sqrt(48 * np.log(2)))
    assert np.abs(tail_of_24_bits(z) - z).max() < 0.02  # elsewhere it is the same law, on a coarser grid
