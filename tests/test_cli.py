"""The command line: exit status, what it writes, and what it says of bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from samelaw.cli.main import _COMMANDS, main
from samelaw.contract.ledger import Ledger, read_ledger, spent
from samelaw.contract.noise import NoiseKey
from samelaw.equivalence.faults import FAULTS
from samelaw.equivalence.schemas import check_evidence, check_ledger_lines, check_manifest

ZIPF = ["zipf", "--scale", "1e-5"]
SHORT = [*ZIPF, "--steps", "10", "--seed", "5", "--quiet"]


def run(*arguments: object) -> int:
    """The command in a process of its own, as a user runs it; its standard error goes to ours."""
    command = [sys.executable, "-m", "samelaw.cli.main", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1200)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    assert "Traceback" not in done.stderr
    return done.returncode


def run_here(*arguments: object) -> int:
    """The command in this process: for what ends before any work."""
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "run"
    assert run("verify", *SHORT, "--out", folder) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "run"
    assert run("train", *SHORT, "--noise-multiplier", "1", "--batch-size", "64", "--out", folder) == 0
    return folder


def test_an_audit_of_a_verify_folder_refutes_its_fixed_seed_and_looks_at_its_rows(verified, tmp_path):
    assert run("audit", verified, "--out", tmp_path / "a.html") == 1
    checks = json.loads((tmp_path / "a.record.json").read_text())["checks"]
    verdicts = {check["check"]: check["verdict"] for check in checks}
    assert {name for name, verdict in verdicts.items() if verdict == "REFUTED"} == {"K1"}
    assert verdicts["S1"] == verdicts["S2"] == "NOT REFUTED"


def test_verify_judges_every_claim_and_writes_a_folder_that_matches_its_schemas(verified):
    evidence = json.loads((verified / "evidence.json").read_text())
    manifest = json.loads((verified / "manifest.json").read_text())
    check_evidence(evidence)
    check_manifest(manifest)
    check_ledger_lines((verified / "ledger.jsonl").read_text().splitlines())
    judged = {"E1", "E2", "L1", "S1", "M1", "R1", "N1", "N2", "A1", "A2", "P1", "C1", "K1"}
    assert {claim["claim"] for claim in evidence["claims"]} == judged
    of_law = [test for claim in evidence["claims"] for test in claim["tests"] if test.get("p_value") is not None]
    assert {"P1", "K1"} <= {c["claim"] for c in evidence["claims"] if any(t in of_law for t in c["tests"])}
    assert sum(test["false_alarm"] for test in of_law) <= 1e-9 * (1 + 1e-6)
    assert manifest["verdict"] == "HOLDS"
    weights = ("initial_weights.safetensors", "weights.safetensors")
    assert set(manifest["files"]) == {"ledger.jsonl", "evidence.json", "proofs.json", *weights}
    assert sorted(os.listdir(verified)) == sorted([*manifest["files"], "manifest.json", "report.html"])


def test_the_report_is_one_page_that_asks_nobody_for_anything(verified):
    page = (verified / "report.html").read_text()
    assert "<script src" not in page
    assert "default-src 'none'" in page  # the browser is told to fetch nothing
    assert not re.search(r"""(src|href)\s*=\s*["']https?:""", page)


def test_the_report_says_of_each_claim_what_is_proved_of_the_installed_sources(verified):
    record = json.loads((verified / "proofs.json").read_text())
    assert record["schema"] == "samelaw.proof-status/1"
    assert {t["claim"] for t in record["theorems"]} == {"E1", "E2", "L1", "S1", "R1"}
    assert all(t["proved"] for t in record["theorems"])
    page = (verified / "report.html").read_text()
    assert all(f"{t['theorem']}: proved" in page for t in record["theorems"])
    assert "tested, not proved" in page


def test_the_released_weights_are_those_of_the_ledgers_run(verified):
    account = spent(read_ledger(verified / "ledger.jsonl"))
    weights = load_file(verified / "weights.safetensors")
    assert len(account.steps) == 10
    for name, (rows, dim, _) in account.opened["tables"].items():
        assert weights[f"{name}.weight"].shape == (rows, dim)
    assert all(np.isfinite(value).all() for value in weights.values())


