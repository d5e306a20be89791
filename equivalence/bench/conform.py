"""One trainer on the bench: which runs it is asked for, and the claims that they allow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from samelaw.contract.bench import Abilities
from samelaw.contract.entry import as_count
from samelaw.contract.errors import InputError
from samelaw.contract.evidence import Evidence
from samelaw.equivalence import laws
from samelaw.equivalence.bench.claims import Draft, judged
from samelaw.equivalence.bench.conduct import Failure, Kind, Outcome, Runner, Weights
from samelaw.equivalence.bench.input_claims import INEXACT, SmallRun, input_claims, runs_claim
from samelaw.equivalence.bench.noise_claims import Ran, noise_claims
from samelaw.equivalence.bench.problems import (
    HISTORY_DROPS,
    Job,
    empty_job,
    history_job,
    law_job,
    padded_job,
    small_inputs,
    small_job,
)

RUNS = 8
FEWEST_RUNS = 2
PATIENCE = 2
"""Runs that may hang before the bench stops asking."""
_GIVEN_UP = Failure(Kind.TIMED_OUT, "the start", f"not asked for, since {PATIENCE} runs before it hung")

Twin = Callable[[Job], Weights]
"""What the reference releases for a job, with the key of the job's seed."""


def conform(
    run: Runner,
    abilities: Abilities,
    *,
    runs: int = RUNS,
    seed: int = 0,
    false_alarm: float = laws.FALSE_ALARM,
    twin: Twin | None = None,
    done: Callable[[Job], object] = lambda _: None,
) -> list[Evidence]:
    """Everything that can be said of a trainer from outside.

    Args:
        run: carries out a job.
        abilities: what the trainer declares.
        runs: repetitions of the runs whose noise is judged, each with a seed of its own.
        seed: decides the seeds that the trainer is handed.
        false_alarm: probability, over all claims together, of refuting a correct trainer.
        twin: the reference, for a trainer with keyed noise.
        done: called after every job.

    Raises:
        InputError: what the trainer returns is not what the protocol asks for.
    """
    as_count("runs", runs, "conform", least=FEWEST_RUNS)
    if not 0 < false_alarm <= 0.01:
        raise InputError(f"false_alarm must be in (0, 0.01], got {false_alarm!r} in conform")
    seeds = iter(_seeds(seed))
    ran: list[Ran] = []

    def carry_out(jobs: Iterable[Job]) -> list[Ran]:
        """Runs of one kind; after a failure the rest of the kind would fail alike, and is not asked for."""
        found: list[Ran] = []
        for job in jobs:
            hung = sum(o.failure is not None and o.failure.kind is Kind.TIMED_OUT for _, o in ran)
            found.append((job, run(job) if hung < PATIENCE else Outcome(failure=_GIVEN_UP)))
            done(job)
            if found[-1][1].failure is not None:
                break
        ran.extend(found)
        return found

    cases = small_inputs(abilities)
    several = [c.without(i) for c in cases if len(c.examples) > 1 for i in range(len(c.examples))]
    alone = [(case, *carry_out([small_job(case, abilities, next(seeds))])[0]) for case in cases]
    fewer = [(case, *carry_out([small_job(case, abilities, next(seeds))])[0]) for case in several]
    drops = (None, *HISTORY_DROPS)
    histories = carry_out(history_job(abilities, next(seeds), drop=drop) for drop in drops)
    long = carry_out(law_job(abilities, next(seeds)) for _ in range(runs))
    single = carry_out(law_job(abilities, next(seeds), steps=1, name="the noise of one step") for _ in range(runs))
    noisy = carry_out([padded_job(abilities, next(seeds))]) if abilities.padding else []
    empty = carry_out(empty_job(abilities, next(seeds)) for _ in range(runs)) if abilities.empty_batches else []
    after = (
        carry_out(empty_job(abilities, next(seeds), after_reads=True) for _ in range(runs))
        if abilities.empty_batches
        else []
    )
    drafts = [
        runs_claim(ran, [*alone, *fewer]),
        *input_claims(abilities, alone, fewer, histories, noisy),
        *noise_claims(abilities, long, single, empty, after),
        _keyed(abilities, [*ran], twin),
    ]
    drafts.sort(key=lambda draft: (draft.claim[0], int(draft.claim[1:])))
    return judged(drafts, false_alarm)


def jobs_asked_for(abilities: Abilities, runs: int) -> int:
    """How many jobs `conform` carries out if none fails."""
    cases = small_inputs(abilities)
    neighbours = sum(len(case.examples) for case in cases if len(case.examples) > 1)
    quiet = len(cases) + neighbours + 1 + len(HISTORY_DROPS)
    return quiet + abilities.padding + runs * (4 if abilities.empty_batches else 2)


def _keyed(abilities: Abilities, ran: Sequence[Ran], twin: Twin | None) -> Draft:
    """E1: tables to the bit. Dense sums have no common order, so dense parameters may differ by rounding."""
    draft = Draft("E1", f"released weights of {len(ran)} runs", exact=True)
    if abilities.noise != "keyed" or twin is None:
        draft.open = "The trainer draws its own noise: its law is judged from repeated runs, not its bits."
        return draft
    values = 0
    for job, outcome in ran:
        if outcome.release is None:
            continue
        expected = twin(job)
        rates = [batch.learning_rate * len(batch) for batch in job.batches]
        rounding = INEXACT * job.problem.clip_norm * sum(rates) / job.problem.expected_batch_size + 2.0**-20
        for name, found in outcome.release.items():
            values += found.size
            if name in job.problem.tables:
                differ = np.argwhere(expected[name].view(np.uint32) != found.view(np.uint32))
            else:
                differ = np.argwhere(~(np.abs(expected[name] - found) <= rounding))
            if len(differ):
                place = tuple(int(i) for i in differ[0])
                draft.fail(
                    f"{job.name}, seed {job.seed}, {name!r} at {list(place)}",
                    f"{expected[name][place]!r}",
                    f"{found[place]!r}; {len(differ)} of {found.size} values differ",
                )
    if not values:
        draft.open = "No run came to an end (see B1)."
    draft.found = f"Of {values:,} released values none differs: tables to the bit, dense parameters to rounding."
    draft.numbers["values"] = values
    return draft


def _seeds(seed: int) -> range:
    """Consecutive 32-bit seeds from a start that two neighbouring seeds do not share."""
    as_count("seed", seed, "conform", least=0)
    start = int(np.random.SeedSequence(seed).generate_state(1)[0]) % (2**32 - 2**20)
    return range(start, start + 2**20)


__all__ = ["FEWEST_RUNS", "RUNS", "Outcome", "SmallRun", "Twin", "conform", "jobs_asked_for"]
