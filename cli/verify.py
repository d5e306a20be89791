"""`samelaw verify`: both twins in closed loop, the claims, the price, and a run folder that a person can read."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from samelaw.accounting.statement import epsilon_by_step, price
from samelaw.cli import runfolder
from samelaw.cli.data import check_positive, load_workload, test_batch
from samelaw.cli.installed import source_digests
from samelaw.cli.models import Problem, dlrm_problem, kernels_for, readout_problem
from samelaw.cli.run_claims import books_hold, noise_is_apart, sampler_holds, sums_hold
from samelaw.cli.same_model import same_model
from samelaw.cli.tolerance import with_tolerances
from samelaw.cli.twins import Draw, Fault, TwinRun, run_twins
from samelaw.contract.errors import InputError
from samelaw.contract.evidence import Evidence, Verdict
from samelaw.contract.ledger import Ledger, spent
from samelaw.contract.noise import NoiseKey, NoiseStream
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import Mode, PrivacySpec
from samelaw.contract.trace import Batch
from samelaw.equivalence import claims
from samelaw.equivalence.addresses import addresses
from samelaw.equivalence.budget import Budget, Pending, Waiting
from samelaw.equivalence.faults import FAULTS
from samelaw.equivalence.faults import Fault as SeededFault
from samelaw.equivalence.laws import check_rate
from samelaw.equivalence.proofs import ProofStatus, proof_status, proofs_record, theorems
from samelaw.equivalence.report import write_report
from samelaw.equivalence.scenarios import edge_cases, one_example
from samelaw.equivalence.schemas import evidence_record
from samelaw.reference.noise import normals
from samelaw.workloads import Workload

STEPS = 120
BRIDGE_STEPS = 32
WIDE_STEPS = 48
BATCH_SIZE = 256.0
DIM = 16
WIDE_DIM = 128
CLIP_NORM = 0.25
NOISE_MULTIPLIER = 0.5
LEARNING_RATE = 3.0
_TEST_EXAMPLES = 4000
_PROBES = 48


@dataclass
class Suite:
    """Everything that one call of verify finds out; claims that rest on tests wait for their share of one budget."""

    evidence: list[Evidence | Pending]
    runs: list[TwinRun]
    ledger: Ledger


def run_verify(options: argparse.Namespace) -> int:
    if options.fault == "list":
        return _list_faults()
    fault = _fault(options)
    check_rate("--false-alarm", options.false_alarm, "samelaw verify")
    check_positive("--steps", options.steps, least=8)
    check_positive("--seed", options.seed, least=0)
    kernels = kernels_for(options.device)
    workload = load_workload(options, say=_say, fall_back=True)
    folder = runfolder.create(options.out, "verify")
    key = NoiseKey.from_os() if options.seed is None else NoiseKey.from_seed(options.seed)
    modes = [Mode(options.mode)] if options.mode != "all" else [Mode.REPLAY, Mode.BRIDGE, Mode.AGGREGATE]
    budget = Budget(options.false_alarm)
    torch.use_deterministic_algorithms(True)

    suite = check_everything(options, workload, key, modes, folder, fault)
    draws, backend = kernels_normals(kernels), f"{kernels.name} kernels on {kernels.device}"
    suite.evidence[:0] = [claims.noise_vectors(draws, backend=backend), addresses(draws, backend=backend)]
    return finish(options, workload, key, suite, budget, folder)


def check_everything(
    options: argparse.Namespace,
    workload: Workload,
    key: NoiseKey,
    modes: list[Mode],
    folder: Path,
    fault: SeededFault | None,
) -> Suite:
    """Train the twins in every mode on the workload and on the edge cases, and judge every claim."""
    steps = options.steps or STEPS
    seed = options.seed or 0
    examples = len(workload.train)
    batch_size = min(BATCH_SIZE, examples / 8)
    problem = dlrm_problem(workload.features, workload.dense_width, examples, dim=DIM, seed=seed)
    readout = readout_problem(workload.features, examples, dim=DIM, seed=seed)
    edge = edge_cases()
    edge_problem = dlrm_problem(edge.features, edge.dense_width, edge.examples, dim=edge.dim, seed=seed)
    test = test_batch(workload, _TEST_EXAMPLES)
    ledger = Ledger(folder / "ledger.jsonl")
    suite = Suite([], [], ledger)

    def spec_of(mode: Mode, count: int) -> PrivacySpec:
        return PrivacySpec(
            clip_norm=CLIP_NORM,
            noise_multiplier=NOISE_MULTIPLIER,
            sampling_rate=batch_size / examples,
            expected_batch_size=batch_size,
            delta=examples**-1.1,
            schedule=Schedule.warmup_cosine(LEARNING_RATE, steps=count, warmup=max(1, count // 10), final=0.05),
            mode=mode,
        )

    def from_workload(_: int, indices: np.ndarray) -> Batch:
        return workload.train.batch(indices)

    def from_edge_cases(step: int, _: np.ndarray) -> Batch:
        return edge.batches[step]

    published = modes[-1]  # the ledger and the weights in the run folder are those of this mode
    for mode in modes:
        count = min(steps, BRIDGE_STEPS) if mode is Mode.BRIDGE else steps
        spec = spec_of(mode, count)
        run = partial(_twins, options=options, key=key, folder=folder, fault=_in(fault, mode))
        main = run(
            f"{workload.name}, {mode}", problem, spec, from_workload, resume_at=count // 2, test=test,
            ledger=ledger if mode is published else None,
        )  # fmt: skip
        edge_spec = replace(edge.spec, mode=mode)
        small = run(f"edge cases, {mode}", edge_problem, edge_spec, from_edge_cases, resume_at=edge.resume_at)
        suite.runs += [main, small]
        if mode is Mode.REPLAY:
            suite.evidence += [claims.replay(r.eager, r.lazy, scope=r.name) for r in (main, small)]
        elif mode is Mode.BRIDGE:
            path = run(
                f"{workload.name} with a linear readout, bridge", readout, spec, from_workload, resume_at=count // 2
            )
            suite.evidence.append(
                claims.bridge(path.eager, path.lazy, spec, closed_loop=(main.eager, main.lazy), scope=path.name)
            )
        suite.evidence += [_noise(key, r) for r in (main, small)]
        if mode is Mode.AGGREGATE:
            # Wide rows give the tests of law the samples that they need; eager would only be slow at it.
            wide = dlrm_problem(workload.features, workload.dense_width, examples, dim=WIDE_DIM, seed=seed)
            name = f"{workload.name} at dimension {WIDE_DIM}, aggregate"
            few = min(steps, WIDE_STEPS)
            alone = run(name, wide, spec_of(mode, few), from_workload, resume_at=few // 2, with_eager=False)
            suite.evidence.append(_noise(key, alone))
        suite.evidence += [_settled(r) for r in (main, small)]
    small = suite.runs[-1]
    # A second run of the last mode's edge cases: other data, another key, and so other noise.
    other, other_key = edge_cases(seed=1), NoiseKey.from_os() if options.seed is None else NoiseKey.from_seed(seed + 1)
    second = _twins(
        f"edge cases again, {published}", edge_problem, small.spec, lambda step, _: other.batches[step],
        options=options, key=other_key, folder=folder, fault=_in(fault, published), resume_at=other.resume_at,
        with_eager=False,
    )  # fmt: skip
    suite.evidence.append(noise_is_apart(small, second))
    if options.device == "cpu":  # sums of gradients in float32 agree to the bit on one kind of processor
        suite.evidence.append(sums_hold(small, edge_problem, key, edge.batches))
    spec = spec_of(published, steps)
    faulty = _in(fault, published)
    drawing = problem.lazy(spec, key, device=options.device)
    if faulty is not None:
        faulty(drawing)
    suite.evidence.append(sampler_holds(drawing, key, scope=workload.name))
    drawn = workload.train.batch(np.arange(min(_PROBES, examples), dtype=np.int64))
    probes = [one_example(drawn, i) for i in range(len(drawn))]
    for name, place, law, singles in (
        (workload.name, problem, spec, probes),
        ("edge cases", edge_problem, replace(edge.spec, mode=published), edge.single_examples(_PROBES)),
    ):
        trainer = place.lazy(law, key, device=options.device)
        if faulty is not None:
            faulty(trainer)
        suite.evidence.append(
            claims.sensitivity(
                trainer.gradient_sums, singles, clip_norm=law.clip_norm,
                scope=f"{len(singles)} examples of {name}, each alone, lazy trainer",
            )
        )  # fmt: skip
    suite.evidence.append(
        same_model(
            problem, workload.features, workload.dense_width, drawn, scope=f"{len(drawn)} examples of {workload.name}"
        )
    )
    return suite


def finish(
    options: argparse.Namespace, workload: Workload, key: NoiseKey, suite: Suite, budget: Budget, folder: Path
) -> int:
    """Judge what waits, price the run, write the folder, say the verdict."""
    published = suite.runs[-2]  # the workload in the last mode; its edge cases come after it
    suite.ledger.close()
    account = spent(suite.ledger.entries)
    statement = price(account)
    said = statement.to_json()
    suite.evidence += [
        claims.accounted(said, account, published.spec, scope=published.name),
        books_hold(published, account, said["mechanism"], key, len(workload.train)),
    ]
    evidence, tolerances = with_tolerances(budget.conclude(suite.evidence), statement, scope=published.name)
    holds = claims.suite_holds(evidence)
    initial = published.lazy
    runfolder.write_initial(folder / runfolder.INITIAL_WEIGHTS, initial.initial_tables, initial.initial_dense)
    runfolder.write_weights(folder / "weights.safetensors", published.release)
    runfolder.write_json(folder / "evidence.json", evidence_record(evidence), private=True)
    proofs = proof_status(source_digests(source for theorem in theorems() for source in theorem.sources))
    runfolder.write_json(folder / "proofs.json", proofs_record(proofs))
    manifest = runfolder.manifest(
        "verify", workload, published.spec, key, suite.ledger, statement.to_json(),
        options={"device": options.device, "modes": options.mode, "fault": options.fault, "dim": DIM,
                 "workload_asked_for": options.workload},
        files=runfolder.digests(folder), verdict="HOLDS" if holds else "REFUTED",
    )  # fmt: skip
    runfolder.write_json(folder / "manifest.json", manifest)
    series = {
        "curves": {run.name: run.curves for run in suite.runs if run.curves},
        "epsilon": epsilon_by_step(published.spec),
        "skipped_lines": workload.skipped,
        "proofs": proofs,
    }
    write_report(folder / "report.html", manifest, evidence, series)
    if options.json:
        print(json.dumps(evidence_record(evidence), indent=2, sort_keys=True))
    else:
        _print_table(evidence)
        for tolerance in tolerances:
            print(f"    {tolerance.sentence}")
        _print_proofs(proofs)
    refuted = [claim for claim in evidence if claim.verdict is Verdict.REFUTED]
    for claim in refuted:
        _say(f"{claim.claim} REFUTED ({claim.scope}): {claim.first_disagreement or claim.summary}")
    if options.fault:
        caught = ", ".join(dict.fromkeys(e.claim for e in refuted))
        _say(f"fault {options.fault!r}: " + (f"caught by {caught}" if refuted else "NOT CAUGHT"))
    _say(f"{'Every claim holds.' if holds else 'Not every claim holds.'} Report: {folder / 'report.html'}")
    return 0 if holds else 1


def kernels_normals(kernels: Any) -> Callable[..., np.ndarray]:
    """A backend's normals in the form that claim N1 asks for: NumPy in, NumPy out."""

    def drawn(stream: NoiseStream, purpose: Any, table: int, rows: np.ndarray, steps: Any, dim: int) -> np.ndarray:
        place = partial(torch.tensor, dtype=torch.int64, device=kernels.device)
        when = steps if isinstance(steps, int) else place(steps)
        return kernels.normals(stream, purpose, table, place(rows), when, dim).cpu().numpy()

    return drawn


