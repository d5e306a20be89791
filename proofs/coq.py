"""Compile theories with coqc, two at a time, and only those whose text or requirements have changed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import vernacular

LIMIT_S = 240
VERSION = "8.16"
PACKAGES = "coq libcoq-flocq libcoq-coquelicot"
REMEDY = f"on Debian 12: apt-get install --no-install-recommends {PACKAGES}"


class CoqError(Exception):
    """Coq is missing, of another version, or has refused a theory."""


def find() -> str | None:
    """The path of coqc, or None where it is not installed."""
    return shutil.which("coqc")


def version() -> str:
    """The version of coqc.

    Raises:
        CoqError: it is missing or does not run.
    """
    coqc = find()
    if coqc is None:
        raise CoqError(f"coqc is not installed; {REMEDY}")
    return _ask(coqc, "--print-version").split()[0]


def unusable() -> str | None:
    """Why the proofs cannot be checked here, with the way out; None where they can."""
    try:
        found = version()
        if not found.startswith(f"{VERSION}."):
            return f"the proofs are for Coq {VERSION}, found {found}; {REMEDY}"
        contributed = Path(_ask(find() or "coqc", "-where").strip()) / "user-contrib"
    except CoqError as problem:
        return str(problem)
    missing = [library for library in ("Flocq", "Coquelicot") if not (contributed / library).is_dir()]
    if missing:
        return f"Coq's {' and '.join(missing)} are not in {contributed}; {REMEDY}"
    return "coqchk is not installed beside coqc; " + REMEDY if shutil.which("coqchk") is None else None


def _ask(coqc: str, question: str) -> str:
    try:
        done = subprocess.run([coqc, question], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise CoqError(f"{coqc} does not run ({problem}); {REMEDY}") from problem
    if done.returncode or not done.stdout.strip():
        said = " ".join(done.stderr.split())[:300] or "it says nothing"
        raise CoqError(f"{coqc} {question} fails ({said}); {REMEDY}")
    return done.stdout


def requirements(text: str, name: str = "theory") -> list[str]:
    """The theories of this project that a theory requires."""
    return vernacular.requirements(name, text)


def recheck(folder: Path, names: Iterable[str], *, libraries: bool = False) -> str:
    """What coqchk, which shares no state with coqc, says that the compiled theories rest on.

    With libraries, what they require is checked again too; without, it is taken as it is.

    Raises:
        CoqError: coqchk refuses a theory.
    """
    command = ["coqchk", "-silent", "-o", "-R", ".", "samelaw"]
    for name in names:
        command += [f"samelaw.{name}"] if libraries else ["-norec", f"samelaw.{name}"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S * (5 if libraries else 1), check=False
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise CoqError(f"coqchk does not finish ({problem})") from problem
    if done.returncode:
        raise CoqError("coqchk: " + " ".join((done.stdout + done.stderr).split())[-1500:])
    return done.stdout + done.stderr  # it prints its summary on stderr


def run(folder: Path, name: str) -> str:
    """Compile one theory of a folder; returns what it printed.

    Raises:
        CoqError: with the place and what Coq says about it.
    """
    command = ["coqc", "-q", "-R", ".", "samelaw", f"{name}.v"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired as cause:
        raise CoqError(f"{name}.v: not finished after {LIMIT_S} s") from cause
    except OSError as cause:
        raise CoqError(f"coqc does not run ({cause}); {REMEDY}") from cause
    if done.returncode:
        raise CoqError(" ".join(done.stderr.split())[:1500])
    return done.stdout


def compile_all(folder: Path, theories: dict[str, str], *, jobs: int = 2) -> dict[str, str]:
    """Write and compile theories in a folder, requirements first; returns what each printed.

    A theory is compiled again only if its text, or that of anything it requires, is not what it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stamps = {name: _stamp(name, theories) for name in theories}
    printed: dict[str, str] = {}
    waiting = dict(theories)
    running: dict[Future[str], str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            ready = [n for n in waiting if all(r in printed for r in requirements(theories[n]))]
            for name in ready[: jobs - len(running)]:
                text = waiting.pop(name)
                running[pool.submit(_compile, folder, name, text, stamps[name])] = name
            if not running:
                raise CoqError(f"these theories require each other or something that is missing: {sorted(waiting)}")
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                printed[running.pop(future)] = future.result()
    return printed


def _compile(folder: Path, name: str, text: str, stamp: str) -> str:
    source, mark, said = (folder / f"{name}{end}" for end in (".v", ".stamp", ".said"))
    if mark.exists() and mark.read_text() == stamp and (folder / f"{name}.vo").exists():
        return said.read_text()
    mark.unlink(missing_ok=True)
    source.write_text(text, encoding="utf-8")
    output = run(folder, name)
    said.write_text(output)
    mark.write_text(stamp)
    return output


def _stamp(name: str, theories: dict[str, str]) -> str:
    """Digest of a theory and of all that it stands on."""
    seen: dict[str, str] = {}

    def visit(name: str) -> None:
        if name in theories and name not in seen:
            seen[name] = theories[name]
            for other in requirements(theories[name]):
                visit(other)

    visit(name)
    return hashlib.sha256("\0".join(f"{n}\0{seen[n]}" for n in sorted(seen)).encode()).hexdigest()
