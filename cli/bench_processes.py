"""Trainers in processes of their own: a worker that runs a Python factory, and a command that speaks files."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from samelaw.contract.bench import Abilities
from samelaw.contract.errors import InputError
from samelaw.equivalence.bench.conduct import Failure, Kind, Outcome
from samelaw.equivalence.bench.files import read_outcome, write_job
from samelaw.equivalence.bench.problems import Job

_ENDING = 30.0  # seconds that a process may take to end once its pipe is closed
_STARTING = 120.0  # seconds that the import of a trainer may take at least; torch alone takes several


class Worker:
    """A Python factory in a process that is started again after a crash or a hang.

    Attributes:
        abilities: what the factory declares.
    """

    def __init__(self, trainer: str, *, timeout: float) -> None:
        self.trainer, self.timeout = trainer, timeout
        self._errors: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process: subprocess.Popen[str] | None = None
        self.abilities = self._start()

    def __call__(self, job: Job) -> Outcome:
        if self._process is None:
            self._start()
        with tempfile.TemporaryDirectory(prefix="samelaw-bench-") as folder:
            given, taken = Path(folder, "in"), Path(folder, "out")
            given.mkdir()
            taken.mkdir()
            write_job(given, job)
            answer = self._ask({"in": str(given), "out": str(taken)}, self.timeout)
            if isinstance(answer, Failure):
                return Outcome(failure=answer)
            failure = answer["failure"]
            if failure is not None:
                return Outcome(failure=Failure(**{**failure, "kind": Kind(failure["kind"])}))
            return read_outcome(taken, job)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Abilities:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "samelaw.cli.bench_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        hello = {"trainer": self.trainer, "path": [os.getcwd(), *sys.path]}
        answer = self._ask(hello, max(self.timeout, _STARTING))
        if isinstance(answer, Failure):
            raise InputError(f"{self.trainer} cannot be started: {answer.message}\n{answer.detail}")
        if "error" in answer:
            self.close()
            raise InputError(answer["error"])
        return Abilities.of(answer["abilities"], f"the abilities of {self.trainer}")

    def _ask(self, order: dict[str, Any], timeout: float) -> dict[str, Any] | Failure:
        """One line there, one line back; a Failure if the process died or did not answer in time."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            _end(process)

        timer = threading.Timer(timeout, give_up)
        timer.start()
        try:
            print(json.dumps(order), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        if line.endswith("\n") and not late.is_set():
            return json.loads(line)
        if not late.is_set():
            with suppress(subprocess.TimeoutExpired):  # its pipe is closed: let it end by itself and say how
                process.wait(_ENDING)
        _end(process)
        self._process = None
        if late.is_set():
            return Failure(Kind.TIMED_OUT, "some step", f"no answer within {timeout:g} s", self._said())
        return Failure(Kind.CRASHED, "some step", _status(process.returncode), self._said())

    def _said(self) -> str:
        """The end of what the process wrote to standard error."""
        return _tail(self._errors)


class Command:
    """A program that reads a job's folder and writes another, one process a job.

    Args:
        command: as for a shell, but run without one; {in} and {out} become the folders.
    """

    def __init__(self, command: str, abilities: Abilities, *, timeout: float) -> None:
        try:
            self.words = shlex.split(command)
        except ValueError as cause:
            raise InputError(f"--command {command!r} cannot be split into words: {cause}") from cause
        if not any("{in}" in word for word in self.words) or not any("{out}" in word for word in self.words):
            raise InputError(f"--command must name {{in}} and {{out}}, the folders of a job; got {command!r}")
        self.abilities, self.timeout = abilities, timeout

    def __call__(self, job: Job) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="samelaw-bench-") as folder:
            given, taken = Path(folder, "in"), Path(folder, "out")
            given.mkdir()
            taken.mkdir()
            write_job(given, job)
            words = [word.replace("{in}", str(given)).replace("{out}", str(taken)) for word in self.words]
            with _started(words) as (process, errors):
                try:
                    process.wait(self.timeout)
                except subprocess.TimeoutExpired:
                    message = f"not done within {self.timeout:g} s"
                    return Outcome(failure=Failure(Kind.TIMED_OUT, "the command", message))
                if process.returncode != 0:
                    said = _tail(errors)
                    last = said.strip().splitlines()[-1:] or ["it wrote nothing to standard error"]
                    message = f"{_status(process.returncode)}: {last[0][:300]}"
                    return Outcome(failure=Failure(Kind.CRASHED, "the command", message, said))
            return read_outcome(taken, job)


@contextmanager
def _started(words: list[str]) -> Generator[tuple[subprocess.Popen[bytes], IO[str]]]:
    """A process and its standard error; it and its children are gone at the end.

    Raises:
        InputError: there is no such program.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True
            )
        except OSError as cause:
            raise InputError(f"--command cannot be started: {cause}") from cause
        try:
            yield process, errors
        finally:
            _end(process)


def _end(process: subprocess.Popen[Any]) -> None:
    """Kill the process with all that it started (it leads a group of its own), and wait."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _tail(errors: IO[str], characters: int = 4000) -> str:
    errors.flush()
    size = os.fstat(errors.fileno()).st_size
    return os.pread(errors.fileno(), characters, max(0, size - characters)).decode("utf-8", "replace")


def _status(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit status {code}"
