"""One attack: a workload, planted canaries, a trainer from its first step to its release, and the judgement."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import textwrap
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import numpy as np
from tqdm import tqdm

from samelaw.accounting.statement import price
from samelaw.audit.attack import check_levels, judge
from samelaw.audit.attack_result import THREAT_MODEL, AttackResult, Bound, Claim, Outcome
from samelaw.audit.canaries import Canaries, Scores
from samelaw.cli.attack_command import BAD_INPUT, INCONCLUSIVE, NOT_REFUTED, REFUTED
from samelaw.cli.canary_model import canary_problem, table_path
from samelaw.cli.data import check_positive, load_workload
from samelaw.cli.models import tables_of
from samelaw.contract.errors import InputError, NoiseKeyError, SamelawError
from samelaw.contract.figures import rounded_down, rounded_up
from samelaw.contract.ledger import spent
from samelaw.contract.noise import NoiseKey
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import Mode, PrivacySpec
from samelaw.equivalence.faults import FAULTS, Fault, Kind, Scenario
from samelaw.workloads import Workload

EXIT = {Outcome.NOT_REFUTED: NOT_REFUTED, Outcome.REFUTED: REFUTED, Outcome.INCONCLUSIVE: INCONCLUSIVE}


def scaled_noise(share: float) -> Callable[[Any], None]:
    """A fault: every settlement and every dense draw of a fast trainer pays `share` of the noise that is owed."""

    def apply(trainer: Any) -> None:
        for table in trainer.tables.values():
            table.pay = _short(table, table.pay, share)
        pay_dense = trainer.pay_dense

        def paid_dense(step: int) -> None:
            before = {name: parameter.detach().clone() for name, parameter in trainer.dense.items()}
            pay_dense(step)
            for name, parameter in trainer.dense.items():
                value = parameter.detach()
                value.copy_(before[name] + (value - before[name]) * share)

        trainer.pay_dense = paid_dense

    return apply


def _short(table: Any, pay: Callable[..., None], share: float) -> Callable[..., None]:
    def paid(rows: Any, since: Any, until: int) -> None:
        before = table.weights[rows]
        pay(rows, since, until)
        table.weights[rows] = before + (table.weights[rows] - before) * share

    return paid


_OF_ONE_RUN = (Kind.SETTLEMENT, Kind.NOISE, Kind.SCALING, Kind.CLIPPING)
ATTACK_FAULTS: Mapping[str, Fault] = {
    **{
        name: fault
        for name, fault in FAULTS.items()
        if fault.kind in _OF_ONE_RUN and fault.scenario is not Scenario.TWO_RUNS
    },
    "noise-halved": Fault(
        name="noise-halved",
        kind=Kind.NOISE,
        sentence="All noise has half of its std.",
        caught_by={},
        apply=scaled_noise(0.5),
    ),
    "noise-tenth-missing": Fault(
        name="noise-tenth-missing",
        kind=Kind.NOISE,
        sentence="All noise has 0.9 of its std.",
        caught_by={},
        apply=scaled_noise(0.9),
    ),
}


def run_attack(options: argparse.Namespace) -> int:
    """The whole command; returns the exit status."""
    try:
        if options.fault == "list":
            for fault in ATTACK_FAULTS.values():
                print(f"{fault.name:<24} {fault.sentence}")
            return NOT_REFUTED
        _check(options)
        check_levels(options.confidence, options.false_alarm)
        spec = spec_of(options)
        options.workload = options.attack
        workload = load_workload(options, say=_say)
        scores, claim = attack(options, workload, spec)
        result = judge(scores, claim, confidence=options.confidence, false_alarm=options.false_alarm)
    except (InputError, NoiseKeyError, OSError) as error:
        print(f"samelaw attack: {error}", file=sys.stderr)
        return BAD_INPUT
    except SamelawError as error:  # the trainer refused to release, or the accountant to price: nothing to attack
        print(f"samelaw attack: {type(error).__name__}: {error}\nNothing was concluded.", file=sys.stderr)
        return INCONCLUSIVE
    if options.json:
        print(json.dumps({**result.to_json(), "run": _run_of(options, workload)}, indent=2, sort_keys=True))
    else:
        print(text_of(result, options, workload))
    return EXIT[result.outcome]


def spec_of(options: argparse.Namespace) -> PrivacySpec:
    """The law of the attacked run. B takes every coin at its mean, and so tells nothing of the coins."""
    return PrivacySpec(
        clip_norm=options.clip_norm,
        noise_multiplier=options.noise_multiplier,
        sampling_rate=options.sampling_rate,
        expected_batch_size=options.sampling_rate * (options.examples + options.canaries / 2),
        delta=options.delta,
        schedule=Schedule.constant(options.learning_rate, steps=options.steps),
        mode=Mode(options.mode),
    )


def attack(options: argparse.Namespace, workload: Workload, spec: PrivacySpec) -> tuple[Scores, Claim]:
    """Plant, train, release, score; and price the ledger of that very run."""
    rng = np.random.default_rng(secrets.randbits(128) if options.seed is None else [options.seed, 0xA77AC])
    examples = min(options.examples, len(workload.train))
    ordinary = workload.train.take(np.sort(rng.permutation(len(workload.train))[:examples]))
    canaries = Canaries.plant(
        workload.features,
        canaries=options.canaries,
        examples=examples,
        dim=options.dim,
        rng=rng,
        repeats=options.repeats,
    )
    problem = canary_problem(
        workload.features, workload.dense_width, canaries, clip_norm=spec.clip_norm, seed=options.seed or 0
    )
    initial = {table: tables_of(problem.model)[table_path(table)] for table in canaries.first_rows}
    key = NoiseKey.from_os() if options.seed is None else NoiseKey.from_seed(options.seed)
    if options.trainer == "fast":
        trainer = problem.lazy(spec, key, device=options.device)
        if options.fault is not None:
            ATTACK_FAULTS[options.fault].apply(trainer)
    else:
        trainer = problem.eager(spec, key, device=options.device)
        trainer.transcript = None
    for _ in tqdm(range(spec.schedule.steps), unit="step", disable=options.quiet, file=sys.stderr):
        drawn = np.asarray(trainer.sample())
        trainer.train_batch(canaries.batch(ordinary.batch(drawn[drawn < examples]), drawn[drawn >= examples]))
    release = trainer.release()
    released = {table: release.tables[table_path(table)] for table in canaries.first_rows}
    rate = spec.schedule.rate(0) / spec.expected_batch_size
    scores = canaries.scores(initial, released, step=rate * spec.clip_norm)
    return scores, claim_of(trainer)


def claim_of(trainer: Any) -> Claim:
    """The price of what the trainer's ledger says it did."""
    statement = price(spent(trainer.ledger.entries))
    mechanism = statement.mechanism
    return Claim(
        statement.lower,
        statement.upper,
        statement.delta,
        statement.engine,
        mechanism.sampling_rate,
        mechanism.noise_multiplier,
        mechanism.steps,
    )


