"""Resume checkpoints: the same bits as if the run had never stopped, or a refusal: no draw repeated or skipped."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from samelaw.contract.errors import LedgerError, NoiseKeyError, ResumeError, SamelawError
from samelaw.contract.ledger import Ledger, read_ledger, spent
from samelaw.contract.noise import NoiseKey
from samelaw.contract.run import Release
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import Mode, PrivacySpec
from samelaw.fast.checkpoint import Checkpoint, CheckpointRecord, write_checkpoint
from samelaw.fast.trainer import LazyTrainer

STEPS, EXAMPLES = 14, 10


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny arrays only wait for a second thread; and both halves of a resumed run need the same number."""
    before = torch.get_num_threads(), numba.get_num_threads()
    numba.set_num_threads(1)  # first: it may set torch's number too
    torch.set_num_threads(1)
    yield
    numba.set_num_threads(before[1])
    torch.set_num_threads(before[0])


class Net(nn.Module):
    def __init__(self, rows: int = 30) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(rows, 4, mode="mean")
        self.tags = nn.Embedding(5, 4, padding_idx=1)
        self.register_buffer("shift", torch.arange(4.0))
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(4, 1)

    def forward(self, indices: np.ndarray) -> Tensor:
        at = torch.from_numpy(indices)
        ids = torch.stack([at % 7, (3 * at) % 30, at + 11], dim=1)
        x = self.table(ids) + self.tags((at % 5)[:, None]).sum(1) + self.shift
        return self.out(self.drop(x))[:, 0].square()


def spec_of(mode: Mode = Mode.REPLAY, **changes: Any) -> PrivacySpec:
    schedule = Schedule.piecewise([6], [0.5, 0.2], steps=STEPS)
    return PrivacySpec(**{
        "clip_norm": 1.0, "noise_multiplier": 1.0, "sampling_rate": 0.3, "expected_batch_size": 3.0, "delta": 1e-5,
        "schedule": schedule, "mode": mode, **changes,
    })  # fmt: skip


def trainer_of(spec: PrivacySpec | None = None, *, seed: int = 5, key: int = 1, **arguments: Any) -> LazyTrainer:
    torch.manual_seed(seed)
    model = arguments.pop("model", None) or Net()
    return LazyTrainer(model, spec or spec_of(), NoiseKey.from_seed(key), examples=EXAMPLES, **arguments)


def advance(trainer: LazyTrainer, until: int) -> None:
    while trainer.step_index < until:
        drawn = trainer.sample()
        if len(drawn) == 0:
            trainer.empty_step()
        else:
            trainer.step(trainer.model(drawn))


def finished(trainer: LazyTrainer) -> Release:
    advance(trainer, STEPS)
    return trainer.release()


def same(a: Release, b: Release) -> bool:
    return all(
        set(x) == set(y) and all(x[k].tobytes() == y[k].tobytes() for k in x)
        for x, y in ((a.tables, b.tables), (a.dense, b.dense))
    )


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("stop", [0, 1, 9, STEPS])
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(mode: Mode, stop: int, tmp_path: Path) -> None:
    expected = finished(trainer_of(spec_of(mode)))
    first = trainer_of(spec_of(mode), ledger=Ledger(tmp_path / "ledger.jsonl"))
    advance(first, stop)
    first.save_checkpoint(tmp_path / "run.resume")
    advance(first, min(stop + 2, STEPS))  # steps that the crash takes back
    first.ledger.close()

    # Another process would start from other initial weights and another state of torch's generator.
    second = trainer_of(spec_of(mode), seed=99, ledger=Ledger.reopen(tmp_path / "ledger.jsonl"))
    second.load_checkpoint(tmp_path / "run.resume")
    assert second.step_index == stop
    assert same(finished(second), expected)
    second.ledger.close()
    entries = read_ledger(tmp_path / "ledger.jsonl")
    priced = spent(entries)
    assert (len(priced.steps), priced.resumes) == (STEPS, 1)
    assert [e.event for e in entries].count("checkpoint") == 1


def test_a_resume_that_forgets_what_rows_owe_has_other_bits(tmp_path: Path) -> None:
    expected = finished(trainer_of())
    trainer = trainer_of()
    advance(trainer, 5)
    trainer.save_checkpoint(tmp_path / "run.resume")
    trainer.load_checkpoint(tmp_path / "run.resume")
    for table in trainer.tables.values():
        table.history.clamp_(min=5)
    assert not same(finished(trainer), expected)


