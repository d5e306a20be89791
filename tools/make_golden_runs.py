"""Write equivalence/golden/runs/*.json: small whole runs by the definition, as vectors for any implementation.

    python tools/make_golden_runs.py            write every file
    python tools/make_golden_runs.py --check    (or with names after it) write nothing; exit 1 when one would change

Each run hunts one bug; its key is the first that makes the sampler draw what the bug needs. Everything comes from
samelaw.reference over the NumPy readout of samelaw.equivalence.readout; epsilon from samelaw.accounting.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from samelaw.accounting.mechanism import SampledGaussian
from samelaw.accounting.statement import state
from samelaw.contract.bounds import bridge_bounds
from samelaw.contract.figures import rounded_down, rounded_up
from samelaw.contract.noise import NoiseStream, Purpose
from samelaw.contract.spec import Mode
from samelaw.equivalence.readout import ReadoutOracle
from samelaw.equivalence.run_plans import DENSE, Example, RunPlan, Table
from samelaw.reference.eager import EagerTrainer
from samelaw.reference.lazy import LazyTrainer
from samelaw.reference.noise import words
from samelaw.reference.sampling import poisson_sample
from samelaw.reference.settlement import Settlement

FOLDER = Path(__file__).resolve().parent.parent / "equivalence" / "golden" / "runs"
SCHEMA = "samelaw.golden-run/1"
LONG = 1000
LINES = 40  # ledgers up to this long are written out
Drawn = list[np.ndarray]


@dataclass(frozen=True)
class Vector:
    """A run to write.

    Attributes:
        wants: what the sampler must draw.
        definition: whether the eager definition is run too; it pays every row at every step.
    """

    name: str
    bug: str
    hunts: str
    plan: RunPlan
    wants: Callable[[Drawn], bool]
    modes: tuple[Mode, ...] = tuple(Mode)
    eager: bool = True


def _sizes(drawn: Drawn) -> list[int]:
    return [len(batch) for batch in drawn]


def _varied(drawn: Drawn) -> bool:
    """Some step draws two examples or more, some step one, some none, and nobody below the last is left out."""
    sizes = _sizes(drawn)
    everybody = np.unique(np.concatenate(drawn))
    return max(sizes) >= 2 and min(sizes) == 0 and 1 in sizes and everybody.size == everybody.max(initial=0) + 1


USER, ITEM = Table("user", 5, 3), Table("item", 6, 2)
PLAIN = (
    Example(((0,), (1, 2)), slope=3, power=-3, dense=(1.0, 0.0)),
    Example(((3,), (2,)), slope=5, power=-2, dense=(0.0, -0.5)),
    Example(((0, 1), ()), slope=11, power=-3, dense=(0.0, 0.0)),
)
BASE = RunPlan(
    tables=(USER, ITEM), features=(0, 1), examples=PLAIN, steps=8, sampling_rate=0.3, expected_batch_size=1.0,
    dense_width=2, clip_norm=1.0, noise_multiplier=1.5, schedule=("constant", 0.25),
)  # fmt: skip


def _units(*values: float) -> tuple[float, ...]:
    """Numbers in units of the grid at C = 1."""
    return tuple(value * 2.0**-32 for value in values)


def _owed(steps: int, key: int, *, eager: bool) -> Vector:
    """A row that nobody reads owes more than 2^bits steps at release; others are read a few times."""
    bits = steps.bit_length() - 1
    plan = replace(
        BASE, tables=(Table("user", 3, 2),), features=(0,), dense_width=0, steps=steps, sampling_rate=3.0 / steps,
        key=key, examples=(Example(((0,),), slope=3), Example(((0, 1),), slope=7)),
        schedule=("piecewise", (steps // 2,), (0.25, 0.125)),
    )  # fmt: skip

    def wants(drawn: Drawn) -> bool:
        return 2 <= len([batch for batch in drawn if len(batch)]) <= 8

    return Vector(
        f"owed-2-{bits}", "history-too-narrow",
        f"A history or a count of steps owed that wraps at 2^{bits}: a row that owes more is paid for the remainder.",
        plan, wants, eager=eager,
        modes=tuple(Mode) if eager else (Mode.BRIDGE, Mode.AGGREGATE),  # replay would draw once a step and row
    )  # fmt: skip


VECTORS = (
    Vector(
        "repeated-ids", "bag-duplicates-once",
        "A row that stands several times in a bag is counted once in the norm, so the example is clipped too little.",
        replace(BASE, clip_norm=0.5, examples=(
            Example(((2, 2, 2, 2), (0, 0, 1)), slope=4, power=-1, dense=(1.0, 0.0)),
            Example(((1, 1, 3), (5, 5)), slope=9, power=0, dense=(0.0, 0.25)),
        )), _varied,
    ),
    Vector(
        "mean-pooling", "mean-not-divided",
        "The gradient of a mean is not divided by the number of ids, or by that of distinct ids.",
        replace(BASE, tables=(replace(USER, pooling="mean"), replace(ITEM, pooling="mean")), examples=(
            Example(((0, 1, 2), (4, 4, 5)), slope=4, power=-2, dense=(1.0, 0.0)),
            Example(((1, 1), ()), slope=9, power=-2, dense=(0.0, 0.25)),
        )), _varied,
    ),
    Vector(
        "empty-batch", "empty-batch-no-noise",
        "A step that draws nobody adds no noise: whoever sees that nothing moved learns that the batch was empty.",
        replace(BASE, sampling_rate=0.15), lambda d: _sizes(d)[0] == 0 == _sizes(d)[-1] and 1 <= sum(_sizes(d)) <= 4,
    ),
    Vector(
        "zero-rate", "stale-learning-rate",
        "Past steps are paid at today's learning rate: a row owes steps at 0.25, at 0 and at 0.0625.",
        replace(BASE, schedule=("piecewise", (2, 4, 6), (0.25, 0.0, 0.0625, 0.5))), _varied,
    ),
    Vector(
        "read-at-every-step", "read-before-settle",
        "The forward pass sees a row before it has paid for the step before: with a row that is read at every step "
        "and gradients that depend on what was read, everything after it differs.",
        replace(BASE, sampling_rate=1.0, curvature=0.5, steps=6), lambda d: True, modes=(Mode.REPLAY,),
    ),
    Vector(
        "never-read", "touched-rows-only",
        "Rows that nobody reads get no noise, and a whole table is never read: released, they show who was not there.",
        replace(BASE, tables=(USER, ITEM, Table("zone", 3, 17)), examples=PLAIN[:2]), _varied,
    ),
    _owed(400, 0, eager=True),
    _owed(66_000, 0, eager=False),
    Vector(
        "resume", "history-lost-on-resume",
        "A run that is resumed twice, once with two steps lost, forgets which noise its rows owed, or draws it anew.",
        replace(BASE, restarts=((2, 4), (5, 5))), _varied,
    ),
    Vector(
        "shared-table", "cross-terms-dropped",
        "Two features read one table, and a row read by both is clipped as two: the product of its gradients is lost. "
        "Weights of either sign are in it.",
        replace(BASE, features=(0, 0, 1), clip_norm=0.5, examples=(
            Example(((1, 2), (1,), (0,)), slope=4, power=-1, dense=(1.0, 0.0),
                    weights=((2.0, -0.5), (1.0,), (0.5,))),
            Example(((3,), (3, 3), ()), slope=2, power=-1, dense=(0.0, 0.25), weights=((-1.0,), (1.0, 0.25), ())),
        )), _varied,
    ),
    Vector(
        "padding", "padding-trained",
        "The padding row is a constant of the model: noise or a gradient on it, or a mean that counts it, is wrong.",
        replace(BASE, tables=(replace(USER, padding=0), replace(ITEM, pooling="mean", padding=5)), examples=(
            Example(((0, 1), (5, 1, 5)), slope=4, power=-2, dense=(1.0, 0.0)),
            Example(((2, 0), (5,)), slope=9, power=-2, dense=(0.0, 0.25)),
        )), _varied,
    ),
    Vector(
        "norm-of-exactly-c", "clip-without-margin",
        "An example whose norm is exactly C is not clipped: the factor must leave room for rounding, 2^-20 of it.",
        replace(BASE, dense_width=0, clip_norm=2.0, examples=(
            Example(((0,), ()), given=((2.0, 0.0, 0.0), (0.0, 0.0))),
            Example(((), (3,)), given=((0.0, 0.0, 0.0), (0.0, -2.0))),
        )), _varied,
    ),
    Vector(
        "tiny-gradient", "rounded-to-nearest",
        "A gradient of a few grid units is rounded to nearest: only truncation toward zero cannot make one larger.",
        replace(BASE, dense_width=0, examples=(
            Example(((0,), (1,)), given=(_units(1.75, -1.75, 0.75), _units(-0.5, 2.5))),
            Example(((1,), (2,)), given=(_units(-0.9375, 1.0, 0.0078125), _units(3.5, -3.5))),
        )), _varied,
    ),
)  # fmt: skip


def draws(plan: RunPlan) -> Drawn:
    """What the keyed sampler draws at every step: all steps at once, for up to eight examples."""
    stream, examples = NoiseStream(plan.noise_key, plan.rounds), len(plan.examples)
    assert examples <= 8, "word i is in row i // 8 of the address, and this looks at row 0 alone"
    steps = np.arange(plan.steps, dtype=np.int64)
    drawn = words(stream, Purpose.SAMPLING, 0, np.zeros_like(steps), steps, blocks=1)[:, 0].astype(np.uint64)
    uniform = drawn[:, 0 : 2 * examples : 2] + (drawn[:, 1 : 2 * examples : 2] << np.uint64(32))
    joins = uniform < np.uint64(int(plan.sampling_rate * 2.0**64)) if plan.sampling_rate < 1 else uniform >= 0
    found = [np.flatnonzero(row).astype(np.int64) for row in joins]
    for step in {0, plan.steps - 1, *[t for t in range(plan.steps) if len(found[t])]}:
        assert np.array_equal(found[step], poisson_sample(stream, step, plan.sampling_rate, examples))
    return found


def keyed(vector: Vector) -> RunPlan:
    """The vector's plan under the first key whose draws are what it wants."""
    for key in range(10_000):
        plan = replace(vector.plan, key=key)
        if vector.wants(draws(plan)):
            return replace(plan, key=plan.noise_key.to_bytes().hex())
    raise SystemExit(f"no key below 10,000 draws what {vector.name!r} wants")