def test_nothing_public_holds_the_seed_or_a_drawn_batch_size(verified):
    manifest = json.loads((verified / "manifest.json").read_text())
    assert "seed" not in json.dumps(manifest["options"])
    drawn = [step["examples"] for step in spent(read_ledger(verified / "ledger.jsonl")).steps]
    assert str(drawn) not in (verified / "manifest.json").read_text()
    assert str(drawn) not in (verified / "report.html").read_text()


@pytest.mark.parametrize("fault", ["off-by-one", pytest.param("per-table-clip", marks=pytest.mark.slow)])
def test_a_seeded_fault_makes_verify_fail_and_name_the_claim(fault, tmp_path, capsys):
    assert run("verify", *SHORT, "--mode", "replay", "--fault", fault, "--out", tmp_path / "run") == 1
    assert f"fault {fault!r}: caught by E1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_fault_of_clipping_is_caught_in_aggregate_mode_alone(tmp_path, capsys):
    options = ["--mode", "aggregate", "--fault", "clipped-after-averaging", "--out", tmp_path / "run"]
    assert run("verify", *SHORT, *options) == 1
    assert "caught by C1" in capsys.readouterr().err


VERIFIED = {"E1", "E2", "L1", "S1", "R1"}  # what verify asks of a trainer; its N1 is about the backend


@pytest.mark.slow
@pytest.mark.parametrize("fault", sorted(name for name, fault in FAULTS.items() if fault.in_verify))
def test_every_fault_is_caught_by_the_whole_verify(fault, tmp_path, capsys):
    options = ["--steps", "40", "--seed", "5", "--quiet", "--fault", fault]
    assert run("verify", *ZIPF, *options, "--out", tmp_path / "run") == 1
    said = re.search(r"caught by ([A-Z0-9, ]+)", capsys.readouterr().err)
    assert said is not None
    named = {claim.partition(" ")[0] for claims in FAULTS[fault].caught_by.values() for claim in claims}
    assert named & VERIFIED <= set(said.group(1).replace("\n", "").split(", "))


def test_fault_list_explains_each_fault_that_verify_can_show_in_a_line(capsys):
    assert run_here("verify", "--fault", "list") == 0
    said = capsys.readouterr()
    shown = [name for name, fault in FAULTS.items() if fault.in_verify]
    assert [line.split()[0] for line in said.out.splitlines()] == shown
    assert f"{len(FAULTS) - len(shown)} more" in said.err


def test_training_writes_the_same_kind_of_folder(trained):
    manifest = json.loads((trained / "manifest.json").read_text())
    check_manifest(manifest)
    assert manifest["kind"] == "train"
    assert "verdict" not in manifest
    assert (trained / "report.html").exists()


def test_a_training_run_that_was_killed_resumes_to_the_same_weights(tmp_path):
    key = tmp_path / "run.key"
    common = [*ZIPF, "--steps", "12", "--noise-multiplier", "1", "--batch-size", "64", "--quiet", "--key-file", key]
    assert run("train", *common, "--out", tmp_path / "whole") == 0
    whole = load_file(tmp_path / "whole" / "weights.safetensors")
    script = (
        "import sys, os, samelaw.cli.train as train; from samelaw.cli.main import main\n"
        "save = train.LazyTrainer.save_checkpoint\n"
        "def save_and_die(self, path):\n"
        "    save(self, path)\n"
        "    if self.step_index == 8: os.kill(os.getpid(), 9)\n"
        "train.LazyTrainer.save_checkpoint = save_and_die\n"
        "main(sys.argv[1:])\n"
    )
    (tmp_path / "whole.key").write_bytes(key.read_bytes())
    key.unlink()
    script = "import os, samelaw.cli.train as train, samelaw.contract.noise as noise\nfrom pathlib import Path\n" + (
        f"noise.NoiseKey.from_os = classmethod(lambda cls: cls.load({str(tmp_path / 'whole.key')!r}))\n" + script
    )
    arguments = ["train", *common, "--checkpoint-every", "4", "--out", tmp_path / "cut"]
    command = [sys.executable, "-c", script, *map(str, arguments)]
    killed = subprocess.run(command, check=False, capture_output=True, timeout=300)
    assert killed.returncode == -9
    assert run(*arguments, "--resume") == 0
    resumed = load_file(tmp_path / "cut" / "weights.safetensors")
    assert resumed.keys() == whole.keys()
    assert all(np.array_equal(resumed[n].view(np.uint32), whole[n].view(np.uint32)) for n in whole)
    assert sorted(os.listdir(tmp_path / "cut")) == sorted(os.listdir(tmp_path / "whole"))