def test_a_ledger_without_a_file_comes_back_with_the_checkpoint(tmp_path: Path) -> None:
    expected = finished(trainer_of())
    first = trainer_of()
    advance(first, 4)
    first.save_checkpoint(tmp_path / "run.resume")
    second = trainer_of(seed=99)
    second.load_checkpoint(tmp_path / "run.resume")
    assert same(finished(second), expected)
    assert len(spent(second.ledger.entries).steps) == STEPS


def test_going_back_within_one_trainer_gives_the_same_bits(tmp_path: Path) -> None:
    expected = finished(trainer_of())
    trainer = trainer_of(record=True)
    advance(trainer, 3)
    trainer.save_checkpoint(tmp_path / "run.resume")
    advance(trainer, 8)
    trainer.load_checkpoint(tmp_path / "run.resume")
    assert same(finished(trainer), expected)
    assert trainer.transcript is not None
    assert [record.step for record in trainer.transcript.steps] == list(range(STEPS))


def test_an_interrupted_trainer_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    expected = finished(trainer_of())
    trainer = trainer_of()
    advance(trainer, 3)
    trainer.save_checkpoint(tmp_path / "run.resume")

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    trainer.tables["table"].pay = broken  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        advance(trainer, STEPS)
    with pytest.raises(ResumeError, match="interrupted while it wrote"):
        trainer.empty_step()
    del trainer.tables["table"].pay
    trainer.load_checkpoint(tmp_path / "run.resume")
    assert same(finished(trainer), expected)


def test_look_ahead_survives_a_resume(tmp_path: Path) -> None:
    expected = finished(trainer_of())
    trainer = trainer_of()
    advance(trainer, 3)
    trainer.look_ahead({"table": range(20)})
    advance(trainer, 4)
    trainer.save_checkpoint(tmp_path / "run.resume")
    resumed = trainer_of(seed=8)
    resumed.load_checkpoint(tmp_path / "run.resume")
    assert int((resumed.tables["table"].history >= 4).sum()) >= 20
    assert same(finished(resumed), expected)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    trainer = trainer_of()
    advance(trainer, 4)
    trainer.save_checkpoint(tmp_path / "run.resume")
    return tmp_path / "run.resume"