class Eager(EagerTrainer):
    """The eager definition, keeping the clip factors of every step."""

    factors: np.ndarray

    def _sums_and_losses(self, batch: Any, read: Any) -> Any:
        sums, losses = super()._sums_and_losses(batch, read)
        self.factors = sums.factors
        return sums, losses


class Lazy(LazyTrainer):
    """The lazy definition, keeping factors, and every payment: (table, row, since, until)."""

    factors: np.ndarray
    payments: list[tuple[str, int, int, int]]

    def _sums_and_losses(self, batch: Any, read: Any) -> Any:
        sums, losses = super()._sums_and_losses(batch, read)
        self.factors = sums.factors
        return sums, losses

    def _settled(self, rows: Any, since: Any, until: int, values: Any) -> Any:
        for name, ids in rows.items():
            for row, start in zip(ids.tolist(), since[name].tolist(), strict=True):
                if start < until and row != self.padding.get(name, -1):
                    self.payments.append((name, row, start, until))
        return super()._settled(rows, since, until, values)

    def train(self, batch: Any) -> None:
        """`train_batch`; what an empty step does not do is skipped in a long run without dense parameters."""
        if len(batch) or self.spec.schedule.steps <= LONG:
            self.train_batch(batch)
            return
        assert not self.oracle.dense
        step, spec = self.step_index, self.spec
        charged = {"step": step, "examples": 0, "lr": spec.schedule.rate(step), "sampler": "keyed-poisson"}
        self.ledger.append("step", charged | {"noise_std": spec.noise_multiplier * spec.clip_norm})
        self.step_index = step + 1


