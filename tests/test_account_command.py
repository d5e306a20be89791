"""`samelaw account`: ledgers are priced, plans are calibrated, and what is not sound ends in an error."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from samelaw.accounting.mechanism import mechanism_of
from samelaw.accounting.statement import price
from samelaw.cli.main import BAD_INPUT, HOLDS, REFUTED, main
from samelaw.contract.figures import rounded_up
from samelaw.contract.ledger import Ledger, read_ledger, spent
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import PrivacySpec

STEPS = 60
PLAN = ["--sampling-rate", "0.05", "--noise-multiplier", "1.1", "--steps", "60", "--delta", "1e-5"]


def ledger(path: Path, *, key: str = "0" * 64, spends: tuple[dict[str, Any], ...] = (), **last: Any) -> Path:
    """A run folder with a ledger as a trainer writes it; `last` goes into the last step."""
    spec = PrivacySpec(
        clip_norm=0.7,
        noise_multiplier=1.1,
        sampling_rate=0.05,
        expected_batch_size=50.0,
        delta=1e-5,
        schedule=Schedule.constant(0.1, steps=STEPS),
    )
    path.mkdir()
    written = Ledger(path / "ledger.jsonl")
    opened = {
        "law": spec.to_json(),
        "law_digest": spec.digest(),
        "key_commitment": key,
        "key_origin": "os",
        "tables": {"user": [100, 8, None]},
        "dense": {"top.weight": [8, 1]},
        "examples": 1000,
    }
    written.append("open", opened)
    for data in spends:
        written.append("spend", data)
    for step in range(STEPS):
        data = {"step": step, "examples": 50, "lr": 0.1, "noise_std": 1.1 * 0.7, "sampler": "keyed-poisson"}
        written.append("step", data | (last if step == STEPS - 1 else {}))
    written.append("release", {"step": STEPS})
    written.close()
    return path


def account(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["account", *arguments, "--json"]) == HOLDS
    record = json.loads(capsys.readouterr().out)
    schema = resources.files("samelaw.contract").joinpath("schemas/account.schema.json").read_text(encoding="utf-8")
    jsonschema.validate(record, json.loads(schema))
    return record


def test_a_run_is_priced_as_its_ledger_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = ledger(tmp_path / "run")
    record = account(capsys, str(run))
    own = price(spent(read_ledger(run / "ledger.jsonl")))
    assert record["statement"]["upper"] == own.upper
    assert record["statement"]["generator_delta"] == own.generator_delta
    assert own.generator_delta is not None
    assert 0 < own.generator_delta < 1e-7
    total = record["statement"]["total_delta"]
    assert own.delta + own.generator_delta <= total <= (own.delta + own.generator_delta) * (1 + 1e-15)
    assert f"at delta {rounded_up(total, 6)}" in str(own)
    engines = {a["engine"].split()[0] for a in record["accountants"]}
    assert engines == {"closed", "contour", "prv-accountant", "dp-accounting", "RDP"}
    uppers = [a["upper"] for a in record["accountants"] if a["upper"] is not None]
    assert min(uppers) >= own.lower
    assert main(["account", str(run / "ledger.jsonl"), "--examples-per-unit", "2"]) == HOLDS
    said = capsys.readouterr().out
    assert "generator" in said
    assert "unit of at most 2 examples" in said


def test_a_forged_ledger_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = ledger(tmp_path / "run")
    path = run / "ledger.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    forgeries = [
        lines[:5] + lines[6:],  # a step left out
        [line.replace('"noise_std":0.77', '"noise_std":0.97') for line in lines],
        [lines[0], *reversed(lines[1:])],
        lines[:3] + lines[2:],
        ["not json\n", *lines],
    ]
    for forged in forgeries:
        assert forged != lines
        path.write_text("".join(forged), encoding="utf-8")
        assert main(["account", str(run)]) == REFUTED
        assert "LedgerError" in capsys.readouterr().err


def test_runs_on_the_same_data_cost_more_than_each_and_less_than_their_sum(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    one, two = ledger(tmp_path / "one"), ledger(tmp_path / "two", key="1" * 64)
    assert main(["account", str(one), str(two)]) == BAD_INPUT
    assert "--same-data" in capsys.readouterr().err
    both = account(capsys, str(one), str(two), "--same-data")["statement"]
    each = price(spent(read_ledger(one / "ledger.jsonl")))
    assert each.upper < both["lower"]
    assert both["upper"] < 2 * each.lower
    assert both["mechanism"]["steps"] == 2 * STEPS
    assert each.generator_delta is not None
    assert both["generator_delta"] >= 2 * each.generator_delta
    assert both["total_delta"] > both["delta"]
    assert main(["account", str(one), str(one), "--same-data"]) == BAD_INPUT
    copy = ledger(tmp_path / "copy")
    assert main(["account", str(one), str(copy), "--same-data"]) == REFUTED
    assert "same noise key" in capsys.readouterr().err


def test_spending_in_the_ledger_is_charged_and_uncosted_spending_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bare = account(capsys, str(ledger(tmp_path / "bare")))["statement"]
    costed = {"what": "vocabulary", "epsilon": 0.5, "delta": 1e-8}
    more = account(capsys, str(ledger(tmp_path / "more", spends=(costed,))))["statement"]
    assert more["lower"] > bare["upper"]
    assert more["plan"]["spends"][0]["what"] == "vocabulary"
    told = account(capsys, str(tmp_path / "bare"), "--spend", "vocabulary:0.5,1e-8")["statement"]
    assert told["upper"] == pytest.approx(more["upper"], rel=1e-9)
    assert main(["account", str(ledger(tmp_path / "free", spends=({"what": "vocabulary"},)))]) == REFUTED
    assert "cost is not known" in capsys.readouterr().err


def test_steps_with_rates_and_clip_norms_of_their_own_are_composed(tmp_path: Path):
    usual = mechanism_of(spent(read_ledger(ledger(tmp_path / "usual") / "ledger.jsonl")))
    clipped = ledger(tmp_path / "clipped", clip_norm=0.35, noise_std=1.1 * 0.35)
    assert mechanism_of(spent(read_ledger(clipped / "ledger.jsonl"))).phases == pytest.approx(usual.phases)
    other = ledger(tmp_path / "other", sampling_rate=0.2)
    found = price(spent(read_ledger(other / "ledger.jsonl")))
    assert [p.steps for p in found.plan.phases] == [STEPS - 1, 1]
    assert found.lower > price(spent(read_ledger(tmp_path / "usual" / "ledger.jsonl"))).upper
    assert found.mechanism.sampling_rate == 0.2  # the summary is the worst of both


def test_calibration_curve_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    common = ["--sampling-rate", "0.05", "--delta", "1e-5", "--target-epsilon", "3"]
    record = account(capsys, *common, "--steps", "60", "--curve", str(tmp_path / "c.csv"), "--points", "5")
    assert 2.99 <= record["statement"]["upper"] <= 3
    sigma = record["calibrated"]["noise_multiplier"]
    with (tmp_path / "c.csv").open(encoding="utf-8") as source:
        rows = list(csv.DictReader(source))
    assert [float(r["upper"]) for r in rows] == [p["upper"] for p in record["curve"]]
    uppers = [p["upper"] for p in record["curve"]]
    assert uppers == sorted(uppers, reverse=True)
    again = account(capsys, *common, "--noise-multiplier", str(sigma), "--plot", str(tmp_path / "p.html"))
    assert again["calibrated"]["steps"] >= 60
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "add/remove" in page
    for name, start in (("p.svg", b"<?xml"), ("p.png", b"\x89PNG")):
        assert main(["account", *PLAN, "--plot", str(tmp_path / name), "--points", "3"]) == HOLDS
        assert (tmp_path / name).read_bytes().startswith(start)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([*PLAN, "--sampler", "shuffled"], REFUTED, "shuffled"),
        ([*PLAN, "--data-derived-batch-size"], REFUTED, "public constant"),
        ([*PLAN, "--phase", "0.1,1,5"], BAD_INPUT, "--phase"),
        (["--phase", "0.1,1", "--delta", "1e-5"], BAD_INPUT, "3 finite numbers"),
        (["--phase", "0.1,1,2.5", "--delta", "1e-5"], BAD_INPUT, "whole number"),
        (PLAN[:-2], BAD_INPUT, "--delta"),
        (["--delta", "1e-5"], BAD_INPUT, "give run folders"),
        ([*PLAN[:-1], "2"], BAD_INPUT, "delta"),
        ([*PLAN, "--spend", "x"], BAD_INPUT, "--spend"),
        ([*PLAN, "--curve", "x.txt"], BAD_INPUT, "--curve"),
        ([*PLAN, "--timeout", "0"], BAD_INPUT, "--timeout"),
        ([*PLAN, "--target-epsilon", "1"], BAD_INPUT, "exactly one"),
        ([*PLAN, "--timeout", "1e30"], BAD_INPUT, "--timeout"),
        ([*PLAN, "--curve", "no-such-folder/x.csv"], BAD_INPUT, "--curve must lie in a folder that exists"),
        (["--phase", "0.1,1e-200,5", "--delta", "1e-5"], BAD_INPUT, "priced in float64"),
        (["--phase", "0.1,1e200,5", "--delta", "1e-5"], BAD_INPUT, "priced in float64"),
        (["--phase", "1e-320,1,5", "--delta", "1e-5"], BAD_INPUT, "priced in float64"),
        (["no-such-folder"], BAD_INPUT, "there is no file"),
        (["no-such-folder", "--steps", "3"], BAD_INPUT, "--steps"),
    ],
)
def test_bad_input_names_what_is_wrong(
    arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["account", *arguments]) == status
    assert said in capsys.readouterr().err


def test_out_of_time_is_an_error_and_no_number(capsys: pytest.CaptureFixture[str]):
    assert main(["account", "--phase", "0.01,1,1000", "--phase", "0.02,1,9", "--examples-per-unit", "40",
                 "--delta", "1e-5", "--timeout", "1"]) == BAD_INPUT  # fmt: skip
    told = capsys.readouterr()
    assert told.out == ""
    assert "--timeout" in told.err


def test_nothing_on_the_way_imports_torch():
    code = (
        "import sys; from samelaw.cli.main import main; "
        f"status = main(['account', *{PLAN!r}, '--json']); "
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'numba', 'triton')]; "
        "assert not bad, bad; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