def _twins(
    name: str,
    problem: Problem,
    spec: PrivacySpec,
    draw: Draw,
    *,
    options: argparse.Namespace,
    key: NoiseKey,
    folder: Path,
    fault: Fault | None,
    resume_at: int,
    with_eager: bool = True,
    test: Batch | None = None,
    ledger: Ledger | None = None,
) -> TwinRun:
    """One closed-loop run under a progress bar; the private resume checkpoint lives in a folder that is removed."""
    total = spec.schedule.steps * (1 + with_eager)
    with (
        tqdm(total=total, desc=name, unit="step", disable=options.quiet, file=sys.stderr) as bar,
        tempfile.TemporaryDirectory(dir=folder) as private,
    ):
        return run_twins(
            name, problem, spec, key, draw,
            folder=Path(private), device=options.device, fault=fault, with_eager=with_eager, resume_at=resume_at,
            test=test, ledger=ledger, tick=bar.update,
        )  # fmt: skip


def _noise(key: NoiseKey, run: TwinRun) -> Pending:
    """L1 of a run: aggregate's own claim, and in the exact modes a check that the law is the same law."""
    return claims.measure(
        run.lazy, run.spec, padding=run.padding, normals=partial(normals, NoiseStream(key, run.spec.rounds)),
        restarts=[int(entry.data["step"]) for entry in run.entries if entry.event == "resume"], scope=run.name,
    )  # fmt: skip