def test_a_run_resumes_on_its_own_workload_alone(tmp_path, capsys):
    common = [
        "--scale",
        "1e-5",
        "--steps",
        "6",
        "--noise-multiplier",
        "1",
        "--batch-size",
        "64",
        "--seed",
        "3",
        "--quiet",
    ]
    folder = tmp_path / "cut"
    script = (
        "import sys, os, samelaw.cli.train as train; from samelaw.cli.main import main\n"
        "save = train.LazyTrainer.save_checkpoint\n"
        "train.LazyTrainer.save_checkpoint = lambda self, path: (save(self, path), os._exit(9))\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["train", "zipf", *common, "--checkpoint-every", "3", "--out", str(folder)]
    assert subprocess.run([sys.executable, "-c", script, *arguments], check=False, timeout=600).returncode == 9
    assert run("train", "uniform", *common, "--out", folder, "--resume") == 2
    assert "has workload 'zipf', not 'uniform'" in capsys.readouterr().err


def test_another_key_is_bad_input_and_is_named(tmp_path, capsys):
    common = [*ZIPF, "--steps", "6", "--noise-multiplier", "1", "--batch-size", "64", "--quiet"]
    folder = tmp_path / "cut"
    folder.mkdir()
    (folder / "checkpoint").write_bytes(b"is not looked at: the key comes first")
    (folder / "settings.json").write_text(
        json.dumps({"workload": "zipf", "examples": 65536, "dim": 16, "seed": False}), encoding="utf-8"
    )
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append("open", {"key_commitment": NoiseKey.from_seed(1).commitment()})
    ledger.close()
    NoiseKey.from_seed(2).save(tmp_path / "other.key")
    status = run_here("train", *common, "--out", folder, "--key-file", tmp_path / "other.key", "--resume")
    said = capsys.readouterr().err
    assert status == 2, said
    assert "the key given is not the key of the run" in said


def test_a_full_disk_at_release_spends_nothing_and_the_run_can_go_on(tmp_path, capsys, monkeypatch):
    common = [*ZIPF, "--steps", "6", "--noise-multiplier", "1", "--batch-size", "64", "--quiet", "--seed", "3"]
    folder, whole = tmp_path / "full", tmp_path / "whole"
    assert run_here("train", *common, "--checkpoint-every", "4", "--out", whole) == 0

    def full(tensors: dict, path: Path, **options: object) -> None:
        if "initial" not in path.name:  # those are written before the first step
            raise SafetensorError("Error while serializing: No space left on device")
        save_file(tensors, path, **options)

    with monkeypatch.context() as disk:
        disk.setattr("samelaw.cli.runfolder.save_file", full)
        assert run_here("train", *common, "--checkpoint-every", "4", "--out", folder) == 2
    assert "cannot write the weights" in capsys.readouterr().err
    assert not any(entry.event == "release" for entry in read_ledger(folder / "ledger.jsonl"))
    assert not list(folder.glob("*.part"))
    assert run_here("train", *common, "--checkpoint-every", "4", "--out", folder, "--resume") == 0
    resumed, expected = (load_file(f / "weights.safetensors") for f in (folder, whole))
    assert all(np.array_equal(resumed[name], expected[name]) for name in expected)


def test_an_error_inside_is_no_refuted_claim(capsys, monkeypatch):
    def broken(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setitem(_COMMANDS, "workloads", broken)
    assert run_here("workloads") == 70
    assert "nothing was concluded" in capsys.readouterr().err


def test_a_diverged_run_is_said_to_have_diverged(tmp_path, capsys):
    common = [*ZIPF, "--steps", "3", "--noise-multiplier", "1", "--batch-size", "64", "--quiet", "--seed", "3"]
    assert run_here("train", *common, "--learning-rate", "1e30", "--out", tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert "training diverged" in said
    assert "RuntimeWarning" not in said


def test_skipped_lines_are_told_to_the_owner_and_not_to_everybody(tmp_path, capsys):
    good = "\t".join(["1", *["3"] * 13, *["0a1b2c3d"] * 26])
    lines = [good.replace("0a1b2c3d", f"{i:08x}") for i in range(60)]
    data = tmp_path / "private-name.tsv"
    data.write_text("\n".join([*lines, "not a line"]) + "\n", encoding="utf-8")
    common = ["criteo", "--path", data, "--steps", "2", "--noise-multiplier", "1", "--batch-size", "8", "--quiet"]
    assert run_here("train", *common, "--skip-bad-lines", "--seed", "1", "--out", tmp_path / "run") == 0
    assert "1 bad lines were skipped" in capsys.readouterr().err
    manifest = (tmp_path / "run" / "manifest.json").read_text()
    assert "skipped" not in manifest
    assert str(tmp_path) not in manifest


def test_a_key_is_never_used_for_a_second_run(tmp_path, capsys):
    key = tmp_path / "run.key"
    NoiseKey.from_seed(1).save(key)
    assert run_here("train", *ZIPF, "--steps", "5", "--key-file", key, "--out", tmp_path / "second") == 2
    assert "two runs with one key share their noise" in capsys.readouterr().err
    assert not (tmp_path / "second").exists()


def test_what_is_private_is_for_its_owner_alone(trained):
    assert (trained / "ledger.jsonl").stat().st_mode & 0o777 == 0o600
    assert (trained / "weights.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify", "no-such-data"], "workload must be one of"),
        (["verify", *ZIPF, "--steps", "2"], "--steps must be >= 8, got 2"),
        (["verify", *ZIPF, "--seed", "-1"], "--seed must be >= 0, got -1"),
        (["verify", *ZIPF, "--fault", "no-such-fault"], "--fault must be 'list' or one of"),
        (["verify", "criteo"], "path"),
        (["train", *ZIPF, "--batch-size", "0"], "--batch-size must be finite and > 0"),
        (["train", *ZIPF, "--batch-size", "1e9"], "--batch-size must be in"),
        (["train", *ZIPF, "--steps", "5", "--epochs", "1"], "exclude each other"),
        (["train", *ZIPF, "--resume"], "--resume needs --out"),
        (["train", *ZIPF, "--steps", "5", "--checkpoint-every", "2"], "--checkpoint-every needs --key-file"),
        (["train", *ZIPF, "--noise-multiplier", "0"], "--noise-multiplier must be finite and > 0"),
        (["train", *ZIPF, "--target-epsilon", "0"], "--target-epsilon must be finite and > 0"),
        (["train", *ZIPF, "--epochs", "nan"], "--epochs must be finite and > 0"),
        (["train", *ZIPF, "--learning-rate", "inf"], "--learning-rate must be finite and > 0"),
        (["train", *ZIPF, "--dim", "0"], "--dim must be >= 1"),
        (["train", *ZIPF, "--seed", str(1 << 64)], "--seed must be below 2^63"),
        (["train", *ZIPF, "--checkpoint-every", "-1"], "--checkpoint-every must be >= 0"),
        (["train", *ZIPF, "--epochs", "1e308"], "a run has fewer than 2^32"),
        (["train", *ZIPF, "--key-file", "nowhere/run.key"], "there is no folder nowhere"),
        (["train", *ZIPF, "--key-file", "made/run.key", "--out", "made"], "lies in the run folder made"),
        (["train", *ZIPF, "--steps", "3", "--target-epsilon", "1e-9", "--delta", "1e-250"], "no noise multiplier"),
        (["train", *ZIPF, "--resume", "--out", "nowhere", "--seed", "1"], "there is no checkpoint in nowhere"),
    ],
)
def test_bad_input_exits_with_2_and_says_what_to_do(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_here(*arguments) == 2
    assert not any(tmp_path.iterdir())
    assert said in capsys.readouterr().err


def test_a_run_never_overwrites_another(trained, capsys):
    before = (trained / "manifest.json").read_bytes()
    assert run("train", *SHORT, "--noise-multiplier", "1", "--out", trained) == 2
    assert "never overwrites" in capsys.readouterr().err
    assert (trained / "manifest.json").read_bytes() == before


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_cuda_without_a_device_is_bad_input(tmp_path, capsys):
    assert run("verify", *SHORT, "--device", "cuda", "--out", tmp_path / "run") == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_workloads_lists_what_there_is(capsys):
    assert run_here("workloads") == 0
    assert "movielens-100k" in capsys.readouterr().out
