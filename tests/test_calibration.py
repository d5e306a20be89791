"""`samelaw calibrate` and `samelaw power`: a good suite passes, a suite that lies about its rates does not."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from samelaw.cli import calibrate_run, main, power_run
from samelaw.cli.small_runs import SmallRuns
from samelaw.contract.errors import InputError
from samelaw.contract.noise import NoiseKey
from samelaw.contract.spec import Mode
from samelaw.equivalence import calibration, laws, power
from samelaw.equivalence.budget import Budget
from samelaw.equivalence.noise_tests import measure_noise
from samelaw.equivalence.planting import gaps

PAGE = Path(__file__).parents[1] / "docs" / "power.md"


def judged(p_values, **options):
    return calibration.judge([calibration.row("a test", "here", p_values)], alpha=1e-6, facts={}, **options)


def test_uniform_p_values_are_well_calibrated():
    found = judged(np.random.default_rng(61).random(3000).tolist())
    assert found.holds
    for rate in found.rows[0].rates:
        assert rate.low <= rate.nominal <= rate.high


def test_p_values_that_are_too_small_are_refuted():
    """p^1.3 instead of p: 17 % instead of 10 %, 2.9 % instead of 1 %."""
    found = judged((np.random.default_rng(62).random(3000) ** 1.3).tolist())
    assert not found.holds
    assert "a test (here) at 0.1" in found.refuted
    assert "a test (here), uniformity" in found.refuted


def test_p_values_that_are_too_small_in_the_tail_alone_are_refuted():
    """One in a hundred p-values is 0.0005: 11 % at 0.1, and ten times the rate at 0.001."""
    rng = np.random.default_rng(63)
    values = np.where(rng.random(3000) < 0.01, 0.0005, rng.random(3000))
    refuted = judged(values.tolist()).refuted
    assert "a test (here) at 0.001" in refuted
    assert "a test (here) at 0.1" not in refuted


def test_p_values_that_are_too_large_are_no_fault():
    assert judged(np.sqrt(np.random.default_rng(64).random(3000)).tolist()).holds
    assert judged([1.0] * 3000).holds


def test_the_interval_is_that_of_clopper_and_pearson():
    one = calibration.count(3, 40, 0.05, "a test")
    assert one.low == pytest.approx(stats.beta.ppf(0.005, 3, 38))
    assert one.high == pytest.approx(stats.beta.ppf(0.995, 4, 37))
    assert one.excess == pytest.approx(stats.binom.sf(2, 40, 0.05))


def test_crossings_of_an_e_process_are_counted_at_one_over_the_rate():
    found = calibration.crossings("e", "here", [0.0, np.log(10), np.log(999.9), np.log(1001)])
    assert [rate.alarms for rate in found.rates] == [3, 2, 1]


def test_a_calibration_without_p_values_is_none():
    with pytest.raises(InputError, match="at least one value"):
        calibration.row("a test", "here", [])
    assert not calibration.judge([], alpha=1e-6, facts={}).holds


# --- the commands, on a few runs


def calibrate(*arguments):
    return main.main(["calibrate", "--runs", "20", "--synthetic", "10", "--seed", "5", "--quiet", *arguments])


def test_calibrate_reports_every_test_and_the_suite(capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- calibration: begin -->\nold\n<!-- calibration: end -->\nAfter.\n")
    assert calibrate("--json", "--write", str(page)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"]
    assert found["facts"]["modes"] == ["replay", "bridge", "aggregate"]
    names = [row["name"] for row in found["rows"]]
    assert "whole suite, by Holm" in names
    assert "e-process, idle rows, over 20 runs" in names
    for kind in ("touched rows", "idle rows"):
        assert {f"scale, {kind}", f"Anderson-Darling, {kind}", f"correlation, a row's spans 1 apart, {kind}"} <= set(
            names
        )
    assert "correlation, 4 steps apart over the restart, draw by draw, touched rows" in names
    text = page.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert "old" not in text
    assert all(f"| {name} | " in text for name in names)


def test_calibrate_exits_1_where_a_test_refuses_more_often_than_it_says(monkeypatch, capsys):
    """A mean test whose p-values are cubed."""
    honest = laws.measure_mean

    def boastful(samples, *, name="mean"):
        one = honest(samples, name=name)
        return one if one.p_value is None else replace(one, p_value=one.p_value**3)

    monkeypatch.setattr(calibrate_run, "SYNTHETIC", {"mean": boastful})
    monkeypatch.setattr(calibrate_run, "of_runs", lambda *arguments, **options: [])
    assert calibrate("--synthetic", "200") == 1
    assert "ABOVE ITS NOMINAL RATE: mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["calibrate", "--runs", "0"], "--runs must be >= 1"),
        (["calibrate", "--alpha", "0"], "--alpha must be in"),
        (["calibrate", "--alpha", "nan"], "--alpha must be in"),
        (["calibrate", "--rates", "0.1,x"], "--rates must be numbers"),
        (["calibrate", "--rates", "0.1,2"], "--rates must be in"),
        (["calibrate", "--seed", "-1"], "--seed must be >= 0"),
        (["calibrate", "--write", "no-such-page.md"], "no such file"),
        (["power", "--runs", "0"], "--runs must be >= 1"),
        (["power", "--false-alarm", "0.7"], "--false-alarm must be in"),
        (["power", "--alpha", "-1"], "--alpha must be in"),
        (["verify", "--false-alarm", "0"], "--false-alarm must be in"),
        (["verify", "--false-alarm", "2"], "--false-alarm must be in"),
    ],
)
def test_bad_input_is_refused_with_its_name(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main(arguments) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_page_without_marks_is_left_alone(tmp_path):
    from samelaw.cli.marked import write_section

    page = tmp_path / "page.md"
    for text in ("nothing", "<!-- a: end --> <!-- a: begin -->", "<!-- a: begin --><!-- a: begin --><!-- a: end -->"):
        page.write_text(text)
        with pytest.raises(InputError, match="once each and in this order"):
            write_section(page, "a", "new")
        assert page.read_text() == text


# --- power


def test_each_test_alone_keeps_its_promise():
    rows = power_run.of_tests(60, seed=7, quiet=True)
    found = power.judge(rows, alpha=1e-6, facts={})
    assert found.refuted == ()
    assert {row.name.partition(":")[0] for row in rows} == set(power_run.ALONE)
    assert all(row.promised is not None for row in rows)


def test_a_test_that_claims_to_see_half_of_what_it_sees_is_refuted(monkeypatch):
    measure, plant = power_run.ALONE["mean"]
    monkeypatch.setattr(power_run, "ALONE", {"mean": (measure, lambda z, gap, rng: plant(z, gap / 2, rng))})
    found = power.judge(power_run.of_tests(60, seed=8, quiet=True), alpha=1e-6, facts={})
    assert not found.holds
    assert all(name.startswith("mean") for name in found.refuted)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return SmallRuns(tmp_path_factory.mktemp("runs"), rows=400, dim=16, steps=8, examples=600)


@pytest.fixture(scope="module")
def received(real):
    return real.received(Mode.AGGREGATE, NoiseKey.from_seed(9), seed=9)


CATALOGUE = gaps(16)


def test_a_real_run_without_a_gap_is_not_refused(real, received):
    tests = measure_noise(received, real.spec(Mode.AGGREGATE), margin=0.05, restarts=(real.restart,))
    assert power_run.first_refused([t for t in tests if t.p_value is not None], Budget()) is None


@pytest.mark.parametrize("gap", CATALOGUE, ids=[gap.name for gap in CATALOGUE])
def test_a_planted_gap_is_seen_where_its_test_promises_it(gap, real, received):
    tests = measure_noise(gap.plant(received, seed=3), real.spec(Mode.AGGREGATE), margin=0.05, restarts=(real.restart,))
    tests = [test for test in tests if test.p_value is not None]
    leading = next(test for test in tests if test.name == gap.test).at(Budget().share(len(tests)))
    first = power_run.first_refused(tests, Budget())
    if gap.promised(leading.detectable):
        assert first is not None
    if gap.name.startswith(("one row", "uniform")):  # these are certain at any size of run
        assert first is not None


def test_only_the_kind_of_rows_that_was_meant_is_changed(received):
    for gap in CATALOGUE:
        planted = gap.plant(received, seed=4)
        same = planted.touched if gap.idle else planted.idle
        assert same is (received.touched if gap.idle else received.idle)


def test_a_scale_is_planted_to_the_stated_size(received):
    gap = next(gap for gap in CATALOGUE if gap.name.startswith("std 5 %"))
    for name, noise in gap.plant(received, seed=5).touched.items():
        assert np.array_equal(noise.samples, 0.95 * received.touched[name].samples)


# --- the committed tables


@pytest.mark.parametrize("section", ["calibration", "power"])
def test_the_committed_tables_hold_what_is_measured_today(section, tmp_path):
    """Every test of L1, every synthetic test and every gap has its row; whoever adds one makes the tables again."""
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition(f"<!-- {section}: begin -->")[2].partition(f"<!-- {section}: end -->")[0]
    listed = {row.split(" | ")[0].removeprefix("| ") for row in table.splitlines() if row.startswith("| ")}
    if section == "power":
        wanted = {gap.name for gap in gaps(power_run.DIM)}
    else:
        small = SmallRuns(tmp_path)
        received = small.received(Mode.AGGREGATE, NoiseKey.from_seed(10), seed=10)
        tests = measure_noise(received, small.spec(Mode.AGGREGATE), margin=0.05, restarts=(small.restart,))
        wanted = {test.name for test in tests if test.p_value is not None}
        wanted |= {f"{name}, {n} values" for name in calibrate_run.SYNTHETIC for n in calibrate_run.SIZES}
    assert wanted - listed == set()
    assert f"samelaw {'calibrate' if section == 'calibration' else 'power'} --" in table