def _settled(run: TwinRun) -> Waiting:
    """R1 of a run: its one test, of rows that did not move, waits for its share too."""
    return Waiting(
        1,
        lambda share: claims.settled(
            run.lazy.initial_tables, dict(run.release.tables), run.spec, step=run.spec.schedule.steps,
            histories=run.histories, entries=run.entries, padding=run.padding, false_alarm=share, scope=run.name,
        ),
    )  # fmt: skip


def _list_faults() -> int:
    here = {name: fault for name, fault in FAULTS.items() if fault.in_verify}
    width = max(map(len, here))
    for name, fault in here.items():
        print(f"{name:<{width}}  {fault.sentence} [{', '.join(map(str, fault.modes))}]")
    _say(f"{len(FAULTS) - len(here)} more show in other runs: `samelaw faults --list`")
    return 0


def _in(fault: SeededFault | None, mode: Mode) -> Fault | None:
    """The patch of a fault, in the modes in which it is one."""
    return fault.apply if fault is not None and mode in fault.modes else None


def _fault(options: argparse.Namespace) -> SeededFault | None:
    """The patch that --fault names.

    Raises:
        InputError: no such fault, or one that does nothing in the chosen mode.
    """
    name = options.fault
    if name is None:
        return None
    if name not in FAULTS:
        here = ", ".join(name for name, fault in FAULTS.items() if fault.in_verify)
        raise InputError(f"--fault must be 'list' or one of {here}; got {name!r}")
    fault = FAULTS[name]
    if not fault.in_verify:
        raise InputError(
            f"--fault {name} needs another run than those of verify to show surely; use `samelaw faults --only {name}`"
        )
    if options.mode != "all" and Mode(options.mode) not in fault.modes:
        wanted = " or ".join(map(str, fault.modes))
        raise InputError(f"--fault {name} does nothing in --mode {options.mode}; use --mode {wanted} or --mode all")
    return fault


