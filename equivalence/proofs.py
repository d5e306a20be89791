"""What has been proved, and whether of the sources that are installed here.

proof_status.json is written where the proofs were checked (docs/proofs.md), with the digest of every source that they
are about. A theorem counts here only for sources with these digests.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from samelaw.contract.errors import InputError, SchemaError

SCHEMA = "samelaw.proofs/1"
STATUS_SCHEMA = "samelaw.proof-status/1"
_DIGITS = 12


@dataclass(frozen=True)
class Theorem:
    """One machine-checked theorem.

    Attributes:
        claim: the claim that it is about.
        theorem: its name, theory first.
        bound: "generated", "by hand" or "none": how it is tied to its sources.
        says: the theorem in one sentence.
        assumes: axioms of Coq's library that it rests on.
        sources: file -> SHA-256 of what it was proved about.
    """

    claim: str
    theorem: str
    bound: str
    says: str
    assumes: tuple[str, ...]
    sources: Mapping[str, str]


@dataclass(frozen=True)
class ProofStatus:
    """A theorem, and what may be said of it here.

    Attributes:
        proved: its sources are the ones installed here; False says nothing about whether it could be proved.
        words: the same in words, with digests.
    """

    theorem: Theorem
    proved: bool
    words: str

    def to_json(self) -> dict[str, Any]:
        t = self.theorem
        return {
            "claim": t.claim,
            "theorem": t.theorem,
            "bound": t.bound,
            "says": t.says,
            "assumes": list(t.assumes),
            "sources": dict(t.sources),
            "proved": self.proved,
            "words": self.words,
        }


def theorems() -> tuple[Theorem, ...]:
    """Every theorem on record.

    Raises:
        SchemaError: the record is of another version.
    """
    record = json.loads((files("samelaw.equivalence") / "proof_status.json").read_text(encoding="utf-8"))
    if record.get("schema") != SCHEMA:
        raise SchemaError(
            f"proof_status.json must have schema {SCHEMA!r}, got {record.get('schema')!r}: reinstall samelaw"
        )
    return tuple(
        Theorem(t["claim"], t["theorem"], t["bound"], t["says"], tuple(t["assumes"]), dict(t["sources"]))
        for t in record["theorems"]
    )


def proof_status(installed: Mapping[str, str], proved: Sequence[Theorem] | None = None) -> tuple[ProofStatus, ...]:
    """What may be said of every theorem, given the digests of the installed sources.

    Args:
        installed: file, as "reference/lazy_schedule.py" -> SHA-256 of it here; a file that is missing here is absent.
        proved: the theorems; those on record by default.

    Guarantees:
        Q1  "Proved" is said only if every source of the theorem is here with the digest that was checked.
    """
    return tuple(_status(theorem, installed) for theorem in (theorems() if proved is None else proved))


def source_digest(text: bytes, name: str = "") -> str:
    """SHA-256 of a source file, or of its one assignment to `name`, comments and layout aside.

    Raises:
        InputError: there is not exactly one such assignment.
    """
    if not name:
        return hashlib.sha256(text).hexdigest()
    found = [
        ast.unparse(n) for n in ast.parse(text).body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == name
    ]
    if len(found) != 1:
        raise InputError(
            f"a proved constant must be assigned once in its file, {name!r} is assigned {len(found)} times"
        )
    return hashlib.sha256(found[0].encode()).hexdigest()


def proofs_record(statuses: Sequence[ProofStatus]) -> dict[str, Any]:
    """What a run folder keeps of them, as proofs.json."""
    return {"schema": STATUS_SCHEMA, "theorems": [status.to_json() for status in statuses]}


def _status(theorem: Theorem, installed: Mapping[str, str]) -> ProofStatus:
    others = [f for f, sha in theorem.sources.items() if installed.get(f) != sha]
    if others:
        file = others[0]
        here = installed[file][:_DIGITS] if file in installed else "missing"
        words = f"not proved for this source: {file} is {here} here, and {theorem.sources[file][:_DIGITS]} was checked"
        return ProofStatus(theorem, False, words)
    if theorem.bound == "none":
        return ProofStatus(theorem, True, "proved; mathematics alone, about no source")
    about = ", ".join(f"{file} ({sha[:_DIGITS]})" for file, sha in theorem.sources.items())
    how = "proved of" if theorem.bound == "generated" else "proved of a model that was written by hand after"
    return ProofStatus(theorem, True, f"{how} {about}")