def test_the_file_is_private_and_holds_no_key(saved: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    raw = saved.read_bytes()
    key = NoiseKey.from_seed(1)
    assert key.to_bytes() not in raw
    assert key.to_bytes().hex().encode() not in raw
    assert os.listdir(saved.parent) == [saved.name]


def test_the_file_is_what_it_says_in_the_safetensors_format(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
        history = file.get_tensor("history/table")
    assert names == {
        "table/table", "history/table", "table/tags", "history/tags", "dense/out.weight", "dense/out.bias",
        "buffer/shift", "random",
    }  # fmt: skip
    assert history.dtype is torch.int32
    assert metadata["schema"] == "samelaw.checkpoint/1"
    assert "never publish" in metadata["warning"]
    record = json.loads(metadata["record"])
    assert record["step"] == 4
    assert record["key_commitment"] == NoiseKey.from_seed(1).commitment()
    assert record["law_digest"] == spec_of().digest()


def test_a_loose_umask_and_a_leftover_do_not_open_the_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        leftover = tmp_path / f".run.resume.{os.getpid()}.tmp"
        leftover.write_bytes(b"half a checkpoint")
        leftover.chmod(0o644)
        trainer_of().save_checkpoint(tmp_path / "run.resume")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run.resume").stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_the_old_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("samelaw.fast.checkpoint._write", full)
    trainer = trainer_of()
    with pytest.raises(OSError, match="no space"):
        trainer.save_checkpoint(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def untouched(trainer: LazyTrainer, attempt: Any, error: type[SamelawError], message: str) -> None:
    """The refusal, and proof that it changed nothing."""
    weights = {name: table.weights.clone() for name, table in trainer.tables.items()}
    histories = {name: table.history.clone() for name, table in trainer.tables.items()}
    entries = list(trainer.ledger.entries)
    with pytest.raises(error, match=message):
        attempt()
    assert trainer.step_index == 0
    assert trainer.ledger.entries == entries
    for name, table in trainer.tables.items():
        assert torch.equal(table.weights, weights[name])
        assert torch.equal(table.history, histories[name])
    trainer.empty_step()


@pytest.mark.parametrize("where", [0, 3, 8, 40, 200, -1, -100, -4000])
def test_a_damaged_file_is_refused(saved: Path, where: int) -> None:
    raw = bytearray(saved.read_bytes())
    raw[where] ^= 1
    saved.write_bytes(raw)
    trainer = trainer_of()
    untouched(trainer, lambda: trainer.load_checkpoint(saved), ResumeError, "run.resume")


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_file_that_was_cut_is_refused(saved: Path, size: int) -> None:
    saved.write_bytes(saved.read_bytes()[:size])
    trainer = trainer_of()
    untouched(trainer, lambda: trainer.load_checkpoint(saved), ResumeError, "run.resume")


def test_a_missing_file_and_another_kind_of_file_are_refused(tmp_path: Path) -> None:
    trainer = trainer_of()
    untouched(trainer, lambda: trainer.load_checkpoint(tmp_path / "none"), ResumeError, "cannot read a checkpoint from")
    (tmp_path / "list").write_bytes((2).to_bytes(8, "little") + b"[]")
    trainer = trainer_of()
    untouched(trainer, lambda: trainer.load_checkpoint(tmp_path / "list"), ResumeError, "cannot read a checkpoint from")
    trainer = trainer_of()
    untouched(trainer, lambda: trainer.load_checkpoint(tmp_path), ResumeError, "cannot read a checkpoint from")


def test_another_key_is_refused(saved: Path) -> None:
    trainer = trainer_of(key=2)
    untouched(trainer, lambda: trainer.load_checkpoint(saved), NoiseKeyError, "belongs to the key with commitment")


@pytest.mark.parametrize(
    "changes",
    [{"clip_norm": 1.5}, {"rounds": 20}, {"mode": Mode.BRIDGE}, {"schedule": Schedule.constant(1.0, steps=9)}],
)
def test_another_law_is_refused(saved: Path, changes: dict[str, Any]) -> None:
    trainer = trainer_of(spec_of(**changes))
    untouched(trainer, lambda: trainer.load_checkpoint(saved), ResumeError, "under another law")


def test_another_model_is_refused(saved: Path) -> None:
    for model, message in (
        (Net(rows=31), r"holds \('I32', \(30,\)\) for 'history/table', the model has \('I32', \(31,\)\)"),
        (nn.Sequential(nn.EmbeddingBag(30, 4)), "holds .* for 'buffer/shift', the model has nothing"),
    ):
        trainer = trainer_of(model=model)
        untouched(trainer, lambda t=trainer: t.load_checkpoint(saved), ResumeError, message)


def test_a_ledger_that_does_not_know_the_checkpoint_is_refused(tmp_path: Path) -> None:
    first = trainer_of(ledger=Ledger(tmp_path / "ledger.jsonl"))
    advance(first, 4)
    first.save_checkpoint(tmp_path / "run.resume")
    trainer = trainer_of(ledger=Ledger(tmp_path / "other.jsonl"))
    untouched(trainer, lambda: trainer.load_checkpoint(tmp_path / "run.resume"), ResumeError, "not among the 1 entries")
    # A ledger that was cut back to before the checkpoint no longer charges for its steps.
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines(keepends=True)
    first.ledger.close()
    (tmp_path / "ledger.jsonl").write_text("".join(lines[:3]))
    resumed = trainer_of(ledger=Ledger.reopen(tmp_path / "ledger.jsonl"))
    with pytest.raises(ResumeError, match="not among the 3 entries"):
        resumed.load_checkpoint(tmp_path / "run.resume")


def test_a_run_that_was_begun_must_be_resumed_before_it_goes_on(tmp_path: Path) -> None:
    first = trainer_of(ledger=Ledger(tmp_path / "ledger.jsonl"))
    advance(first, 2)
    first.ledger.close()
    second = trainer_of(ledger=Ledger.reopen(tmp_path / "ledger.jsonl"))
    for attempt in (second.empty_step, second.sample, second.release):
        with pytest.raises(ResumeError, match="load_checkpoint"):
            attempt()
    with pytest.raises(LedgerError, match="opened by another run"):
        trainer_of(key=7, ledger=second.ledger)


def test_a_key_that_was_read_back_from_its_file_resumes_its_run(tmp_path: Path) -> None:
    key = NoiseKey.from_os()
    key.save(tmp_path / "key")
    first = LazyTrainer(Net(), spec_of(), key, examples=EXAMPLES, ledger=Ledger(tmp_path / "ledger.jsonl"))
    advance(first, 2)
    first.save_checkpoint(tmp_path / "run.resume")
    first.ledger.close()
    again = NoiseKey.load(tmp_path / "key")
    assert again.origin == "file"
    ledger = Ledger.reopen(tmp_path / "ledger.jsonl")
    second = LazyTrainer(Net(), spec_of(), again, examples=EXAMPLES, ledger=ledger)
    second.load_checkpoint(tmp_path / "run.resume")
    finished(second)


def test_checkpoints_are_made_between_steps(tmp_path: Path) -> None:
    trainer = trainer_of()
    trainer.model(np.arange(3))
    with pytest.raises(SamelawError, match="save checkpoints between steps"):
        trainer.save_checkpoint(tmp_path / "run.resume")
    trainer.discard()
    trainer.save_checkpoint(tmp_path / "run.resume")


def test_every_dtype_layout_and_size_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samelaw.fast.checkpoint._CHUNK", 64)  # so that tensors take several chunks
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype): torch.randint(0, 2, (7, 11), generator=generator).to(dtype)
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
                      torch.int16, torch.int8, torch.uint8, torch.bool)
    }  # fmt: skip
    tensors["scalar"] = torch.tensor(3.5)
    tensors["empty"] = torch.zeros(0, 3)
    tensors["transposed"] = torch.arange(60.0).view(3, 4, 5).transpose(0, 2)
    tensors["channels last"] = torch.arange(240.0).view(2, 3, 4, 10).contiguous(memory_format=torch.channels_last)
    tensors["strided"] = torch.arange(20.0)[::2]
    record = CheckpointRecord(1, "law", "key", 0, "head", ("a", "b"), "frozen")
    write_checkpoint(tmp_path / "x", tensors, record)
    found = Checkpoint(tmp_path / "x")
    assert found.record == record
    into = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    into["transposed"] = torch.zeros(3, 4, 5).transpose(0, 2)
    found.check(law_digest="law", key_commitment="key", frozen="frozen", tensors=into)
    found.load_into(into)
    for name, tensor in tensors.items():
        assert torch.equal(into[name], tensor), name


