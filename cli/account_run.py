"""The work of `samelaw account`."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from samelaw.accounting.assumptions import Adjacency, Assumptions, Released, Sampler, combined_multiplier, gaussian_dp
from samelaw.accounting.composition import Plan, Spend
from samelaw.accounting.curve import DeltaAtEpsilon, privacy_curve
from samelaw.accounting.engines import Opinion, opinions
from samelaw.accounting.interval import Interval
from samelaw.accounting.mechanism import SampledGaussian
from samelaw.accounting.solving import least_multiplier, most_steps
from samelaw.accounting.statement import PrivacyStatement, price_together, state_plan
from samelaw.cli.runfolder import write_text
from samelaw.contract.errors import InputError, LedgerError
from samelaw.contract.figures import rounded_down, rounded_up
from samelaw.contract.ledger import read_ledger, spent

SCHEMA = "samelaw.account/1"
LONGEST_TIMEOUT = 1e6


class OutOfTime(InputError):
    """The command ran longer than --timeout."""


def run_account(options: argparse.Namespace) -> int:
    """Price, and print; the exit status of success."""
    _check_files(options)
    with _limited(options.timeout):
        found, statement, plan = _answer(options)
        asked = [] if not plan.simple else opinions(plan.phases[0], statement.delta)
        curve: list[DeltaAtEpsilon] = []
        if options.curve is not None or options.plot is not None:
            curve = privacy_curve(plan, largest_epsilon=max(1.0, 1.5 * statement.upper), points=options.points)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        **found,
        "statement": statement.to_json(),
        "accountants": [_opinion(o) for o in asked],
        "gaussian_dp": _gaussian_dp(plan),
        "curve": [p._asdict() for p in curve],
    }
    if options.curve is not None:
        write_text(options.curve, _table(curve, options.curve.suffix))
    if options.plot is not None:
        _plot(options.plot, curve, statement)
    if options.json:
        print(json.dumps(record, indent=2, allow_nan=False))
    else:
        print(_words(found, statement, asked, record["gaussian_dp"]))
    return 0


def _answer(options: argparse.Namespace) -> tuple[dict[str, Any], PrivacyStatement, Plan]:
    """What was found, the statement, and the plan that it prices."""
    assumptions = Assumptions(
        adjacency=Adjacency(options.adjacency),
        sampler=Sampler(options.sampler),
        examples_per_unit=options.examples_per_unit,
        released=Released(options.released),
        examples=options.examples,
        largest_batch=options.largest_batch,
        public_batch_size=not options.data_derived_batch_size,
    )
    extra = tuple(_spend(text) for text in options.spend)
    if options.runs:
        return _of_runs(options, assumptions, extra)
    if options.delta is None:
        raise InputError("--delta must be given to price what comes without a ledger")
    found: dict[str, Any] = {}
    if options.target_epsilon is not None:
        phases = (_calibrated(options, assumptions, extra, found),)
    else:
        phases = _phases(options)
    plan = Plan(phases, assumptions, extra)
    return found, state_plan(plan, options.delta), plan


def _of_runs(
    options: argparse.Namespace, assumptions: Assumptions, extra: tuple[Spend, ...]
) -> tuple[dict[str, Any], PrivacyStatement, Plan]:
    given = [
        n for n in ("noise_multiplier", "sampling_rate", "steps", "target_epsilon") if getattr(options, n) is not None
    ]
    if given or options.phase or options.second_noise_multiplier is not None:
        name = "--" + (given[0].replace("_", "-") if given else "phase or --second-noise-multiplier")
        raise InputError(f"{name} is for a plan without a ledger: a run is priced as its ledger says it happened")
    if len(options.runs) > 1 and not options.same_data:
        raise InputError(
            "several runs cost together only what they learn from the same people: pass --same-data if they do, or "
            "price runs on disjoint data one by one"
        )
    if len({path.resolve() for path in options.runs}) < len(options.runs):
        raise InputError("the same run folder is named twice")
    accounts = [spent(read_ledger(_ledger(path))) for path in options.runs]
    keys = [account.opened.get("key_commitment") for account in accounts]
    if len(set(keys)) < len(keys):
        raise LedgerError(
            "two of the runs used the same noise key: their noise is not independent, and the difference of their "
            "releases may have none. They cannot be priced together"
        )
    found: dict[str, Any] = {"runs": [str(path) for path in options.runs]}
    statement = price_together(accounts, delta=options.delta, assumptions=assumptions, spends=extra)
    return found, statement, statement.plan


def _calibrated(
    options: argparse.Namespace, assumptions: Assumptions, extra: tuple[Spend, ...], found: dict[str, Any]
) -> SampledGaussian:
    if options.phase or options.second_noise_multiplier is not None:
        raise InputError("--target-epsilon calibrates one phase with one release a step")
    if options.sampling_rate is None or (options.noise_multiplier is None) == (options.steps is None):
        raise InputError("--target-epsilon needs --sampling-rate and exactly one of --noise-multiplier and --steps")
    common: dict[str, Any] = {"delta": options.delta, "assumptions": assumptions, "spends": extra}
    if options.steps is not None:
        sigma = least_multiplier(
            options.target_epsilon, sampling_rate=options.sampling_rate, steps=options.steps, **common
        )
        found["calibrated"] = {"noise_multiplier": sigma}
        return SampledGaussian(options.sampling_rate, sigma, options.steps)
    steps = most_steps(
        options.target_epsilon,
        sampling_rate=options.sampling_rate,
        noise_multiplier=options.noise_multiplier,
        **common,
    )
    found["calibrated"] = {"steps": steps}
    return SampledGaussian(options.sampling_rate, options.noise_multiplier, steps)


def _phases(options: argparse.Namespace) -> tuple[SampledGaussian, ...]:
    single = (options.sampling_rate, options.noise_multiplier, options.steps)
    second = options.second_noise_multiplier
    if options.phase:
        if any(value is not None for value in single):
            raise InputError("give --phase, or --sampling-rate, --noise-multiplier and --steps, and not both")
        wanted = [_numbers("--phase", text, 3) for text in options.phase]
    else:
        if any(value is None for value in single):
            raise InputError(
                "give run folders, or --sampling-rate, --noise-multiplier and --steps, or --target-epsilon and two of "
                "them"
            )
        wanted = [single]
    phases: list[SampledGaussian] = []
    for q, sigma, steps in wanted:
        if int(steps) != steps:
            raise InputError(f"steps must be a whole number, got {steps!r} in --phase")
        phases.append(SampledGaussian(q, sigma if second is None else combined_multiplier(sigma, second), int(steps)))
    return tuple(phases)


def _spend(text: str) -> Spend:
    name, colon, cost = text.rpartition(":")
    if not colon or not name:
        raise InputError(f"--spend must be NAME:EPSILON,DELTA, got {text!r}")
    epsilon, delta = _numbers("--spend", cost, 2)
    return Spend(name, epsilon, delta)


def _numbers(option: str, text: str, count: int) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as cause:
        raise InputError(f"{option} must be {count} finite numbers with commas between, got {text!r}") from cause
    if len(values) != count or not all(map(math.isfinite, values)):
        raise InputError(f"{option} must be {count} finite numbers with commas between, got {text!r}")
    return values


def _ledger(path: Path) -> Path:
    found = path / "ledger.jsonl" if path.is_dir() else path
    if not found.is_file():
        raise InputError(f"RUN_DIR must be a run folder or a ledger, and there is no file {str(found)!r}")
    return found


def _check_files(options: argparse.Namespace) -> None:
    for name, path, allowed in (
        ("--curve", options.curve, (".csv", ".json")),
        ("--plot", options.plot, (".svg", ".png", ".html")),
    ):
        if path is not None and path.suffix not in allowed:
            raise InputError(f"{name} must end in {' or '.join(allowed)}, got {str(path)!r}")
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{name} must lie in a folder that exists, got {str(path)!r}")
    if not 0 < options.timeout <= LONGEST_TIMEOUT:
        raise InputError(f"--timeout must be in (0, {LONGEST_TIMEOUT:g}] seconds, got {options.timeout!r}")


@contextmanager
def _limited(seconds: float) -> Generator[None]:
    """Raise OutOfTime after so long. Memory is limited by what each accountant plans before it allocates."""

    def out(*_: object) -> NoReturn:
        raise OutOfTime(
            f"no answer within --timeout {seconds:g} seconds, and none is quoted. Allow more time, or fewer --points"
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, out)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _opinion(opinion: Opinion) -> dict[str, Any]:
    said = opinion.interval
    common = {"engine": opinion.engine, "seconds": round(opinion.seconds, 3)}
    if isinstance(said, Interval):
        upper = said.upper if math.isfinite(said.upper) else None
        return common | {"lower": said.lower, "estimate": said.estimate, "upper": upper, "note": said.note}
    return common | {"lower": None, "estimate": None, "upper": None, "note": said.reason}


def _gaussian_dp(plan: Plan) -> dict[str, Any] | None:
    if not plan.simple:
        return None
    mu, kind = gaussian_dp(plan.phases[0])
    return {"mu": mu if math.isfinite(mu) else None, "kind": kind}


def _table(curve: Sequence[DeltaAtEpsilon], suffix: str) -> str:
    if suffix == ".json":
        return json.dumps([p._asdict() for p in curve], indent=2, allow_nan=False) + "\n"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(DeltaAtEpsilon._fields)
    writer.writerows(curve)
    return text.getvalue()


def _plot(path: Path, curve: Sequence[DeltaAtEpsilon], statement: PrivacyStatement) -> None:
    """The curve on a logarithmic axis; as a page it stands alone, with the table below."""
    from html import escape

    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    shown = [p for p in curve if p.upper > 0]
    epsilons = [p.epsilon for p in shown]
    floor = min((p.upper for p in shown), default=1e-30) / 10
    axes.fill_between(
        epsilons, [max(p.lower, floor) for p in shown], [p.upper for p in shown], alpha=0.3, label="bounds"
    )
    axes.plot(epsilons, [p.upper for p in shown], label="upper bound")
    axes.plot([statement.upper], [statement.delta], "o", label=f"ε at most {rounded_up(statement.upper)}")
    axes.set(xlabel="ε", ylabel="δ", yscale="log", title=f"{statement.mechanism.steps} steps, {statement.adjacency}")
    axes.legend()
    if path.suffix == ".html":
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg")
        svg = drawn.getvalue()
        rows = "".join(
            f"<tr><td>{p.epsilon:.4g}</td><td>{rounded_up(p.upper)}</td><td>{escape(p.engine)}</td></tr>" for p in curve
        )
        items = "".join(f"<li>{escape(a)}</li>" for a in statement.assumptions)
        write_text(
            path,
            "<!doctype html><html lang='en'><meta charset='utf-8'><title>Privacy cost</title>"
            f"<h1>Privacy cost</h1><p>{escape(str(statement))}</p>{svg[svg.index('<svg') :]}"
            f"<h2>Assumed</h2><ul>{items}</ul><h2>Curve</h2><table><tr><th>ε</th><th>δ at most</th><th>by</th></tr>"
            f"{rows}</table></html>\n",
        )
    else:
        figure.savefig(path, format=path.suffix[1:], dpi=150)


def _words(
    found: dict[str, Any], statement: PrivacyStatement, asked: Sequence[Opinion], mu: dict[str, Any] | None
) -> str:
    lines: list[str] = []
    if "calibrated" in found:
        lines += [f"calibrated: {name.replace('_', ' ')} {value}" for name, value in found["calibrated"].items()]
    lines.append(str(statement))
    lines.append(f"chosen because: {statement.reason}" + (f" ({statement.note})" if statement.note else ""))
    if statement.generator_delta is not None:
        lines.append(f"generator: {statement.generator}")
    if asked:
        lines.append("\naccountant                   lower     estimate  upper     seconds")
    for opinion in asked:
        said = opinion.interval
        if isinstance(said, Interval):
            numbers = f"{rounded_down(said.lower, 6):<9} {said.estimate:<9.6g} {rounded_up(said.upper, 6):<9}"
            lines.append(f"{opinion.engine:<28} {numbers} {opinion.seconds:.2f}")
        else:
            lines.append(f"{opinion.engine:<28} no answer: {said.reason}")
    if mu is not None:
        lines.append(
            f"mu-GDP                       {mu['mu']:.6g}: {mu['kind']}" if mu["mu"] is not None else "mu-GDP infinite"
        )
    for title, items in (
        ("assumed", statement.assumptions),
        ("not included", statement.not_included),
        ("beware", statement.caveats),
    ):
        if items:
            lines.append(f"\n{title}:")
            lines += [f"- {item}" for item in items]
    return "\n".join(lines)
