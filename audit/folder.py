"""A run folder as it lies there: opened within bounds, parsed strictly, believed in nothing.

What cannot be read at all is bad input (UntrustedFileError). What can be read and contradicts itself is kept, for the
checks to refute.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samelaw.audit.tensors import TensorFile
from samelaw.contract.errors import LedgerError, SchemaError, UntrustedFileError
from samelaw.contract.ledger import Entry, Spent, spent, verify_lines
from samelaw.contract.untrusted import BoundedFile, strict_json, whole_lines
from samelaw.equivalence.schemas import check_ledger_entry, check_manifest

MANIFEST, LEDGER, WEIGHTS = "manifest.json", "ledger.jsonl", "weights.safetensors"
INITIAL, EVIDENCE, PROOFS, REPORT = "initial_weights.safetensors", "evidence.json", "proofs.json", "report.html"
KNOWN = (MANIFEST, LEDGER, WEIGHTS, INITIAL, EVIDENCE, PROOFS, REPORT)
LARGEST_MANIFEST = 1 << 20
LARGEST_LEDGER = 256 << 20
LONGEST_LINE = 1 << 20
LARGEST_WEIGHTS = 64 << 30
MOST_FILES = 1000


@dataclass(repr=False)
class RunFolder:
    """Everything that the checks look at.

    Attributes:
        path: the folder.
        strangers: names of files that no run folder holds; never opened.
        manifest: manifest.json; manifest_problem: how it differs from its schema.
        entries, account: the ledger; ledger_problem: why it is none.
        weights, initial: released and initial weights; the latter may be missing.
        digests: SHA-256 of each file that a manifest can bind, as it lies there.
    """

    path: Path
    strangers: list[str]
    manifest: dict[str, Any]
    manifest_problem: str | None
    entries: list[Entry]
    account: Spent | None
    ledger_problem: str | None
    weights: TensorFile
    initial: TensorFile | None
    digests: dict[str, str]
    files: list[BoundedFile] = field(default_factory=list[BoundedFile])

    @classmethod
    def open(cls, path: str | Path, *, largest_weights: int = LARGEST_WEIGHTS) -> RunFolder:
        """Read a folder.

        Args:
            largest_weights: weight files of more bytes are refused.

        Raises:
            UntrustedFileError: it is no folder, or a file in it cannot be read as what its name says.
        """
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as cause:
            raise UntrustedFileError(f"{path} cannot be opened as a folder: {cause}") from cause
        files: list[BoundedFile] = []
        try:
            return _read(Path(path), handle, files, largest_weights)
        except BaseException:
            for file in files:
                file.close()
            raise
        finally:
            os.close(handle)

    @property
    def opened(self) -> dict[str, Any]:
        """Data of the ledger's opening entry; empty if it has none."""
        return self.account.opened if self.account is not None else {}

    def table_names(self) -> list[str]:
        """Tables of the ledger's model, sorted: their rank is their number in every noise address."""
        return sorted(self.opened.get("tables", {}))

    def check_unchanged(self) -> None:
        """Raise UntrustedFileError if a file was written to while it was audited."""
        for file in self.files:
            file.check_unchanged()

    def close(self) -> None:
        for file in self.files:
            file.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RunFolder({self.path})"


def _read(path: Path, folder: int, files: list[BoundedFile], largest_weights: int) -> RunFolder:
    present, strangers = _listing(folder, path)

    def opened(name: str, most_bytes: int) -> BoundedFile:
        files.append(BoundedFile(name, most_bytes=most_bytes, folder=folder))
        return files[-1]

    for name in (MANIFEST, LEDGER, WEIGHTS):
        if name not in present:
            raise UntrustedFileError(f"{path} holds no {name}: it is no run folder, or its run never ended")
    limits = {MANIFEST: LARGEST_MANIFEST, LEDGER: LARGEST_LEDGER, WEIGHTS: largest_weights, INITIAL: largest_weights}
    held = {name: opened(name, limits.get(name, LARGEST_LEDGER)) for name in KNOWN if name in present}
    manifest = strict_json(held[MANIFEST].read(0, held[MANIFEST].size), where=MANIFEST)
    if type(manifest) is not dict:
        raise UntrustedFileError(f"{MANIFEST} must be a JSON object")
    entries, account, ledger_problem = _ledger(held[LEDGER])
    weights = TensorFile(held[WEIGHTS])
    initial = TensorFile(held[INITIAL]) if INITIAL in held else None
    digests = {name: file.sha256() for name, file in held.items() if name not in (MANIFEST, REPORT)}
    return RunFolder(
        path, strangers, manifest, _manifest_problem(manifest), entries, account, ledger_problem,
        weights, initial, digests, files,
    )  # fmt: skip


def _listing(folder: int, path: Path) -> tuple[set[str], list[str]]:
    """Names of known files, and of everything else."""
    present: set[str] = set()
    strangers: list[str] = []
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if count >= MOST_FILES:
                raise UntrustedFileError(f"{path} holds more than {MOST_FILES} files: it is no run folder")
            if entry.name not in KNOWN:
                strangers.append(entry.name)
                continue
            if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                raise UntrustedFileError(f"{entry.name} must be a plain file; it is a link, folder, pipe or device")
            present.add(entry.name)
    return present, sorted(strangers)


def _manifest_problem(manifest: dict[str, Any]) -> str | None:
    try:
        check_manifest(manifest)
    except SchemaError as cause:
        return str(cause)
    return None


def _ledger(file: BoundedFile) -> tuple[list[Entry], Spent | None, str | None]:
    """The ledger's entries and what they add up to, or why they do not."""
    data = file.read(0, file.size)
    lines = list(whole_lines(data, where=file.name, longest=LONGEST_LINE))
    try:
        for number, line in enumerate(lines, start=1):
            # Before any line is kept as objects: what fits no schema may take far more memory than its text.
            place = f"{file.name}, line {number}"
            check_ledger_entry(strict_json(line, where=place), place)
        text = [line.decode("utf-8") for line in lines]
        entries = list(verify_lines("\n".join(text), where=file.name))
        return entries, spent(entries), None
    except (LedgerError, SchemaError) as cause:
        return [], None, str(cause)