# A run that is killed. The nursery imports everything once and forks a child per attempt, so that twenty kills take
# seconds; it starts no thread before it forks.

CHILD = """
import importlib.util, os, signal, sys, time
import torch
torch.set_num_threads(1)
os.environ["NUMBA_NUM_THREADS"] = "1"
spec = importlib.util.spec_from_file_location("case", sys.argv[1])
case = importlib.util.module_from_spec(spec)
spec.loader.exec_module(case)
for line in sys.stdin:
    folder = line.strip()
    pid = os.fork()
    if pid == 0:
        case.attempt(case.Path(folder))
        os._exit(0)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(status, flush=True)
"""


def attempt(folder: Path) -> None:
    """Run or resume in `folder`, a checkpoint after every third step; at the end, write the released bytes."""
    ledger, checkpoint = folder / "ledger.jsonl", folder / "run.resume"
    if ledger.exists() and not checkpoint.exists():  # killed before there was anything to go on from
        ledger.unlink()
    resuming = ledger.exists()
    trainer = trainer_of(
        seed=os.getpid() if resuming else 5, ledger=Ledger.reopen(ledger) if resuming else Ledger(ledger)
    )
    if resuming:
        trainer.load_checkpoint(checkpoint)
    (folder / "started").touch()
    for step in range(trainer.step_index, STEPS):
        if step % 3 == 0:
            trainer.save_checkpoint(checkpoint)
        advance(trainer, step + 1)
        time.sleep(0.004)
    release = trainer.release()
    trainer.ledger.close()
    (folder / "released").write_bytes(everything(release))


def everything(release: Release) -> bytes:
    return b"".join(part[name].tobytes() for part in (release.tables, release.dense) for name in part)


def killed_and_resumed(folder: Path, kills: int) -> None:
    """Kill the run `kills` times, each at a random moment, then let it finish."""
    expected = everything(finished(trainer_of()))
    moments = random.Random(20261122)
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    nursery = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(Path(__file__).resolve())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    struck = run_number = struck_here = 0
    try:
        while struck < kills or struck_here:
            run = folder / f"run{run_number}"
            run.mkdir(exist_ok=True)
            (run / "started").unlink(missing_ok=True)
            nursery.stdin.write(f"{run}\n")
            nursery.stdin.flush()
            pid = int(nursery.stdout.readline())
            if struck < kills and struck_here < 4:  # a run is killed up to four times, then left to end
                while not (run / "started").exists() and _alive(pid):
                    time.sleep(0.001)
                time.sleep(moments.uniform(0, 0.06))
                if _alive(pid):
                    os.kill(pid, signal.SIGKILL)
            status = int(nursery.stdout.readline())
            if os.WIFSIGNALED(status):
                assert os.WTERMSIG(status) == signal.SIGKILL
                struck, struck_here = struck + 1, struck_here + 1
            else:
                assert status == 0
                if not (run / "over").exists():
                    assert (run / "released").read_bytes() == expected
                assert len(spent(read_ledger(run / "ledger.jsonl")).steps) == STEPS
                run_number, struck_here = run_number + 1, 0
    finally:
        nursery.kill()
        nursery.wait()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("kills", [8, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_many_times_resumes_to_the_same_bits(kills: int, tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, kills=kills)
