"""The run folder: manifest, ledger, evidence, weights and report, each written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from samelaw.contract.errors import InputError
from samelaw.contract.evidence import MANIFEST_SCHEMA
from samelaw.contract.ledger import Ledger
from samelaw.contract.noise import NoiseKey
from samelaw.contract.run import Release
from samelaw.contract.spec import PrivacySpec
from samelaw.equivalence.schemas import check_manifest
from samelaw.workloads import Workload

INITIAL_WEIGHTS = "initial_weights.safetensors"
_PACKAGES = ("samelaw", "numpy", "numba", "torch", "triton", "scipy", "safetensors", "prv-accountant", "dp-accounting")


def create(out: Path | None, kind: str) -> Path:
    """A new, empty run folder.

    Raises:
        InputError: `out` exists and is not an empty folder: a run never overwrites another.
    """
    folder = out if out is not None else Path("runs") / f"{kind}-{datetime.now():%Y%m%d-%H%M%S}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--out {folder} is not empty; a run never overwrites another: name a new folder or delete it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise InputError(f"--out {folder} cannot be created: {cause}") from cause
    return folder


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a file so that a reader sees the old content or the new, never half; a private one is its owner's alone."""
    part = draft_of(path)
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644), "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


def write_json(path: Path, record: Any, *, private: bool = False) -> None:
    text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False, default=_plain) + "\n"
    write_text(path, text, private=private)


def draft_of(path: Path) -> Path:
    """Where a file lies until it is whole."""
    return path.with_name(path.name + ".part")


def write_initial(path: Path, tables: Mapping[str, np.ndarray], dense: Mapping[str, np.ndarray]) -> None:
    """The weights that training starts from, which are public: an auditor compares the released ones with them."""
    draft_weights(path, Release(tables, dense, 0, ""))
    publish_weights(path)


def write_weights(path: Path, release: Release) -> None:
    """Released weights as safetensors, under their final name."""
    draft_weights(path, release)
    publish_weights(path)


def draft_weights(path: Path, release: Release) -> None:
    """Weights as safetensors: tables as "<module>.weight", dense parameters under their own names; whole, on disk, and
    readable by the owner alone until `publish_weights`.

    Raises:
        OSError: they could not be written; no draft is left.
    """
    tensors = {f"{name}.weight": np.ascontiguousarray(table) for name, table in release.tables.items()}
    tensors |= {name: np.ascontiguousarray(value) for name, value in release.dense.items()}
    part = draft_of(path)
    try:
        part.touch(mode=0o600)
        save_file(tensors, part, metadata={"step": str(release.step), "ledger_head": release.ledger_head})
        with part.open("rb") as written:
            os.fsync(written.fileno())
    except BaseException as cause:
        part.unlink(missing_ok=True)
        if isinstance(cause, SafetensorError):
            raise OSError(f"cannot write the weights to {path}: {cause}") from cause
        raise


def publish_weights(path: Path) -> None:
    """Give the draft its name: what was released is made to leave, the ledger beside it is not."""
    part = draft_of(path)
    part.chmod(0o644)
    part.replace(path)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that a manifest binds, by name; the report is made after it and private files stay out."""
    bound = ("ledger.jsonl", "evidence.json", "proofs.json", "weights.safetensors", INITIAL_WEIGHTS)
    return {name: _sha256(folder / name) for name in bound if (folder / name).exists()}


def manifest(
    kind: str,
    workload: Workload,
    spec: PrivacySpec,
    key: NoiseKey,
    ledger: Ledger,
    statement: Mapping[str, Any],
    *,
    options: Mapping[str, Any],
    files: Mapping[str, str],
    verdict: str | None = None,
    transcript: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of a run, checked against its schema: what was run, what it cost, and the digests that bind it.

    Args:
        transcript: "head" and "frames" of the transcript that was recorded, which lies elsewhere.
    """
    record: dict[str, Any] = {
        "schema": MANIFEST_SCHEMA,
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "workload": {
            "name": workload.name,
            "source": workload.source,
            "licence": workload.licence,
            "notes": dict(workload.notes),
        },
        "law": spec.to_json(),
        "law_digest": spec.digest(),
        "key": {"origin": key.origin, "commitment": key.commitment()},
        "ledger": {"head": ledger.head, "entries": len(ledger.entries)},
        "statement": dict(statement),
        "options": dict(options),
        "files": dict(files),
        "environment": environment(),
    }
    if verdict is not None:
        record["verdict"] = verdict
    if transcript is not None:
        record["transcript"] = dict(transcript)
    check_manifest(record)
    return record


def environment(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Versions and machine, for the manifest: what somebody needs to repeat the run."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _plain(value: object) -> Any:
    """NumPy scalars and mappings as JSON knows them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