def trainer(kind: type[EagerTrainer], plan: RunPlan) -> Any:
    oracle = ReadoutOracle(plan)
    return kind(
        plan.initial_tables(), oracle, plan.spec, NoiseStream(plan.noise_key, plan.rounds),
        examples=len(plan.examples), padding=plan.padding(), record=True,
    )  # fmt: skip


def build(vector: Vector) -> dict[str, Any]:
    """The whole document of one vector."""
    plan = keyed(vector)
    spec = plan.spec
    drawn = draws(plan)
    steps, release_settles = _steps(plan, drawn)
    unit = Settlement(Mode.BRIDGE, NoiseStream(plan.noise_key, plan.rounds), spec.clock, table=0, dim=1).unit_exponent
    return {
        "schema": SCHEMA,
        "name": vector.name,
        "bug": vector.bug,
        "hunts": vector.hunts,
        "run": _run(plan),
        "derived": {
            "contribution_exponent": spec.contribution_exponent,
            "rates": _hex(np.array([r / spec.expected_batch_size for r in spec.schedule.rates]).astype(np.float32)),
            "scales": _hex(spec.clock.scales),
            "clock_exponent": spec.clock.exponent,
            "ticks": spec.clock.ticks.tolist(),
            "bridge_exponent": unit,
        },
        "steps": steps,
        "release_settles": release_settles,
        "modes": {str(mode): _mode(vector, replace(plan, mode=str(mode)), drawn) for mode in vector.modes},
        "epsilon": _epsilon(vector.name, plan),
    }