def _print_table(suite: list[Evidence]) -> None:
    for evidence in suite:
        print(f"{evidence.claim:<3} {evidence.verdict:<12} {evidence.scope}: {evidence.summary}")


def _print_proofs(statuses: Sequence[ProofStatus]) -> None:
    """Per claim: theorems about installed files, by file and by how they are bound to them, and those about others."""
    about = {
        "generated": "of {} as installed",
        "by hand": "of a model written by hand after {} as installed",
        "none": "as mathematics alone",
    }
    for claim in dict.fromkeys(s.theorem.claim for s in statuses):
        of_claim = [s for s in statuses if s.theorem.claim == claim]
        proved: dict[str, list[str]] = {}
        for status in (s for bound in about for s in of_claim if s.proved and s.theorem.bound == bound):
            words = about[status.theorem.bound].format(_files(status.theorem.sources))
            proved.setdefault(words, []).append(status.theorem.theorem)
        for words, names in proved.items():
            print(f"{claim:<3} PROVED       {words}: {', '.join(names)}")
        for words in dict.fromkeys(s.words for s in of_claim if not s.proved):
            print(f"{claim:<3} {words}")
    if any(s.proved for s in statuses):
        print("    PROVED is said of these files alone; the trainers that call their functions are tested.")


def _files(sources: Iterable[str]) -> str:
    """Sources in words: "truncation.py and CLIP_MARGIN of spec.py"."""
    names = [source.rpartition("/")[2].partition("#") for source in sources]
    words = [f"{constant} of {file}" if constant else file for file, _, constant in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
