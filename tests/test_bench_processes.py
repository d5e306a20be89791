"""`samelaw conform`: what a foreign process may do to it, and what it says and writes then."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from samelaw.accounting.engines import evaluate
from samelaw.accounting.mechanism import SampledGaussian
from samelaw.cli.bench_processes import Command, Worker
from samelaw.cli.bench_worker import find_factory
from samelaw.cli.main import main
from samelaw.contract.bench import Abilities
from samelaw.contract.errors import InputError, SchemaError
from samelaw.equivalence.bench.conduct import Kind
from samelaw.equivalence.bench.conform import PATIENCE, conform
from samelaw.equivalence.bench.problems import small_inputs, small_job
from samelaw.equivalence.schemas import check_bench, check_evidence

PLAIN = Abilities(noise_off=True)
JOB = small_job(small_inputs(PLAIN)[0], PLAIN, 1)

MODULE = """
    import os, sys, time
    import numpy as np
    from samelaw.contract.bench import Abilities

    class Good:
        abilities = Abilities(noise_off=True)
        def __init__(self, problem, seed):
            self.problem, self.rng = problem, np.random.default_rng(seed)
            self.now = {name: value.copy() for name, value in problem.tables.items()}
        def train_batch(self, batch):
            reads, p = batch.reads["item"], self.problem
            total = np.zeros(self.now["item"].shape)
            for i, row in enumerate(reads.ids):
                norm = np.linalg.norm(reads.readout[i])
                total[row] += reads.readout[i] * min(1, p.clip_norm / max(norm, 1e-12))
            total += p.noise_multiplier * p.clip_norm * self.rng.standard_normal(total.shape)
            step = batch.learning_rate / p.expected_batch_size
            self.now["item"] = (self.now["item"] - step * total).astype(np.float32)
        def weights(self):
            return self.release()
        def release(self):
            return dict(self.now)

    class Talks(Good):
        def train_batch(self, batch):
            print("to standard output"); os.write(1, b"past Python\\n")
            assert sys.stdin.read() == "" and os.read(0, 10) == b""
            super().train_batch(batch)

    class Dies(Good):
        def train_batch(self, batch):
            print("last words", file=sys.stderr, flush=True)
            os.abort()

    class Exits(Good):
        def train_batch(self, batch):
            sys.exit("enough")

    class Leaves(Good):
        def train_batch(self, batch):
            os._exit(3)

    class Hangs(Good):
        def train_batch(self, batch):
            time.sleep(600)

    class Raises(Good):
        def train_batch(self, batch):
            if len(batch) == 3:
                raise KeyError("no third example")
            super().train_batch(batch)

    class Nothing(Good):
        abilities = {"bags": True}

    number = 3
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "their.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "broken_module.py").write_text("import their_missing_library\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_worker_runs_a_factory_of_the_current_folder_and_survives_what_it_prints_and_reads(place: Path) -> None:
    with Worker("their:Talks", timeout=60) as worker:
        assert worker.abilities == PLAIN
        outcome = worker(JOB)
    assert outcome.failure is None
    assert outcome.release is not None
    assert outcome.release["item"].shape == (6, 4)


