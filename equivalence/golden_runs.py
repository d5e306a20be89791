"""Golden runs: small whole runs as language-neutral files, read, turned into plans, and held against a trainer's run.

Written by tools/make_golden_runs.py from the definition; docs/golden-runs.md says what every field means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jsonschema
import numpy as np
from jaxtyping import Float32, Int64

from samelaw.contract.errors import InputError, SchemaError
from samelaw.contract.evidence import Disagreement
from samelaw.contract.ledger import spent, verify_lines
from samelaw.equivalence.exact import first_difference
from samelaw.equivalence.run_plans import DENSE, Example, RunPlan, Table
from samelaw.equivalence.whole_runs import Ran

SCHEMA = "samelaw.golden-run/1"


@dataclass(frozen=True, repr=False)
class GoldenRun:
    """One file.

    Attributes:
        name: of the file, without its suffix.
        bug, hunts: what it is there to catch.
        document: the whole of it.
    """

    name: str
    bug: str
    hunts: str
    document: dict[str, Any]

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(self.document["modes"])

    def plan(self, mode: str) -> RunPlan:
        """The run as a plan: everything of it comes from the file.

        Raises:
            InputError: the file has no such mode.
        """
        if mode not in self.modes:
            raise InputError(f"mode must be one of {self.modes}, got {mode!r} in golden run {self.name!r}")
        run = self.document["run"]
        law, schedule = run["law"], run["law"]["schedule"]
        tables = tuple(
            Table(t["name"].removeprefix("tables."), t["rows"], t["dim"], t["pooling"], t["padding"])
            for t in run["tables"]
        )
        places = [t["name"] for t in run["tables"]]
        initial = [tuple(_matrix(t["initial"]).ravel().tolist()) for t in run["tables"]]
        dense = _floats(run["dense"]["initial"]).tolist() if run["dense"] else []
        return RunPlan(
            tables=tables,
            features=tuple(places.index(name) for name in run["features"]),
            examples=tuple(_example(record) for record in run["examples"]),
            steps=schedule["steps"],
            schedule=(
                "named",
                schedule["name"],
                tuple(schedule["starts"]),
                tuple(float.fromhex(rate) for rate in schedule["rates"]),
            ),
            mode=mode,
            clip_norm=float.fromhex(law["clip_norm"]),
            noise_multiplier=float.fromhex(law["noise_multiplier"]),
            expected_batch_size=float.fromhex(law["expected_batch_size"]),
            sampling_rate=float.fromhex(law["sampling_rate"]),
            rounds=run["rounds"],
            key=run["key"],
            curvature=float.fromhex(run["curvature"]),
            dense_width=len(dense),
            restarts=tuple((save, kill) for save, kill in run["restarts"]),
            weights_given=(*initial, tuple(dense)),
        )


def golden_names() -> list[str]:
    """Every golden run that ships with the package."""
    folder = resources.files("samelaw.equivalence").joinpath("golden/runs")
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_golden(name: str) -> GoldenRun:
    """One golden run, checked against its schema.

    Raises:
        InputError: there is none of this name.
        SchemaError: the file is damaged.
    """
    if name not in golden_names():
        raise InputError(f"there is no golden run {name!r}; there are {', '.join(golden_names())}")
    text = resources.files("samelaw.equivalence").joinpath(f"golden/runs/{name}.json").read_text(encoding="utf-8")
    try:
        return parse_golden(json.loads(text))
    except ValueError as cause:
        raise SchemaError(f"cannot read golden run {name!r}: {cause}; reinstall samelaw") from cause


def parse_golden(document: dict[str, Any]) -> GoldenRun:
    """Check a document against the schema, and its sizes against each other.

    Raises:
        SchemaError: naming the first place that does not match.
    """
    text = resources.files("samelaw.contract").joinpath("schemas/golden_run.schema.json").read_text(encoding="utf-8")
    try:
        jsonschema.validate(document, json.loads(text))
    except jsonschema.ValidationError as cause:
        place = "/".join(str(part) for part in cause.absolute_path) or "the document"
        raise SchemaError(f"the golden run does not match {SCHEMA} at {place}: {cause.message}") from cause
    for table in document["run"]["tables"]:
        shape = (table["rows"], table["dim"])
        if len(table["initial"]) != shape[0] or any(len(row.split()) != shape[1] for row in table["initial"]):
            raise SchemaError(
                f"the golden run's table {table['name']!r} says {shape}, and its weights have other sizes"
            )
    return GoldenRun(document["name"], document["bug"], document["hunts"], document)


def check_golden(golden: GoldenRun, mode: str, ran: Ran, *, schedule: str = "lazy") -> list[Disagreement]:
    """Hold a recorded run against a golden run, to the bit.

    Args:
        mode: the mode that was run.
        ran: its transcript, release and ledger.
        schedule: "lazy" or "eager": whose released weights are expected (they differ by rounding in bridge, and are two
            draws of one law in aggregate).

    Returns:
        Every array that differs, by its first element, in the order of the run. Empty: all agree.
    """
    return list(_differences(golden, mode, ran, schedule))


def _differences(golden: GoldenRun, mode: str, ran: Ran, schedule: str) -> Iterator[Disagreement]:
    expected = golden.document["modes"][mode]
    found = {record.step: record for record in ran.transcript.steps}
    steps = golden.document["run"]["law"]["schedule"]["steps"]
    if sorted(found) != list(range(steps)):
        yield Disagreement(golden.name, f"steps 0..{steps - 1}", f"{len(found)} steps")
        return
    listed = {record["step"]: record for record in golden.document["steps"]}
    for step, record in found.items():
        said = listed.get(step, {"drawn": [], "rows": {}, "sums": {}, "dense_sum": ""})
        place = f"{golden.name}, {mode}, step {step}"
        if record.examples != len(said["drawn"]):
            yield Disagreement(f"{place}, examples drawn", str(len(said["drawn"])), str(record.examples))
            continue
        rows = {name: np.array(ids, dtype=np.int64) for name, ids in said["rows"].items()}
        sums = {name: np.array(of, dtype=np.int64) for name, of in said["sums"].items()}
        yield from _maps(f"{place}, rows of", rows, record.rows)
        yield from _maps(f"{place}, sums of", sums, record.sums, rows)
        if said["dense_sum"]:
            yield from _maps(f"{place}, dense sum of", {DENSE: _floats(said["dense_sum"])[None]}, record.dense_sum)
    released = expected["released"][schedule]
    tables = {name: _matrix(rows) for name, rows in released["tables"].items()}
    yield from _maps(f"{golden.name}, {mode}, released", tables, ran.release.tables)
    if released["dense"]:
        yield from _maps(
            f"{golden.name}, {mode}, released", {DENSE: _floats(released["dense"])[None]}, ran.release.dense
        )
    lines = expected["ledger"]["lines"]
    if lines:
        wanted = spent(list(verify_lines("\n".join(lines), where=f"the ledger of golden run {golden.name!r}")))
        charged = spent(ran.entries)
        for what, one, other in (("law", wanted.opened["law_digest"], charged.opened["law_digest"]),
                                 ("steps", wanted.steps, charged.steps)):  # fmt: skip
            if one != other:
                yield Disagreement(f"{golden.name}, {mode}, ledger, {what}", str(one), str(other))


def _maps(
    place: str,
    expected: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    rows: Mapping[str, Int64[np.ndarray, "_rows"]] | None = None,
) -> Iterator[Disagreement]:
    for name in sorted(expected.keys() | {name for name, array in found.items() if array.size}):
        if name not in expected or name not in found:
            yield Disagreement(
                f"{place} {name!r}", *(("present", "absent") if name in expected else ("absent", "present"))
            )
            continue
        array = np.asarray(found[name])
        wrong = first_difference(expected[name], array, f"{place} {name!r}", None if rows is None else rows[name])
        if wrong is not None:
            yield wrong


def _example(record: Mapping[str, Any]) -> Example:
    weights = tuple(None if w is None else tuple(_floats(w).tolist()) for w in record["weights"])
    return Example(
        bags=tuple(tuple(bag) for bag in record["bags"]),
        weights=weights if any(w is not None for w in weights) else (),
        dense=tuple(_floats(record["dense"]).tolist()),
        given=tuple(tuple(_floats(v).tolist()) for v in record["slopes"]),
    )


def _matrix(rows: list[str]) -> Float32[np.ndarray, "rows dim"]:
    return np.stack([_floats(row) for row in rows])


def _floats(bits: str) -> Float32[np.ndarray, "n"]:
    return np.array([int(word, 16) for word in bits.split()], dtype=np.uint32).view(np.float32)
