"""The law of an audited run, rebuilt: a PrivacySpec that hashes to what manifest and ledger say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jsonschema
import numpy as np
from jsonschema.exceptions import best_match

from samelaw.contract.errors import InputError, SamelawError
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import Mode, PrivacySpec
from samelaw.equivalence.schemas import schema

LARGEST_RATE = 2.0**40
SMALLEST_EXPONENT, LARGEST_EXPONENT = 120, 40


def spec_of(law: dict[str, Any], rates: Sequence[float], known: Schedule | None) -> PrivacySpec | None:
    """The spec whose JSON is `law`, or None if the schedule cannot be told from the rates that were used.

    A law names its schedule by digest. The whole table stands in a transcript; without one, the ways in which samelaw
    writes schedules are tried on the rates of the ledger's steps.

    Args:
        law: of the ledger's opening entry, in the shape of its schema.
        rates: learning rate of every step in the ledger.
        known: the schedule, where a transcript holds it.

    Raises:
        InputError: no run can have this law.
    """
    described = law["schedule"]
    for schedule in [known] if known is not None else _candidates(described["name"], int(described["steps"]), rates):
        spec = PrivacySpec(
            clip_norm=law["clip_norm"],
            noise_multiplier=law["noise_multiplier"],
            sampling_rate=law["sampling_rate"],
            expected_batch_size=law["expected_batch_size"],
            delta=law["delta"],
            schedule=schedule,
            mode=Mode(law["mode"]),
            rounds=law["rounds"],
            adjacency=law["adjacency"],
        )
        if spec.to_json() == law:
            return spec
    return None


def _candidates(name: str, steps: int, rates: Sequence[float]) -> Iterable[Schedule]:
    """Schedules that give these rates: constant, piecewise constant, or one entry a step."""
    starts = [step for step in range(len(rates)) if step == 0 or rates[step] != rates[step - 1]]
    tables = [(starts, [rates[step] for step in starts])]
    if steps == len(rates):
        tables.append((list(range(steps)), list(rates)))
    for at, values in tables:
        try:
            yield Schedule(tuple(at), tuple(values), steps, name)
        except InputError:
            continue


def check_arithmetic(spec: PrivacySpec) -> None:
    """Refuse a law whose steps leave the range of float32, in which they are computed.

    Raises:
        InputError: a rate or noise scale is too large, or the grid of contributions out of range.
    """
    with np.errstate(over="ignore"):
        rates = np.array([rate / spec.expected_batch_size for rate in spec.schedule.rates]).astype(np.float32)
    if not (np.isfinite(rates).all() and np.isfinite(spec.clock.scales).all() and rates.max() < LARGEST_RATE):
        raise InputError("learning rates or noise scales leave the range of float32")
    if (
        not -SMALLEST_EXPONENT <= spec.contribution_exponent <= LARGEST_EXPONENT
        or spec.clock.scales.max() > LARGEST_RATE
    ):
        raise InputError("the clip norm or the noise is out of the range in which gradients are added up")


def check_law(law: Any) -> str | None:
    """Why no run can have this law, or None."""
    worst = best_match(jsonschema.Draft202012Validator(schema("manifest")["$defs"]["law"]).iter_errors(law))
    if worst is not None:
        return worst.message
    try:
        described = law["schedule"]
        spec_of(law, [1.0], Schedule.constant(1.0, steps=int(described["steps"])))
    except (KeyError, TypeError, ValueError, SamelawError) as cause:
        return f"{type(cause).__name__}: {cause}"
    return None