@pytest.mark.parametrize(
    ("factory", "kind", "words"),
    [
        ("Dies", Kind.CRASHED, "killed by SIGABRT"),
        ("Leaves", Kind.CRASHED, "exit status 3"),
        ("Exits", Kind.CRASHED, "exit status 1"),
        ("Hangs", Kind.TIMED_OUT, "no answer within 1 s"),
    ],
)
def test_a_worker_that_dies_or_hangs_is_a_failure_and_is_started_again(
    factory: str, kind: Kind, words: str, place: Path
) -> None:
    with Worker(f"their:{factory}", timeout=1) as worker:
        for _ in range(1 + (factory == "Dies")):
            began = time.monotonic()
            failure = worker(JOB).failure
            assert failure is not None
            assert (failure.kind, failure.message) == (kind, words)
            assert time.monotonic() - began < 60
        assert factory != "Dies" or "last words" in failure.detail


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("their", "a trainer is named MODULE:FACTORY"),
        ("nowhere:Trainer", "there is no module 'nowhere' in the current folder or installed here"),
        ("their:Absent", "module 'their' has no 'Absent'"),
        ("their:number", "must be callable as FACTORY\\(problem, seed\\), got int"),
        ("their:Nothing", "must have an attribute `abilities`"),
        ("broken_module:Trainer", "No module named 'their_missing_library'"),
    ],
)
def test_a_factory_that_is_none_is_refused_in_words(name: str, words: str, place: Path) -> None:
    path = [str(place), *sys.path]
    before = list(sys.path)
    try:
        with pytest.raises(InputError, match=words):
            find_factory(name, path)
    finally:
        sys.path[:] = before
        sys.modules.pop("their", None)


# --- the command -----------------------------------------------------------------------------------------------------