def text_of(result: AttackResult, options: argparse.Namespace, workload: Workload) -> str:
    """What a person reads."""
    claim, left_out = result.claim, result.canaries - result.included
    ordinary = min(options.examples, len(workload.train))
    lines = [
        f"{result.outcome}: {result.reason}.",
        "",
        f"run          {options.trainer} trainer, {options.mode} mode, {workload.name} with "
        f"{ordinary} ordinary examples; q {claim.sampling_rate:g}, sigma {options.noise_multiplier:g}, "
        f"{claim.steps} steps" + (f"; planted fault: {options.fault}" if options.fault else ""),
        f"claim        epsilon <= {rounded_up(claim.upper, 4)} at delta {rounded_up(claim.delta)} ({claim.engine})",
        f"canaries     {result.canaries}: {result.included} in, {left_out} out, by fair coins",
        f"confidence   {result.confidence:g} for all bounds together; refuted at a false-alarm rate of "
        f"{result.false_alarm:g}",
        "",
        "lower bounds on epsilon at that delta",
        *(line for bound in result.bounds for line in _lines(bound, claim)),
        "",
        f"limits       without assuming Gaussian noise, at most epsilon {rounded_down(result.ceiling)} could be shown",
    ]
    if result.detectable_noise is not None and result.detectable_noise > 0:
        lines.append(
            f"             noise of {rounded_down(result.detectable_noise)} times the declared std would be refuted "
            "with probability 0.99"
        )
    if any(result.unchanged):
        lines.append(
            f"unchanged    {result.unchanged[0]} of {result.included} canaries that were in and "
            f"{result.unchanged[1]} of {left_out} that were out have a row at its initial bits"
        )
    return "\n".join([*lines, "", *_wrapped("threat model ", THREAT_MODEL)])


def _lines(bound: Bound, claim: Claim) -> list[str]:
    if bound.epsilon is None:
        return _wrapped(f"  {bound.method:<20} ", bound.note)
    share = "" if bound.epsilon == 0 else f", {100 * bound.epsilon / claim.upper:.0f} % of the claim"
    return [
        *_wrapped(f"  {bound.method:<20} ", f"{rounded_down(bound.epsilon, 4)}{share}; {bound.note}"),
        *_wrapped(" " * 23, f"assumes: {bound.assumes}"),
    ]


def _wrapped(label: str, text: str) -> list[str]:
    """Text beside a label, in lines of at most 110 characters."""
    return textwrap.wrap(text, 110, initial_indent=label, subsequent_indent=" " * len(label))


def _run_of(options: argparse.Namespace, workload: Workload) -> dict[str, Any]:
    """What was attacked; nothing in it tells the coins or the seed."""
    return {
        "workload": workload.name,
        "ordinary_examples": min(options.examples, len(workload.train)),
        "trainer": options.trainer,
        "mode": options.mode,
        "device": options.device,
        "fault": options.fault,
        "clip_norm": options.clip_norm,
        "learning_rate": options.learning_rate,
        "dim": options.dim,
        "repeats": options.repeats,
        "seeded": options.seed is not None,
        "threat_model": THREAT_MODEL,
        "version": metadata.version("samelaw"),
    }


def _check(options: argparse.Namespace) -> None:
    for name, least in (("canaries", 1), ("examples", 1), ("steps", 1), ("dim", 1), ("repeats", 1)):
        check_positive(f"--{name}", getattr(options, name), least=least)
    if not options.noise_multiplier > 0:
        raise InputError(
            f"--noise-multiplier must be > 0, got {options.noise_multiplier!r}: without noise there is no epsilon to "
            "attack"
        )
    if options.seed is not None and options.seed < 0:
        raise InputError(f"--seed must be >= 0, got {options.seed}")
    if options.fault is not None and options.fault not in ATTACK_FAULTS:
        raise InputError(f"--fault: there is no fault {options.fault!r}; `--fault list` explains those there are")
    if options.fault is not None and options.trainer != "fast":
        raise InputError("--fault needs --trainer fast: faults are planted in the lazy trainer")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