def _epsilon(name: str, plan: RunPlan) -> dict[str, str]:
    """The interval that is written down already, while the accountant's answer lies in it; else the accountant's.

    A tighter accountant must not change a vector; one that contradicts it must.
    """
    statement = state(SampledGaussian(plan.sampling_rate, plan.noise_multiplier, plan.steps), plan.spec.delta)
    lower, upper = rounded_down(statement.lower, 3), rounded_up(statement.upper, 3)
    found = {"delta": repr(plan.spec.delta), "lower": lower, "upper": upper}
    path = FOLDER / f"{name}.json"
    if path.exists():
        stored: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["epsilon"]
        inside = float(stored["lower"]) <= statement.lower and statement.upper <= float(stored["upper"])
        if inside and stored["delta"] == found["delta"]:
            return stored
    return found


def _run(plan: RunPlan) -> dict[str, Any]:
    spec, initial, dense = plan.spec, plan.initial_tables(), plan.initial_dense()
    law = ("clip_norm", "noise_multiplier", "sampling_rate", "expected_batch_size", "delta")
    schedule = spec.schedule
    return {
        "key": plan.noise_key.to_bytes().hex(),
        "rounds": plan.rounds,
        "law": {name: getattr(spec, name).hex() for name in law}
        | {
            "schedule": {
                "name": schedule.name,
                "steps": schedule.steps,
                "starts": list(schedule.starts),
                "rates": [rate.hex() for rate in schedule.rates],
            }
        },
        "curvature": float(plan.curvature).hex(),
        "tables": [
            {
                "name": plan.table_name(t),
                "number": number,
                "rows": plan.tables[t].rows,
                "dim": plan.tables[t].dim,
                "pooling": plan.tables[t].pooling,
                "padding": plan.tables[t].padding,
                "initial": _rows(initial[plan.table_name(t)]),
            }
            for number, t in enumerate(plan.table_order())
        ],
        "dense": {"name": DENSE, "number": 0, "initial": _hex(dense[DENSE])} if dense else None,
        "features": [plan.table_name(t) for t in plan.features],
        "examples": [_example(plan, i) for i in range(len(plan.examples))],
        "restarts": [list(pair) for pair in plan.restarts],
    }


def _example(plan: RunPlan, i: int) -> dict[str, Any]:
    example = plan.examples[i]
    weights = [example.weights_of(f) for f in range(len(plan.features))]
    return {
        "bags": [list(bag) for bag in example.bags],
        "weights": [None if w is None else _hex(np.array(w, dtype=np.float32)) for w in weights],
        "slopes": [_hex(plan.slopes(f, [i])[0]) for f in range(len(plan.features))],
        "dense": _hex(np.array(example.dense, dtype=np.float32)),
    }


def _steps(plan: RunPlan, drawn: Drawn) -> tuple[list[dict[str, Any]], dict[str, list[list[int]]]]:
    """What every step gives in all modes alike: gradients that do not depend on reads, and who settles when.

    (With a curvature they do depend on them, and the vector has one mode.) Replay is the mode of this run; where a row
    owes tens of thousands of steps, aggregate, which pays in one draw.
    """
    lazy = trainer(Lazy, replace(plan, mode="aggregate" if plan.steps > LONG else plan.mode))
    found: list[dict[str, Any]] = []
    for step, indices in enumerate(drawn):
        lazy.payments = []
        lazy.train(plan.batch(indices))
        if len(indices) == 0:
            continue
        record = lazy.transcript.steps[-1]
        found.append(
            {
                "step": step,
                "drawn": indices.tolist(),
                "factors": [factor.hex() for factor in lazy.factors.tolist()],
                "rows": {name: rows.tolist() for name, rows in record.rows.items()},
                "sums": {name: sums.tolist() for name, sums in record.sums.items()},
                "dense_sum": _hex(record.dense_sum[DENSE]) if DENSE in record.dense_sum else "",
                "settles": _grouped(lazy.payments),
            }
        )
    lazy.payments = []
    lazy.release()
    assert not lazy.oracle.dense_order_matters, "three addends and a rounding: choose other dense inputs"
    return found, _grouped(lazy.payments)