def samelaw(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(["conform", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


PRICE = ("--price", "1.1", "0.01", "1000", "1e-6")


def test_the_folder_holds_evidence_a_record_and_a_page(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("their:Good", "--runs", "2", "--seed", "4", "--quiet", "--out", "found", "--json", *PRICE)
    status, out, err = samelaw(*options, capsys=capsys)
    assert status == 0
    evidence = json.loads(out)
    assert json.loads((place / "found" / "evidence.json").read_text()) == evidence
    check_evidence(evidence)
    record = json.loads((place / "found" / "bench.json").read_text())
    assert record["verdict"] == "HOLDS"
    price = {"noise_multiplier": 1.1, "sampling_rate": 0.01, "steps": 1000, "delta": 1e-6}
    assert record["options"] == {"runs": 2, "seed": 4, "false_alarm": 1e-9, "timeout": 60.0, "price": price}
    check_bench(record)
    with pytest.raises(SchemaError, match=r"samelaw\.bench/1 at options/runs"):
        check_bench(record | {"options": record["options"] | {"runs": 1}})
    (tolerance,) = record["tolerances"]  # two runs conclude no equivalence: there is no margin to price
    assert (tolerance["kind"], tolerance["part"]) == ("detectable", "B4, scale, single step, rows read")
    smaller = SampledGaussian(0.01, 1.1 * (1 - tolerance["gap"]), 1000)
    assert tolerance["epsilon_if"] == evaluate(smaller, 1e-6).interval.upper > tolerance["epsilon"] > 0
    assert tolerance["sentence"] in err
    assert record["abilities"] == PLAIN.to_json()
    page = (place / "found" / "report.html").read_text()
    assert "Nothing that the bench tried tells this trainer from DP-SGD" in page
    assert "does not declare dense parameters" in page
    assert "Limits" in page
    assert "What the tolerance could cost" in page
    assert not re.search(r"(src|href)=[\"'](?!#)", page)  # asks for nothing from outside: plots refer to themselves
    assert "Nothing that the bench tried" in err


def test_a_crash_is_a_finding_with_the_input_that_shows_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = samelaw("their:Raises", "--runs", "2", "--quiet", "--out", "found", capsys=capsys)
    assert status == 1
    line = "a batch smaller than expected (3 examples where 8 are expected), step 0: expected no error, found crashed"
    assert line in out
    assert "Traceback" not in out + err
    assert "KeyError" in (place / "found" / "report.html").read_text()


def test_the_bench_stops_asking_a_trainer_that_hangs(place: Path) -> None:
    with Worker("their:Hangs", timeout=0.5) as worker:
        asked: list[int] = []

        def run(job: Any) -> Any:
            asked.append(job.seed)
            return worker(job)

        found = conform(run, worker.abilities, runs=2)
    assert len(asked) == PATIENCE
    by_claim = {item.claim: item for item in found}
    assert by_claim["B1"].first_disagreement is not None
    assert "timed out" in by_claim["B1"].first_disagreement.found
    assert "not asked for" in by_claim["B1"].numbers["failures"][-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "needs either MODULE:FACTORY or --command"),
        (("their:Good", "--command", "x {in} {out}"), "needs either MODULE:FACTORY or --command"),
        (("their:Good", "--abilities", "a.json"), "--abilities goes with --command"),
        (("their:Good", "--runs", "1"), "--runs must be >= 2"),
        (("their:Good", "--timeout", "0"), "--timeout must be > 0"),
        (("their:Good", "--timeout", "nan"), "--timeout must be > 0"),
        (("their:Good", "--timeout", "inf"), "--timeout must be > 0 and at most 86400"),
        (("their:Good", "--price", "0", "0.01", "100", "1e-6"), "SIGMA of --price must be > 0"),
        (("their:Good", "--price", "1", "1.01", "100", "1e-6"), "sampling_rate must be in"),
        (("their:Good", "--price", "1", "0.01", "x", "1e-6"), "--price takes SIGMA RATE STEPS DELTA"),
        (("their:Good", "--price", "1", "0.01", "100", "1"), "DELTA of --price must be in"),
        (("their:Good", "--false-alarm", "0.5"), "--false-alarm must be in"),
        (("their:Good", "--seed", "-1"), "--seed must be >= 0"),
        (("--command", "prog {in}"), "must name {in} and {out}"),
        (("--command", "prog '{in} {out}"), "cannot be split into words"),
        (("--command", "no-such-program {in} {out}", "--out", "o"), "cannot be started"),
        (("--command", "x {in} {out}", "--abilities", "absent.json"), "cannot be read as JSON"),
        (("their:Good", "--out", "."), "is not empty"),
    ],
)
def test_bad_options_end_with_status_2_and_one_line(
    arguments: tuple[str, ...], words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = samelaw(*arguments, "--quiet", capsys=capsys)
    assert (status, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


# --- programs that speak files ---------------------------------------------------------------------------------------


def program(text: str, *, timeout: float = 60) -> Command:
    Path("prog.py").write_text(textwrap.dedent(text))
    return Command(f"{sys.executable} prog.py {{in}} {{out}}", PLAIN, timeout=timeout)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("import sys; sys.exit('cannot go on')", Kind.CRASHED, "exit status 1: cannot go on"),
        ("import os; os.abort()", Kind.CRASHED, "killed by SIGABRT: it wrote nothing to standard error"),
        ("import time; time.sleep(600)", Kind.TIMED_OUT, "not done within 0.5 s"),
        ("pass", Kind.MALFORMED, "release/item.npy is missing"),
    ],
)
def test_a_program_that_fails_says_how(text: str, kind: Kind, words: str, place: Path) -> None:
    failure = program(text, timeout=0.5 if "sleep" in text else 60)(JOB).failure
    assert failure is not None
    assert (failure.kind, words) == (kind, words)
    assert words in failure.message


def test_a_program_s_children_end_with_it(place: Path) -> None:
    failure = program(
        f"""
        import subprocess, time
        child = subprocess.Popen([{sys.executable!r}, "-c", "import time; time.sleep(600)"])
        open("child", "w").write(str(child.pid))
        time.sleep(600)
        """,
        timeout=2,
    )(JOB).failure
    assert failure is not None
    child = int((place / "child").read_text())
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and _alive(child):
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_the_trainer_in_c_conforms(place: Path) -> None:
    source = Path(__file__).parent.parent / "docs" / "bench-examples" / "trainer.c"
    compiled = subprocess.run(
        ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", "trainer", str(source), "-lm"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert compiled.returncode == 0, compiled.stderr
    declared = Abilities.of(
        json.loads(source.with_name("trainer-abilities.json").read_text()), "trainer-abilities.json"
    )
    runner = Command(f"{os.curdir}/trainer {{in}} {{out}}", declared, timeout=60)
    found = conform(runner, declared, runs=2, seed=3)
    assert [item.summary for item in found if not item.verdict.holds] == []
