"""A job as a folder, and its weights as another: how a trainer in any language sits on the bench.

`problem.json` says everything in numbers and names files beside it; every array is a .npy file (format 1.0, little
endian, C order). Nothing is ever unpickled. docs/bench.md describes both folders, and
contract/schemas/bench_problem.schema.json is the schema of the first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from samelaw.contract.bench import BenchBatch, BenchProblem, Reads
from samelaw.contract.errors import InputError
from samelaw.contract.trace import Pooling
from samelaw.equivalence.bench.conduct import Failure, Kind, Outcome, Weights, complain
from samelaw.equivalence.bench.problems import Job
from samelaw.equivalence.schemas import check_bench_problem

PROBLEM_SCHEMA = "samelaw.bench_problem/1"
LARGEST_FILE = 1 << 26  # bytes; the largest array of the bench has 2^16


def write_job(folder: Path, job: Job) -> None:
    """Everything that a trainer needs, in a folder that exists."""

    def array(name: str, values: np.ndarray) -> str:
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.ascontiguousarray(values), allow_pickle=False)
        return f"{name}.npy"

    problem = job.problem
    record: dict[str, Any] = {
        "schema": PROBLEM_SCHEMA,
        "name": job.name,
        "seed": job.seed,
        "iterates": job.iterates,
        "clip_norm": problem.clip_norm,
        "noise_multiplier": problem.noise_multiplier,
        "expected_batch_size": problem.expected_batch_size,
        "tables": {
            name: {
                "initial": array(f"initial/{name}", weights),
                "rows": len(weights),
                "dim": weights.shape[1],
                "pooling": str(problem.pooling[name]),
                "padding": problem.padding.get(name),
            }
            for name, weights in problem.tables.items()
        },
        "dense": {
            name: {"initial": array(f"initial/{name}", value), "size": value.size}
            for name, value in problem.dense.items()
        },
        "steps": [],
    }
    for step, batch in enumerate(job.batches):
        reads = {
            name: {
                "ids": array(f"steps/{step}/{name}.ids", r.ids),
                "offsets": array(f"steps/{step}/{name}.offsets", r.offsets),
                "readout": array(f"steps/{step}/{name}.readout", r.readout),
                "weights": None if r.weights is None else array(f"steps/{step}/{name}.weights", r.weights),
            }
            for name, r in batch.reads.items()
        }
        dense = {name: array(f"steps/{step}/{name}", value) for name, value in batch.dense.items()}
        record["steps"].append(
            {"learning_rate": batch.learning_rate, "examples": len(batch), "reads": reads, "dense": dense}
        )
    check_bench_problem(record)
    (folder / "problem.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_job(folder: Path) -> Job:
    """A job from its folder.

    Raises:
        SchemaError, InputError: it is not one.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "problem.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise InputError(f"{folder / 'problem.json'} cannot be read: {cause}") from cause
    check_bench_problem(record)

    def array(name: str) -> np.ndarray:
        return np.load(folder / name, allow_pickle=False)

    tables, dense, steps = record["tables"], record["dense"], record["steps"]
    problem = BenchProblem(
        {name: array(t["initial"]) for name, t in tables.items()},
        {name: array(d["initial"]) for name, d in dense.items()},
        pooling={name: Pooling(t["pooling"]) for name, t in tables.items()},
        padding={name: int(t["padding"]) for name, t in tables.items() if t["padding"] is not None},
        clip_norm=float(record["clip_norm"]),
        noise_multiplier=float(record["noise_multiplier"]),
        expected_batch_size=float(record["expected_batch_size"]),
        learning_rates=tuple(float(step["learning_rate"]) for step in steps),
    )
    batches = tuple(_batch(step, array) for step in steps)
    return Job(str(record["name"]), problem, batches, int(record["seed"]), bool(record["iterates"]))


def _batch(step: Mapping[str, Any], array: Any) -> BenchBatch:
    reads = {
        name: Reads(
            array(r["ids"]),
            array(r["offsets"]),
            array(r["readout"]),
            None if r["weights"] is None else array(r["weights"]),
        )
        for name, r in step["reads"].items()
    }
    dense = {name: array(path) for name, path in step["dense"].items()}
    return BenchBatch(reads, dense, float(step["learning_rate"]), int(step["examples"]))


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Released weights and iterates, as a trainer writes them."""
    places = [(folder / "release", outcome.release or {})]
    places += [(folder / "iterates" / str(step), weights) for step, weights in enumerate(outcome.iterates)]
    for place, weights in places:
        place.mkdir(parents=True, exist_ok=True)
        for name, value in weights.items():
            np.save(place / f"{name}.npy", value, allow_pickle=False)


def read_outcome(folder: Path, job: Job) -> Outcome:
    """What a trainer wrote. Whatever is missing or malformed is a Failure that names the file."""
    try:
        release = _weights(folder / "release", job)
        steps = range(len(job.batches)) if job.iterates else range(0)
        iterates = tuple(_weights(folder / "iterates" / str(step), job) for step in steps)
    except InputError as error:
        return Outcome(failure=Failure(Kind.MALFORMED, "reading its output", str(error)))
    return Outcome(release, iterates)


def _weights(folder: Path, job: Job) -> Weights:
    found: Weights = {}
    for name in (*job.problem.tables, *job.problem.dense):
        path = folder / f"{name}.npy"
        place = f"{folder.name}/{path.name}" if folder.name == "release" else f"iterates/{folder.name}/{path.name}"
        if not path.is_file():
            raise InputError(f"{place} is missing: the trainer must write one .npy file for each table and parameter")
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{place} is larger than {LARGEST_FILE} bytes, which no array of the bench is")
        try:
            # Mapped, so that a header cannot ask for more memory than the file has.
            found[name] = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError) as cause:
            raise InputError(f"{place} is no .npy file of numbers: {cause}") from cause
    complaint = complain(job.problem, found)
    if complaint is not None:
        raise InputError(f"in {folder.name}/: {complaint}")
    return found
