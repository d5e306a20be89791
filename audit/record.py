"""What may be published of an audit, for a registry of deployments; and what only the owner and reviewer may see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib import resources
from importlib.metadata import version
from typing import Any

import jsonschema
from jsonschema.exceptions import best_match

from samelaw.audit.auditing import Audit
from samelaw.audit.findings import Finding
from samelaw.audit.mappings import HAZARDS, PYRAMID, REPORTING
from samelaw.contract.errors import SchemaError
from samelaw.equivalence.schemas import plain

RECORD_SCHEMA = "samelaw.audit-record/1"
EVIDENCE_SCHEMA = "samelaw.audit-evidence/1"
_LAW = ("clip_norm", "noise_multiplier", "sampling_rate", "expected_batch_size", "mode", "rounds")
UNPROTECTED = (
    "The training set's size, as far as sampling rate and expected batch size give it.",
    "Losses, accuracies and curves in the training report: they carry no noise.",
    "Anything that was learned from the data outside of the run: vocabularies, hyper-parameters, other models.",
    "Ledger, transcript and evidence: they are for the owner and the reviewer.",
)


def public_record(audit: Audit) -> dict[str, Any]:
    """The record of one deployment: what was promised, how it was accounted for, and what this audit says of it.

    Holds no seed, no drawn batch size, no row and no statistic of the transcript; texts of the manifest that its owner
    chose (names and sources of data sets) are not repeated either.
    """
    statement, law = audit.statement, audit.opened.get("law", {})
    schedule = law.get("schedule", {})
    record: dict[str, Any] = {
        "schema": RECORD_SCHEMA,
        "auditor": {"tool": "samelaw audit", "version": version("samelaw")},
        "outcome": str(audit.verdict),
        "guarantee": {
            "unit": "one training example",
            "flavour": "(epsilon, delta) differential privacy, central model, add or remove one example",
            "epsilon": None if statement is None else statement.upper,
            "epsilon_interval": None if statement is None else [statement.lower, statement.estimate, statement.upper],
            "delta": None if statement is None else statement.delta,
            "generator_delta": None if statement is None else statement.generator_delta,
            "generator": "" if statement is None else statement.generator,
            "total_delta": None if statement is None else statement.total_delta,
            "promised_epsilon": _number(audit.manifest, "statement", "upper"),
            "assumptions": [] if statement is None else list(statement.assumptions),
            "not_included": [] if statement is None else list(statement.not_included),
            "caveats": [] if statement is None else list(statement.caveats),
        },
        "model": {
            "tables": [list(size[:2]) for _, size in sorted(audit.opened.get("tables", {}).items())],
            "dense_shapes": [list(shape) for _, shape in sorted(audit.opened.get("dense", {}).items())],
        },
        "mechanism": {
            "name": "DP-SGD, Poisson-sampled batches, Gaussian noise paid lazily",
            **{name: law.get(name) for name in _LAW},
            "steps_declared": schedule.get("steps"),
            "law_digest": audit.opened.get("law_digest"),
        },
        "accounting": {
            "engine": None if statement is None else statement.engine,
            "second_opinion": None if statement is None else statement.second_engine,
        },
        "implementation": {
            "name": "samelaw",
            "said_version": _text(audit.manifest, "environment", "samelaw"),
            "key_origin": audit.opened.get("key_origin"),
            "key_commitment": audit.opened.get("key_commitment"),
        },
        "unprotected": list(UNPROTECTED),
        "reviewer_had": list(audit.given),
        "checks": [_public(f) for f in audit.findings],
        "nist_sp_800_226": {
            "pyramid": [{"layer": x.name, "checks": list(x.checks), "says": x.says} for x in PYRAMID],
            "hazards": [{"hazard": name, "checks": list(checks)} for name, checks in HAZARDS],
        },
        "how_to_dp_fy_ml": [{"item": name, "answer": answer} for name, answer in REPORTING],
    }
    record = plain(record)
    check_record(record)
    return record


def private_evidence(audit: Audit) -> dict[str, Any]:
    """Everything that was found: rows, steps and statistics. As private as the training data."""
    return plain(
        {
            "schema": EVIDENCE_SCHEMA,
            "outcome": str(audit.verdict),
            "findings": [asdict(f) for f in audit.findings],
            "statement": None if audit.statement is None else audit.statement.to_json(),
        }
    )


def check_record(record: Mapping[str, Any]) -> None:
    """Raises SchemaError unless `record` is an audit record."""
    worst = best_match(_validator().iter_errors(record))
    if worst is not None:
        place = "/".join(str(part) for part in worst.absolute_path) or "the top level"
        raise SchemaError(f"the audit record does not match {RECORD_SCHEMA} at {place}: {worst.message}")


@cache
def _validator() -> jsonschema.Draft202012Validator:
    text = resources.files("samelaw.audit").joinpath("schemas/audit_record.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def _public(found: Finding) -> dict[str, Any]:
    return {
        "check": found.check,
        "title": found.title,
        "verdict": str(found.verdict),
        "said": found.said,
        "detectable": found.detectable,
        "required": found.required,
    }


def _text(manifest: Mapping[str, Any], *path: str) -> str | None:
    """A short plain text from the manifest, or None."""
    value = _at(manifest, *path)
    return value[:40] if type(value) is str and value.isprintable() else None


def _number(manifest: Mapping[str, Any], *path: str) -> float | None:
    value = _at(manifest, *path)
    return float(value) if type(value) in (int, float) else None


def _at(manifest: Mapping[str, Any], *path: str) -> Any:
    value: Any = manifest
    for name in path:
        value = value.get(name) if type(value) is dict else None
    return value