def _grouped(payments: list[tuple[str, int, int, int]]) -> dict[str, list[list[int]]]:
    grouped: dict[str, list[list[int]]] = {}
    for name, *payment in payments:
        grouped.setdefault(name, []).append(payment)
    return grouped


def _mode(vector: Vector, plan: RunPlan, drawn: Drawn) -> dict[str, Any]:
    lazy = trainer(Lazy, plan)
    eager = trainer(Eager, plan) if vector.eager else None
    after: list[dict[str, Any]] = []
    for step, indices in enumerate(drawn):
        lazy.payments = []
        lazy.train(plan.batch(indices))
        if eager is not None:
            eager.train_batch(plan.batch(indices))
            if len(indices) or plan.steps <= 12:
                after.append({"step": step, **_weights(eager.tables, eager.oracle.dense)})
    release = lazy.release()
    released = {"lazy": _weights(release.tables, release.dense)}
    bound = None
    entries = lazy.ledger.entries
    if eager is not None:
        release = eager.release()
        released["eager"] = _weights(release.tables, release.dense)
        assert [entry.line() for entry in eager.ledger.entries] == [entry.line() for entry in entries]
        if plan.mode == "bridge":
            bounds = bridge_bounds(eager.transcript, plan.spec)
            bound = {name: [float(b).hex() for b in rows] for name, rows in bounds.items()}
    return {
        "after": after,
        "released": released,
        "rounding_bound": bound,
        "ledger": {
            "entries": len(entries),
            "head": entries[-1].hash,
            "lines": [entry.line() for entry in entries] if plan.mode == "replay" and len(entries) <= LINES else [],
        },
    }


def _weights(tables: Any, dense: Any) -> dict[str, Any]:
    return {
        "tables": {name: _rows(table) for name, table in tables.items()},
        "dense": _hex(dense[DENSE]) if dense else "",
    }


def _rows(table: np.ndarray) -> list[str]:
    return [_hex(row) for row in table]


def _hex(values: np.ndarray) -> str:
    assert values.dtype == np.float32
    return " ".join(f"{int(bits):08x}" for bits in np.ascontiguousarray(values).view(np.uint32).ravel())


def text(document: dict[str, Any]) -> str:
    """Indented, with lists of numbers and of payments on one line each."""
    return _laid_out(document, 0) + "\n"


def _laid_out(value: Any, depth: int) -> str:
    flat = json.dumps(value)
    if len(flat) + depth <= 110 or not isinstance(value, dict | list):
        return flat
    pad, close = " " * (depth + 1), " " * depth
    if isinstance(value, dict):
        body = [f"{pad}{json.dumps(k)}: {_laid_out(v, depth + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(body) + f"\n{close}}}"
    return "[\n" + ",\n".join(pad + _laid_out(v, depth + 1) for v in value) + f"\n{close}]"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write or check equivalence/golden/runs.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file would change")
    parser.add_argument("names", nargs="*", help="these alone; all by default")
    options = parser.parse_args()
    check, names = options.check, options.names or [vector.name for vector in VECTORS]
    FOLDER.mkdir(parents=True, exist_ok=True)
    stale = [p for p in FOLDER.glob("*.json") if p.stem not in {v.name for v in VECTORS}]
    for vector in (v for v in VECTORS if v.name in names):
        path, wanted = FOLDER / f"{vector.name}.json", text(build(vector))
        if not check:
            path.write_text(wanted, encoding="utf-8")
            sys.stdout.write(f"wrote {path.name} ({len(wanted)} bytes)\n")
        elif not path.exists() or path.read_text(encoding="utf-8") != wanted:
            stale.append(path)
    if check and stale:
        raise SystemExit(f"{[p.name for p in stale]} are not what tools/make_golden_runs.py writes: review the diff")
    for path in [] if check else stale:
        path.unlink()


if __name__ == "__main__":
    main()
