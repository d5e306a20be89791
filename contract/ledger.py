"""The ledger: what a run spent, as it happened, append-only and hash-chained.

One JSON object a line: {"schema", "seq", "prev", "event", "data", "hash"}. `hash` is SHA-256 over the canonical JSON
(sorted keys, no spaces) of the list [schema, seq, prev, event, data]; `prev` is the hash of the line before (64 zeros
at the start). docs/run-folder.md lists the events.
The ledger holds batch sizes as drawn, which are sensitive: it belongs to the run's owner and reviewer.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from samelaw.contract.errors import LedgerError

SCHEMA = "samelaw.ledger/1"
GENESIS = "0" * 64
EVENTS = ("open", "spend", "step", "settle", "checkpoint", "resume", "release")


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    seq: int
    prev: str
    event: str
    data: dict[str, Any]
    hash: str

    @classmethod
    def make(cls, seq: int, prev: str, event: str, data: dict[str, Any]) -> Entry:
        return cls(seq, prev, event, data, _hash(seq, prev, event, data))

    def line(self) -> str:
        record = {
            "schema": SCHEMA,
            "seq": self.seq,
            "prev": self.prev,
            "event": self.event,
            "data": self.data,
            "hash": self.hash,
        }
        return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)


class Ledger:
    """Append-only record of a run, in memory and, when `path` is given, on disk.

    Every append is handed to the operating system whole or not at all, so a killed process loses no entry and a full
    disk leaves no part of one; `sync` also asks the disk. While a ledger is open, its file is locked: two processes
    that continue one run would spend twice.

    Raises:
        LedgerError: the file exists (to go on with it is `reopen`).
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.entries: list[Entry] = []
        self._file: FileIO | None = None
        if self.path is not None:
            if self.path.exists():
                raise LedgerError(
                    f"{self.path} exists; a ledger is never overwritten. "
                    "Resume with Ledger.reopen or choose another folder"
                )
            self._file = FileIO(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")
            _lock(self._file, self.path)

    @classmethod
    def reopen(cls, path: str | Path) -> Ledger:
        """Open an existing ledger for appending, after checking its chain.

        A last line that was cut by a crash (no newline, not valid JSON) is dropped from the file: it was never
        acknowledged. Anything else that does not verify is an error.

        Raises:
            LedgerError: not there, not whole, or open elsewhere.
        """
        ledger = cls()
        ledger.path = Path(path)
        try:
            handle = FileIO(os.open(ledger.path, os.O_RDWR), "r+")
        except OSError as cause:
            raise LedgerError(f"cannot read the ledger {path}: {cause}") from cause
        try:
            _lock(handle, ledger.path)
            whole, newline, torn = handle.readall().rpartition(b"\n")
            text = (whole + newline).decode("utf-8", errors="strict")
            ledger.entries = list(verify_lines(text, where=str(path)))
            if not ledger.entries:
                raise LedgerError(
                    f"{path} holds no whole ledger entry; there is no run to resume, and it is left as it is"
                )
            if torn:
                handle.truncate(len(whole) + len(newline))
            handle.seek(0, os.SEEK_END)
        except (OSError, UnicodeDecodeError) as cause:
            handle.close()
            raise LedgerError(f"cannot read the ledger {path}: {cause}") from cause
        except LedgerError:
            handle.close()
            raise
        ledger._file = handle
        return ledger

    @property
    def head(self) -> str:
        """Hash of the last entry."""
        return self.entries[-1].hash if self.entries else GENESIS

    def next(self, event: str, data: dict[str, Any]) -> Entry:
        """The entry that `append` would add now."""
        return Entry.make(len(self.entries), self.head, event, data)

    def append(self, event: str, data: dict[str, Any]) -> Entry:
        """Add an entry.

        Raises:
            LedgerError: no such event; or the ledger was closed.
            OSError: it could not be written; file and ledger are as they were.
        """
        if event not in EVENTS:
            raise LedgerError(f"event must be one of {EVENTS}, got {event!r}")
        if self.path is not None and self._file is None:
            raise LedgerError(f"{self.path} has been closed; go on with Ledger.reopen")
        entry = self.next(event, data)
        line = (entry.line() + "\n").encode()
        end = 0 if self._file is None else self._file.tell()
        try:
            self.entries.append(entry)
            while self._file is not None and line:
                line = line[self._file.write(line) :]
        except BaseException:  # a full disk, or Ctrl-C: take it back, here and there
            del self.entries[entry.seq :]
            if self._file is not None:
                self._file.truncate(end)
                self._file.seek(end)
            raise
        return entry

    def sync(self) -> None:
        """Force the file to disk: before a checkpoint or a release refers to an entry."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None


def _lock(file: FileIO, path: Path) -> None:
    """Hold the file until it is closed or the process ends. File systems without locks are left unlocked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as cause:
        raise LedgerError(
            f"{path} is open elsewhere, and two writers would break its chain; end the other run, or close() its ledger"
        ) from cause
    except OSError as cause:
        if cause.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise


def read_ledger(path: str | Path) -> list[Entry]:
    """Read and verify a ledger file.

    Raises:
        LedgerError: a line is malformed, out of order, or does not hash to what it says.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise LedgerError(f"cannot read the ledger {path}: {cause}") from cause
    return list(verify_lines(text, where=str(path)))


def verify_lines(text: str, *, where: str) -> Iterator[Entry]:
    """Yield the entries of a ledger, checking the chain line by line."""
    prev = GENESIS
    for number, line in enumerate(text.splitlines()):
        place = f"{where}, line {number + 1}"
        try:
            record = json.loads(line, parse_constant=_no_constant)
            entry = Entry(record["seq"], record["prev"], record["event"], record["data"], record["hash"])
            schema = record["schema"]
        except (ValueError, KeyError, TypeError, RecursionError) as cause:
            raise LedgerError(f"{place} is not a ledger entry: {cause!r}") from cause
        if schema != SCHEMA or len(record) != 6 or entry.event not in EVENTS or type(record["data"]) is not dict:
            raise LedgerError(f"{place} is not an entry of {SCHEMA}")
        if entry.seq != number or entry.prev != prev:
            raise LedgerError(
                f"{place}: the chain is broken (seq {entry.seq}, expected {number}); a line was removed, moved or added"
            )
        if _hash(entry.seq, entry.prev, entry.event, entry.data) != entry.hash:
            raise LedgerError(f"{place}: the entry does not hash to what it says; it was edited")
        prev = entry.hash
        yield entry


@dataclass(frozen=True)
class Spent:
    """What a verified ledger says was run, after resumes are resolved.

    Attributes:
        opened: data of the "open" entry.
        steps: data of each step that counts, in step order; a step that was run again after a resume counts once,
            and must have been the same step.
        releases: data of each "release" entry.
        resumes: number of resumes.
        spends: data of each "spend" entry: what was learned from the same data outside the steps.
    """

    opened: dict[str, Any]
    steps: list[dict[str, Any]]
    releases: list[dict[str, Any]]
    resumes: int
    spends: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


def spent(entries: list[Entry]) -> Spent:
    """Resolve a verified ledger into the steps that count.

    Raises:
        LedgerError: no or two openings; a step out of order; a step re-run after a resume differs from its first run
            (other data or another sampler: its output would be a second release that nobody charged for); anything
            after a release.
    """
    if not entries or entries[0].event != "open" or any(e.event == "open" for e in entries[1:]):
        raise LedgerError("a ledger starts with exactly one 'open' entry")
    steps: list[dict[str, Any]] = []
    next_step, resumes = 0, 0
    releases: list[dict[str, Any]] = []
    spends: list[dict[str, Any]] = []
    for entry in entries[1:]:
        if releases:
            raise LedgerError(
                f"entry {entry.seq} ({entry.event}) comes after the release: a run is released once; a second release, "
                "from a checkpoint or of later steps, is spending that nobody charged for"
            )
        if entry.event == "resume":
            resumes += 1
            target = _step_of(entry)
            if not 0 <= target <= len(steps):
                raise LedgerError(f"entry {entry.seq} resumes at step {target}, but only {len(steps)} steps were run")
            next_step = target
        elif entry.event == "step":
            if _step_of(entry) != next_step:
                raise LedgerError(f"entry {entry.seq} is step {_step_of(entry)}, expected {next_step}")
            if next_step < len(steps):
                if steps[next_step] != entry.data:
                    raise LedgerError(
                        f"entry {entry.seq} runs step {next_step} again, and differently: "
                        f"{steps[next_step]} then {entry.data}"
                    )
            else:
                steps.append(entry.data)
            next_step += 1
        elif entry.event == "release":
            if _step_of(entry) != next_step or next_step != len(steps):
                raise LedgerError(f"entry {entry.seq} releases step {_step_of(entry)}, but {len(steps)} steps were run")
            releases.append(entry.data)
        elif entry.event == "spend":
            spends.append(entry.data)
    return Spent(entries[0].data, steps, releases, resumes, spends)


def _step_of(entry: Entry) -> int:
    """The step that an entry speaks of."""
    step = entry.data.get("step")
    if type(step) is not int or step < 0:
        raise LedgerError(f"entry {entry.seq} ({entry.event}) must name a step >= 0, got {step!r}")
    return step


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def _hash(seq: int, prev: str, event: str, data: dict[str, Any]) -> str:
    body = json.dumps([SCHEMA, seq, prev, event, data], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(body.encode()).hexdigest()
