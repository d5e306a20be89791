"""The files of a run folder as JSON: writing evidence down, and checking every file against its versioned schema."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib import resources
from typing import Any

import jsonschema
import numpy as np
from jsonschema.exceptions import best_match

from samelaw.contract.errors import SchemaError
from samelaw.contract.evidence import EVIDENCE_SCHEMA, Evidence

SCHEMAS = ("evidence", "manifest", "ledger", "fault_matrix")


def evidence_record(evidence: Sequence[Evidence]) -> dict[str, Any]:
    """evidence.json: every claim with its tests and figures. Figures that are not finite become null."""
    holds = bool(evidence) and all(e.verdict.holds for e in evidence)
    return {"schema": EVIDENCE_SCHEMA, "holds": holds, "claims": [plain(asdict(e)) for e in evidence]}


def check_evidence(record: Any) -> None:
    """Raises SchemaError unless `record` is an evidence.json."""
    _check("evidence", record, "evidence.json")


def check_manifest(record: Any) -> None:
    """Raises SchemaError unless `record` is a manifest.json."""
    _check("manifest", record, "manifest.json")


def check_bench_problem(record: Any) -> None:
    """Raises SchemaError unless `record` is the problem.json of a job of the bench."""
    _check("bench_problem", record, "problem.json")


def check_bench(record: Any) -> None:
    """Raises SchemaError unless `record` is the bench.json of `samelaw conform`."""
    _check("bench", record, "bench.json")


def check_fault_matrix(record: Any) -> None:
    """Raises SchemaError unless `record` is a fault-matrix.json."""
    _check("fault_matrix", record, "fault-matrix.json")


def check_ledger_lines(lines: Iterable[str]) -> None:
    """Raises SchemaError unless every line has the shape of a ledger entry. The chain is contract.ledger's to check."""
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as cause:
            raise SchemaError(f"ledger.jsonl, line {number}, is not JSON: {cause}") from cause
        _check("ledger", record, f"ledger.jsonl, line {number}")


def check_ledger_entry(record: Any, where: str) -> None:
    """Raises SchemaError unless `record` has the shape of a ledger entry."""
    _check("ledger", record, where)


@cache
def schema(name: str) -> dict[str, Any]:
    """One of SCHEMAS, as it ships with samelaw.contract."""
    text = resources.files("samelaw.contract").joinpath(f"schemas/{name}.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema(name))


def _check(name: str, record: Any, what: str) -> None:
    """The first way in which a record does not match, named by its place."""
    worst = best_match(_validator(name).iter_errors(record))
    if worst is not None:
        place = "/".join(str(part) for part in worst.absolute_path) or "the top level"
        raise SchemaError(f"{what} does not match {schema(name)['$id']} at {place}: {worst.message}")


def plain(value: Any) -> Any:
    """NumPy scalars, enums and tuples as JSON knows them; what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return str(value)
    return value
