"""Small run folders for the audit's tests, and the tools of somebody who forges them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from samelaw.accounting import statement
from samelaw.audit import integrity
from samelaw.cli import train
from samelaw.cli.main import build_parser, main
from samelaw.contract.ledger import GENESIS, SCHEMA, Entry
from samelaw.contract.noise import NoiseKey
from samelaw.contract.trace import Feature
from samelaw.workloads.base import Dataset, Workload, one_each

STEPS, EXAMPLES = 6, 400
KEY = NoiseKey.from_bytes(hashlib.sha256(b"the key of the audit's tests").digest(), origin="os")
OTHER_KEY = NoiseKey.from_bytes(hashlib.sha256(b"the key of another run").digest(), origin="os")
_state = cache(statement.state_plan)


@dataclass(frozen=True)
class Run:
    """A run folder with what a reviewer may get beside it."""

    folder: Path
    key: Path
    transcript: Path

    def copy(self, place: Path) -> Run:
        shutil.copytree(self.folder, place / "run")
        shutil.copy(self.key, place / "run.key")
        shutil.copy(self.transcript, place / "run.transcript")
        return Run(place / "run", place / "run.key", place / "run.transcript")

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_text())

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "ledger.jsonl").read_text().splitlines()]


def tiny_workload() -> Workload:
    """Two tables: most rows of the larger one are never read."""
    rng = np.random.default_rng(7)
    features = (Feature("item", "item", 300), Feature("place", "place", 40))
    ids = (one_each(rng.zipf(1.4, EXAMPLES) % 300), one_each(rng.integers(0, 40, EXAMPLES)))
    dense, labels = rng.normal(size=(EXAMPLES, 3)).astype(np.float32), (rng.random(EXAMPLES) < 0.5).astype(np.float32)
    data = Dataset(dense, ids, labels)
    return Workload("tiny", features, 3, data, data.take(np.arange(0)), {}, licence="none needed", source="the tests")


def make_run(
    place: Path, *options: str, mode: str = "aggregate", key: NoiseKey = KEY, prepare: Callable[..., Any] | None = None
) -> Run:
    """`samelaw train` on the tiny workload, with a key that a test can repeat."""
    run = Run(place / "run", place / "run.key", place / "run.transcript")
    arguments = ["train", "tiny", "--steps", str(STEPS), "--batch-size", "40", "--noise-multiplier", "1", "--dim", "8"]
    arguments += ["--mode", mode, "--quiet", "--out", str(run.folder), "--key-file", str(run.key)]
    arguments += ["--transcript", str(run.transcript), *options]
    with (
        fast_pricing(),
        mock.patch.object(train, "load_workload", return_value=tiny_workload()),
        mock.patch.object(train, "epsilon_by_step", return_value=[]),
        mock.patch.object(train, "write_report", lambda path, *_: path.write_text("<!doctype html>")),
        mock.patch.object(train.NoiseKey, "from_os", return_value=key),
    ):
        assert train.run_train(build_parser().parse_args(arguments), prepare=prepare) == 0
    return run


@contextmanager
def fast_pricing() -> Iterator[None]:
    """The accountants are asked once for each mechanism, and few seeds are tried."""
    with mock.patch.object(statement, "state_plan", _state), mock.patch.object(integrity, "GUESSABLE_SEEDS", 64):
        yield


def audit(run: Run, *options: object, replay: bool = False) -> int:
    """Exit status of `samelaw audit`."""
    arguments = ["audit", str(run.folder), *map(str, options)]
    if replay:
        arguments += ["--key", str(run.key), "--transcript", str(run.transcript)]
    with fast_pricing():
        return main(arguments)


def findings(run: Run, *options: object, replay: bool = False) -> dict[str, str]:
    """Verdict of every check."""
    out = run.folder.parent / "report.html"
    audit(run, "--out", out, *options, replay=replay)
    record = json.loads(out.with_suffix(".record.json").read_text())
    return {check["check"]: check["verdict"] for check in record["checks"]}


def refuted(run: Run, *options: object, replay: bool = False) -> set[str]:
    return {check for check, verdict in findings(run, *options, replay=replay).items() if verdict == "REFUTED"}


# Forging.


def write_manifest(run: Run, manifest: dict[str, Any]) -> None:
    (run.folder / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def edit_manifest(run: Run, edit: Callable[[dict[str, Any]], Any]) -> None:
    manifest = run.manifest
    edit(manifest)
    write_manifest(run, manifest)


def write_lines(run: Run, lines: list[str]) -> None:
    (run.folder / "ledger.jsonl").write_text("".join(line + "\n" for line in lines))


def lines(run: Run) -> list[str]:
    return (run.folder / "ledger.jsonl").read_text().splitlines()


def rebind(run: Run) -> None:
    """Make the manifest name the files as they are now."""

    def edit(manifest: dict[str, Any]) -> None:
        for name in manifest["files"]:
            manifest["files"][name] = hashlib.sha256((run.folder / name).read_bytes()).hexdigest()
        last = run.entries[-1]
        manifest["ledger"] = {"head": last["hash"], "entries": last["seq"] + 1}

    edit_manifest(run, edit)


def rewrite_ledger(run: Run, events: list[tuple[str, dict[str, Any]]]) -> None:
    """A ledger of these events whose chain verifies, weights that name its release, a manifest that binds both."""
    prev, chained = GENESIS, list[str]()
    for seq, (event, data) in enumerate(events):
        entry = Entry.make(seq, prev, event, data)
        prev = entry.hash
        chained.append(entry.line())
    assert all(SCHEMA in line for line in chained)
    write_lines(run, chained)
    rewrite_weights(run, lambda tensors: None, head=prev, step=events[-1][1].get("step"))


def events(run: Run) -> list[tuple[str, dict[str, Any]]]:
    return [(entry["event"], entry["data"]) for entry in run.entries]


def rewrite_weights(
    run: Run,
    edit: Callable[[dict[str, np.ndarray]], Any],
    *,
    head: str | None = None,
    step: int | None = None,
    name: str = "weights.safetensors",
) -> None:
    """Change tensors and bind the new file."""
    path = run.folder / name
    with safe_open(path, framework="np") as file:
        metadata = dict(file.metadata())
    tensors = {key: value.copy() for key, value in load_file(path).items()}
    edit(tensors)
    path.unlink()
    told = {"ledger_head": head, "step": None if step is None else str(step)}
    save_file(tensors, path, metadata={**metadata, **{key: value for key, value in told.items() if value is not None}})
    rebind(run)


def rewrite_transcript(
    run: Run, edit: Callable[[dict[str, Any], bytes], bytes | None] = lambda header, payload: None
) -> None:
    """Edit frames, make them name the ledger's entries as they are now, chain them anew, and bind the last one.

    `edit` may change the header where it lies, and returns another payload, or None to leave it.
    """
    data, place, prev, out, frames = run.transcript.read_bytes(), 0, GENESIS, b"", 0
    entries = run.entries
    charged = [entry for entry in entries if entry["event"] == "step"]
    while place < len(data):
        header, payload = (int.from_bytes(data[place + a : place + b], "little") for a, b in ((0, 4), (4, 12)))
        record = json.loads(data[place + 12 : place + 12 + header])
        body = data[place + 12 + header : place + 12 + header + payload]
        if record["kind"] == "open":
            record["opened"] = entries[0]["data"]
        elif record["kind"] == "step":
            entry = charged[record["step"]]
            record.update(entry=entry["hash"], examples=entry["data"]["examples"])
        else:
            record["release"] = entries[-1]["hash"]
        changed = edit(record, body)
        body = body if changed is None else changed
        text = json.dumps({**record, "prev": prev}, sort_keys=True, separators=(",", ":")).encode()
        frame = len(text).to_bytes(4, "little") + len(body).to_bytes(8, "little") + text + body
        prev, out, place, frames = (
            hashlib.sha256(frame).hexdigest(),
            out + frame,
            place + 12 + header + payload,
            frames + 1,
        )
    run.transcript.write_bytes(out)
    edit_manifest(run, lambda m: m.update(transcript={"head": prev, "frames": frames}))


def relaw(
    run: Run,
    edit: Callable[[dict[str, Any]], Any],
    others: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda event, data: data,
) -> None:
    """Change what the ledger opens with, and other entries with it; law and digest agree everywhere."""
    told = events(run)
    opened = json.loads(json.dumps(told[0][1]))
    edit(opened)
    text = json.dumps(opened["law"], sort_keys=True, separators=(",", ":"))
    opened["law_digest"] = hashlib.sha256(text.encode()).hexdigest()
    rewrite_ledger(run, [("open", opened), *((event, others(event, data)) for event, data in told[1:])])
    edit_manifest(run, lambda m: m.update(law=opened["law"], law_digest=opened["law_digest"]))


def raw_tensors(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
