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
        Q1  "Proved" is said only if every source of the theorem is here with the digest that was checked, and then of
            those files alone, not of what calls them.
    """
    return tuple(_status(theorem, installed) for theorem in (theorems() if proved is None else proved))


def source_digest(text: bytes, name: str = "") -> str:
    """SHA-256 of a source file, or of its one assignment to `name`, comments and layout aside.

    Raises:
        InputError: there is not exactly one such assignment, or the file binds the name in another way as well.
    """
    if not name:
        return hashlib.sha256(text).hexdigest()
    return hashlib.sha256(ast.unparse(assignment(text, name)).encode()).hexdigest()


def assignment(text: bytes, name: str) -> ast.Assign:
    """The one assignment to a proved constant in the text of its module.

    Raises:
        InputError: there is not exactly one, or the name is bound, or mentioned other than to read it, anywhere else.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"a proved constant must be assigned once in its file, which is not Python: {error}") from None
    found = [n for n in tree.body if isinstance(n, ast.Assign) and [ast.unparse(t) for t in n.targets] == [name]]
    if len(found) != 1:
        raise InputError(
            f"a proved constant must be assigned once in its file, {name!r} is assigned {len(found)} times"
        )
    for node in ast.walk(tree):
        if node is not found[0].targets[0] and _may_bind(node, name):
            raise InputError(
                f"a proved constant must be assigned once in its file, {name!r} may be bound again: "
                f"{ast.unparse(node).splitlines()[0][:80]!r}"
            )
    return found[0]


def constant_value(text: bytes, name: str) -> float:
    """The number that is assigned to a proved constant, written as a number or as base**exponent.

    Raises:
        InputError: it is written otherwise, or `assignment` raises.
    """
    node = assignment(text, name).value
    try:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            return float(ast.literal_eval(node.left) ** ast.literal_eval(node.right))
        return float(ast.literal_eval(node))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InputError(f"a proved constant must be a number, {name!r} is {ast.unparse(node)!r}") from error


def _may_bind(node: ast.AST, name: str) -> bool:
    """Whether a node could bind a name: by a statement or a pattern, by `import *`, or through its text."""
    if isinstance(node, ast.Name):
        return node.id == name and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.alias) and node.name == "*":
        return True
    values = (value for _, value in ast.iter_fields(node))
    return any(v == name or (isinstance(v, list) and name in v) for v in values)


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
    return ProofStatus(theorem, True, f"{how} {about}, as installed")
