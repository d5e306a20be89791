"""`samelaw train`: a DLRM, the lazy trainer, held-out AUC as it goes, and a run folder at the end."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from samelaw.accounting.statement import calibrate, epsilon_by_step, price
from samelaw.cli import runfolder
from samelaw.cli.data import check_positive, load_workload, test_batch
from samelaw.cli.models import Problem, auc, dlrm_problem, mean_loss
from samelaw.cli.recorder import Recorder, check_transcript
from samelaw.cli.runfolder import draft_of
from samelaw.cli.twins import Curves, predict, settled_copy
from samelaw.contract.errors import InputError, LedgerError, NoiseKeyError, ResumeError
from samelaw.contract.figures import rounded_down, rounded_up
from samelaw.contract.ledger import Ledger, spent
from samelaw.contract.noise import STEP_BITS, NoiseKey
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import Mode, PrivacySpec
from samelaw.equivalence.report import write_report
from samelaw.fast.trainer import LazyTrainer
from samelaw.workloads import Workload

CHECKPOINT = "checkpoint"
SETTINGS = "settings.json"
WEIGHTS = "weights.safetensors"
_LARGEST_TEST = 20_000


@dataclass(frozen=True)
class Plan:
    """What the options amount to for a training set of a given size."""

    steps: int
    sampling_rate: float
    delta: float
    noise_multiplier: float


def run_train(options: argparse.Namespace, *, prepare: Callable[[LazyTrainer], object] | None = None) -> int:
    """Train as the options say.

    Args:
        prepare: called with the trainer before its first step, and again when it resumes: for tests and examples that
            plant a fault.
    """
    if options.resume and (options.out is None or (options.key_file is None and options.seed is None)):
        raise InputError("--resume needs --out (the folder with the checkpoint) and --key-file (the run's key)")
    if options.seed is not None and options.key_file is not None:
        raise InputError("--seed and --key-file exclude each other: a run has one key")
    _check(options)
    if options.checkpoint_every and options.key_file is None and options.seed is None:
        raise InputError("--checkpoint-every needs --key-file: a checkpoint never holds the key, and resuming needs it")
    workload = load_workload(options, say=_say)
    examples = len(workload.train)
    plan = plan_of(options, examples)
    key = _key(options)
    spec = PrivacySpec(
        clip_norm=options.clip_norm,
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=plan.sampling_rate,
        expected_batch_size=options.batch_size,
        delta=plan.delta,
        schedule=_schedule(options.schedule, options.learning_rate, plan.steps),
        mode=Mode(options.mode),
    )
    folder = options.out if options.resume else runfolder.create(options.out, "train")
    if options.key_file is not None and not options.resume:
        key.save(options.key_file)
    draft_of(folder / WEIGHTS).unlink(missing_ok=True)  # of a release that was never recorded
    settings = {"workload": workload.name, "examples": examples, "dim": options.dim, "seed": options.seed is not None}
    _same_run(folder / SETTINGS, settings, resume=options.resume)
    ledger_path = folder / "ledger.jsonl"
    problem = dlrm_problem(workload.features, workload.dense_width, examples, dim=options.dim, seed=options.seed or 0)
    with closing(_reopened(ledger_path, key) if options.resume else Ledger(ledger_path)) as ledger:
        return _train(options, workload, plan, spec, key, problem, ledger, folder, prepare)


def _train(
    options: argparse.Namespace,
    workload: Workload,
    plan: Plan,
    spec: PrivacySpec,
    key: NoiseKey,
    problem: Problem,
    ledger: Ledger,
    folder: Path,
    prepare: Callable[[LazyTrainer], object] | None,
) -> int:
    """Train to the end, release, price, and write the folder."""
    recording = options.transcript is not None
    try:
        trainer: LazyTrainer = problem.lazy(spec, key, device=options.device, ledger=ledger, record=recording)
        if prepare is not None:
            prepare(trainer)
        if options.initial_weights and not options.resume:
            tables = {name: table.weights.cpu().numpy() for name, table in trainer.tables.items()}
            dense = {name: parameter.detach().cpu().numpy() for name, parameter in trainer.dense.items()}
            runfolder.write_initial(folder / runfolder.INITIAL_WEIGHTS, tables, dense)
        if options.resume:
            trainer.load_checkpoint(folder / CHECKPOINT)
            _say(f"resumed at step {trainer.step_index}")
    except (LedgerError, ResumeError) as cause:
        raise InputError(f"--resume: {cause}") from cause
    recorder = Recorder(options.transcript, trainer, spec, resume=options.resume) if recording else None
    held_out = test_batch(workload, _LARGEST_TEST)
    every = options.evaluate_every or max(1, plan.steps // 20)
    curves, delays = Curves(), np.zeros(0, dtype=np.int64)
    with tqdm(total=plan.steps, initial=trainer.step_index, unit="step", disable=options.quiet, file=sys.stderr) as bar:
        while trainer.step_index < plan.steps:
            batch = workload.train.batch(np.asarray(trainer.sample()))
            trainer.train_batch(batch)
            if recorder is not None:
                recorder.note()
            done = trainer.step_index
            if len(held_out) and (done % every == 0 or done == plan.steps):
                scores = predict(problem, *settled_copy(trainer), held_out)
                curves.steps.append(done)
                curves.auc.append(auc(held_out.labels, scores))
                curves.loss.append(mean_loss(held_out.labels, scores))
                bar.set_postfix(auc=f"{curves.auc[-1]:.4f}", loss=f"{curves.loss[-1]:.4f}")
            if options.checkpoint_every and done % options.checkpoint_every == 0 and done < plan.steps:
                if recorder is not None:
                    recorder.sync()
                trainer.save_checkpoint(folder / CHECKPOINT)
            bar.update()
    delays = np.concatenate(
        [plan.steps - table.history.cpu().numpy().astype(np.int64) for table in trainer.tables.values()]
    )
    release = trainer.release(write=partial(runfolder.draft_weights, folder / WEIGHTS))
    runfolder.publish_weights(folder / WEIGHTS)
    ledger.close()
    transcript = None if recorder is None else recorder.close(release.ledger_head)
    for private in (CHECKPOINT, SETTINGS):
        (folder / private).unlink(missing_ok=True)
    statement = price(spent(ledger.entries))
    manifest: dict[str, Any] = runfolder.manifest(
        "train",
        workload,
        spec,
        key,
        ledger,
        statement.to_json(),
        options={"device": options.device, "dim": options.dim},
        files=runfolder.digests(folder),
        transcript=transcript,
    )
    runfolder.write_json(folder / "manifest.json", manifest)
    write_report(
        folder / "report.html", manifest, [],
        {"curves": {"lazy": curves}, "delays": delays, "epsilon": epsilon_by_step(spec),
         "skipped_lines": workload.skipped},
    )  # fmt: skip
    if options.json:
        print(json.dumps(manifest, indent=2, sort_keys=True))
    final = f", held-out AUC {curves.auc[-1]:.4f}" if curves.auc else ""
    if curves.auc and not math.isfinite(curves.auc[-1]):
        _say(
            "the scores of the held-out examples are not finite: training diverged. Lower --learning-rate or the noise"
        )
    _say(
        f"released after {release.step} steps{final}; epsilon in [{rounded_down(statement.lower, 4)}, "
        f"{rounded_up(statement.upper, 4)}] at delta {rounded_up(statement.total_delta, 4)}\n{folder / 'report.html'}"
    )
    return 0


def plan_of(options: argparse.Namespace, examples: int) -> Plan:
    """Steps, sampling rate, delta and noise multiplier of a run.

    Raises:
        InputError: the options contradict each other or the data set.
    """
    if not 0 < options.batch_size <= examples:
        raise InputError(f"--batch-size must be in (0, {examples}], the number of examples, got {options.batch_size}")
    if options.steps is not None and options.epochs is not None:
        raise InputError("--steps and --epochs exclude each other")
    rate = options.batch_size / examples
    steps = options.steps
    if steps is None:
        passes = (10.0 if options.epochs is None else options.epochs) / rate
        if passes >= 1 << STEP_BITS:
            raise InputError(f"--epochs {options.epochs:g} is {passes:.3g} steps; a run has fewer than 2^{STEP_BITS}")
        steps = math.ceil(passes)
    if steps < 1:
        raise InputError(f"--steps must be >= 1, got {steps}")
    delta = options.delta if options.delta is not None else examples**-1.1
    if options.noise_multiplier is not None:
        sigma = options.noise_multiplier
    else:
        sigma = calibrate(
            8.0 if options.target_epsilon is None else options.target_epsilon,
            sampling_rate=rate,
            steps=steps,
            delta=delta,
        )
    return Plan(steps, rate, delta, sigma)


def _schedule(name: str, rate: float, steps: int) -> Schedule:
    if name == "constant":
        return Schedule.constant(rate, steps=steps)
    return Schedule.warmup_cosine(rate, steps=steps, warmup=max(1, steps // 50), final=rate / 100)


def _key(options: argparse.Namespace) -> NoiseKey:
    if options.seed is not None:
        return NoiseKey.from_seed(options.seed)
    if options.key_file is None:
        return NoiseKey.from_os()
    return NoiseKey.load(options.key_file) if options.resume else NoiseKey.from_os()


def _check(options: argparse.Namespace) -> None:
    """Refuse what no data set can make right."""
    check_positive("--seed", options.seed, least=0)
    check_positive("--dim", options.dim, least=1)
    check_positive("--checkpoint-every", options.checkpoint_every, least=0)
    check_positive("--evaluate-every", options.evaluate_every, least=0)
    for name in ("batch_size", "clip_norm", "learning_rate", "epochs", "noise_multiplier", "target_epsilon", "delta"):
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"--{name.replace('_', '-')} must be finite and > 0, got {value!r}")
    key_file: Path | None = options.key_file
    if options.resume:
        if not (options.out / CHECKPOINT).is_file():
            raise InputError(f"--resume: there is no checkpoint in {options.out}; name the folder of the run")
    elif key_file is not None and key_file.exists():
        raise InputError(
            f"--key-file {key_file} exists: two runs with one key share their noise, and the difference of their "
            "models shows the data. Name a new file, or --resume the run that the key belongs to"
        )
    out: Path | None = options.out
    if (
        key_file is not None
        and not options.resume
        and out is not None
        and key_file.resolve().is_relative_to(out.resolve())
    ):
        raise InputError(
            f"--key-file {key_file} lies in the run folder {out}, which is made to be shown: whoever holds the key can "
            "strip the noise from the weights beside it. Keep it elsewhere"
        )
    check_transcript(options.transcript, out, resume=options.resume)
    if key_file is not None and not key_file.absolute().parent.is_dir():
        raise InputError(f"--key-file {key_file}: there is no folder {key_file.parent}")


def _reopened(path: Path, key: NoiseKey) -> Ledger:
    """The ledger of the run that goes on.

    Raises:
        InputError: it is damaged, or open elsewhere.
        NoiseKeyError: the key is another run's.
    """
    try:
        ledger = Ledger.reopen(path)
    except LedgerError as cause:
        raise InputError(f"--resume: {cause}") from cause
    if ledger.entries[0].data.get("key_commitment") != key.commitment():
        raise NoiseKeyError(
            f"--resume: the key given is not the key of the run in {path.parent}: rows would pay noise from two "
            "streams. Name the run's own --key-file (or --seed)"
        )
    return ledger


def _same_run(path: Path, record: dict[str, Any], *, resume: bool) -> None:
    """Bind a folder to its workload and model when a run starts; refuse another one when it resumes."""
    if not resume:
        runfolder.write_json(path, record)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise InputError(f"--resume: cannot read {path}, which says what the run trains on: {cause}") from cause
    for name, value in record.items():
        if found.get(name) != value:
            raise InputError(f"--resume: the run in {path.parent} has {name} {found.get(name)!r}, not {value!r}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
