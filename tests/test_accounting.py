"""What is priced is what the ledger says happened; what cannot be priced soundly is refused."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samelaw.accounting import engines, pld
from samelaw.accounting.engines import evaluate
from samelaw.accounting.interval import Unavailable
from samelaw.accounting.mechanism import ROUNDING, SampledGaussian, applied_multiplier, mechanism_of
from samelaw.accounting.statement import calibrate, epsilon_by_step, price, state
from samelaw.contract.errors import InputError, LedgerError, PrivacyError
from samelaw.contract.ledger import Ledger, Spent, read_ledger, spent
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import PrivacySpec

STEPS = 40


def law(**changes: Any) -> PrivacySpec:
    fields: dict[str, Any] = {
        "clip_norm": 0.7,
        "noise_multiplier": 1.1,
        "sampling_rate": 0.05,
        "expected_batch_size": 50.0,
        "delta": 1e-5,
        "schedule": Schedule.constant(0.1, steps=STEPS),
    }
    return PrivacySpec(**(fields | changes))


def opening(spec: PrivacySpec, **changes: Any) -> dict[str, Any]:
    return {
        "law": spec.to_json(),
        "law_digest": spec.digest(),
        "key_commitment": "0" * 64,
        "key_origin": "os",
        "tables": {"tables.user": [100, 8, None]},
        "dense": {},
        "examples": 1000,
        **changes,
    }


def step(spec: PrivacySpec, index: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": index,
        "examples": 50,
        "lr": spec.schedule.rate(index),
        "noise_std": spec.noise_multiplier * spec.clip_norm,
        "sampler": "keyed-poisson",
        **changes,
    }


def run(spec: PrivacySpec, steps: int = STEPS, *, path: Path | None = None, **changes: Any) -> Ledger:
    """A ledger as a trainer writes it; `changes` go into the last step."""
    ledger = Ledger(path)
    ledger.append("open", opening(spec))
    for index in range(steps):
        ledger.append("step", step(spec, index, **(changes if index == steps - 1 else {})))
    ledger.append("settle", {"through": steps})
    ledger.append("release", {"step": steps})
    return ledger


def account(ledger: Ledger) -> Spent:
    return spent(ledger.entries)


# -------------------------------------------------------------------------------------------------- what happened


def test_a_run_is_priced_as_the_ledger_says_not_as_it_was_declared(tmp_path: Path):
    """31 of the 40 declared steps were run, so 31 are charged; the ledger is read back from disk."""
    run(law(), 31, path=tmp_path / "ledger.jsonl").close()
    found = price(spent(read_ledger(tmp_path / "ledger.jsonl")))
    assert found.mechanism.steps == 31
    assert found.delta == 1e-5
    expected = evaluate(SampledGaussian(0.05, found.mechanism.noise_multiplier, 31), 1e-5).interval
    assert (found.lower, found.estimate, found.upper) == (expected.lower, expected.estimate, expected.upper)
    declared = state(SampledGaussian(0.05, 1.1, STEPS), 1e-5)
    assert found.upper < declared.lower
    assert 1.1 * (1 - ROUNDING) <= found.mechanism.noise_multiplier <= 1.1


def test_a_resumed_step_is_charged_once():
    spec = law()
    ledger = Ledger()
    ledger.append("open", opening(spec))
    for index in range(20):
        ledger.append("step", step(spec, index))
    ledger.append("resume", {"step": 15})
    for index in range(15, 30):
        ledger.append("step", step(spec, index))
    found = price(account(ledger))
    assert found.mechanism.steps == 30
    assert any("resumed once" in caveat for caveat in found.caveats)


def test_no_step_costs_nothing():
    found = price(account(run(law(), 0)))
    assert (found.lower, found.estimate, found.upper) == (0.0, 0.0, 0.0)


def test_full_batches_and_single_steps_are_exact():
    for spec, steps in ((law(sampling_rate=1.0), 9), (law(), 1)):
        found = price(account(run(spec, steps)))
        assert found.engine == "closed form"
        assert found.upper - found.lower < 1e-7


def test_an_empty_batch_and_a_step_at_rate_zero_are_charged_like_any_other():
    full = price(account(run(law()))).upper
    assert price(account(run(law(), examples=0))).upper == full
    idle = law(schedule=Schedule.piecewise([STEPS // 2], [0.1, 0.0], steps=STEPS))
    assert price(account(run(idle))).upper == full


def test_epsilon_may_be_quoted_at_another_delta():
    strict, loose = (price(account(run(law())), delta=delta) for delta in (1e-8, 1e-3))
    assert strict.upper > loose.upper
    with pytest.raises(InputError, match="delta"):
        price(account(run(law())), delta=1.5)


def test_a_fixed_seed_and_a_useless_delta_are_said():
    ledger = Ledger()
    ledger.append("open", opening(law(delta=0.01), key_origin="seed", examples=1000))
    ledger.append("step", step(law(), 0))
    caveats = " ".join(price(account(ledger)).caveats)
    assert "fixed seed" in caveats
    assert "well below 1 / examples" in caveats
    assert price(account(run(law()))).caveats == ()


def test_the_statement_says_what_it_assumes_and_what_it_leaves_out_and_is_json():
    found = price(account(run(law())))
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert {"lower", "estimate", "upper", "delta", "second_opinion", "engine", "reason"} <= set(record)
    assert record["mechanism"] == {
        "sampling_rate": 0.05,
        "noise_multiplier": found.mechanism.noise_multiplier,
        "steps": STEPS,
    }
    assert record["adjacency"] == "add_remove"
    assert any("add/remove" in text for text in record["assumptions"])
    assert any("noise generator" in text for text in record["not_included"])
    assert found.lower <= found.estimate <= found.upper
    assert found.second_opinion is not None
    assert found.lower <= found.second_opinion <= found.upper * 1.01
    assert "add/remove" in str(found)


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sampler": "external"}, "keyed-poisson"),
        ({"sampler": "shuffled"}, "keyed-poisson"),
        ({"noise_std": 0.5}, "noise"),
        ({"noise_std": 1.1 * 0.7 * (1 + 1e-15)}, "noise"),
        ({"noise_std": 0.0}, "noise"),
        ({"noise_std": math.nan}, "noise"),
        ({"lr": 1.2e-43}, "float32"),
        ({"lr": 1e300}, "float32"),
        ({"lr": math.nan}, "float32"),
    ],
)
def test_a_step_that_cannot_be_priced_is_refused(changes: dict[str, Any], reason: str):
    clean = run(law())
    bad = Spent(clean.entries[0].data, [step(law(), 0), step(law(), 1, **changes)], [], 0)
    with pytest.raises(PrivacyError, match=reason):
        price(bad)


def test_a_run_without_noise_has_infinite_epsilon_and_no_price():
    with pytest.raises(PrivacyError, match="infinite"):
        price(account(run(law(noise_multiplier=0.0))))


def test_more_steps_than_declared_are_refused():
    spec = law()
    steps = [step(spec, min(index, STEPS - 1)) for index in range(STEPS + 1)]
    with pytest.raises(PrivacyError, match="declares 40"):
        price(Spent(opening(spec), steps, [], 0))


@pytest.mark.parametrize(
    "damage",
    [
        lambda o: o.pop("law"),
        lambda o: o.pop("law_digest"),
        lambda o: o.pop("examples"),
        lambda o: o["law"].update(noise_multiplier=9.9),
        lambda o: o["law"].update(sampling_rate=1e-9),
        lambda o: o.update(law=[1, 2]),
        lambda o: o.update(law="x"),
    ],
)
def test_a_damaged_opening_is_refused(damage: Callable[[dict[str, Any]], None]):
    spec = law()
    opened = opening(spec)
    damage(opened)
    with pytest.raises(PrivacyError):
        price(Spent(opened, [step(spec, 0)], [], 0))


@pytest.mark.parametrize("missing", ["sampler", "noise_std", "lr"])
def test_a_step_that_lacks_a_value_is_refused(missing: str):
    spec = law()
    incomplete = step(spec, 0)
    del incomplete[missing]
    with pytest.raises(LedgerError, match=missing):
        price(Spent(opening(spec), [incomplete], [], 0))


def test_a_law_that_hashes_right_but_makes_no_sense_is_refused():
    import hashlib

    for change in (
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.5},
        {"clip_norm": -1.0},
        {"expected_batch_size": 0.0},
        {"adjacency": "replace_one"},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": "much"},
    ):
        changed = law().to_json() | change
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        opened = opening(law(), law=changed, law_digest=digest)
        with pytest.raises(PrivacyError):
            price(Spent(opened, [step(law(), 0)], [], 0))


def test_accountants_that_contradict_each_other_are_not_quoted(monkeypatch: pytest.MonkeyPatch):
    def too_low(*args: Any, **options: Any) -> float:
        return 0.01

    monkeypatch.setattr(pld, "pld_epsilon", too_low)
    with pytest.raises(PrivacyError, match="contradict"):
        evaluate(SampledGaussian(0.05, 1.1, STEPS), 1e-5)


def test_without_prv_accountant_the_bounds_of_pld_are_quoted(monkeypatch: pytest.MonkeyPatch):
    mechanism = SampledGaussian(0.05, 1.1, STEPS)
    before = evaluate(mechanism, 1e-5).interval
    assert before.engine == "contour"
    monkeypatch.setattr(engines, "contour_interval", lambda *a, **k: Unavailable("contour", "out of paper"))
    gridded = evaluate(mechanism, 1e-5)
    assert gridded.interval.engine.startswith("prv-accountant")
    assert "out of paper" in gridded.reason
    assert gridded.interval.lower <= before.estimate <= gridded.interval.upper
    monkeypatch.setattr(engines.prv, "prv_interval", lambda *a, **k: Unavailable("prv-accountant", "not today"))
    found = evaluate(mechanism, 1e-5)
    assert found.interval.engine == pld.engine()
    assert "not today" in found.reason
    assert found.interval.lower <= before.estimate <= found.interval.upper
    assert found.interval.upper < before.estimate * 1.01
    assert found.interval.lower > before.estimate * 0.98
    monkeypatch.setattr(pld, "pld_epsilon", lambda *a, **k: Unavailable("PLD", "nor this"))
    bare = evaluate(mechanism, 1e-5)
    assert bare.interval.engine == "RDP"
    assert bare.interval.upper == bare.renyi >= before.estimate
    assert 0 < bare.interval.lower <= before.estimate
    assert state(mechanism, 1e-5).second_opinion is None


# --------------------------------------------------------------------------------------------- float32 and the
# multiplier


@settings(max_examples=300, deadline=None)
@given(
    rate=st.floats(1e-20, 1e10),
    sigma=st.floats(0.1, 50),
    clip_norm=st.floats(1e-3, 1e3),
    batch=st.floats(1, 1e6),
)
def test_the_applied_multiplier_is_that_of_the_two_rounded_scales(
    rate: float, sigma: float, clip_norm: float, batch: float
):
    found = applied_multiplier(rate, sigma * clip_norm, clip_norm, batch, where="here")
    gradient, noise = np.float32(rate / batch), np.float32(rate * (sigma * clip_norm / batch))
    # Two roundings to float32, 2^-24 each, and a few of 2^-53 in this comparison and in forming sigma * clip_norm.
    assert abs(found / sigma - 1) <= 2.0**-23 + 2.0**-50
    assert found <= float(noise) / (float(gradient) * clip_norm)


def test_the_smallest_multiplier_of_the_run_is_priced():
    spec = law(schedule=Schedule.warmup_cosine(0.1, steps=STEPS, warmup=5))
    found = mechanism_of(account(run(spec))).mechanism.noise_multiplier
    each = [
        applied_multiplier(spec.schedule.rate(t), 1.1 * 0.7, 0.7, spec.expected_batch_size, where="")
        for t in range(STEPS)
    ]
    assert found == min(each) <= 1.1


# ---------------------------------------------------------------------------------------------- the curve, calibration


def test_epsilon_by_step_brackets_the_statements_of_its_steps():
    spec = law()
    ledger = account(run(spec))
    curve = epsilon_by_step(ledger)
    assert curve == epsilon_by_step(mechanism_of(ledger).mechanism, delta=spec.delta)
    assert [p.step for p in curve] == sorted({p.step for p in curve})
    assert (curve[0].step, curve[-1].step) == (1, STEPS)
    assert 8 <= len(curve) <= 12
    for point in curve:
        assert 0 <= point.lower <= point.estimate <= point.upper
        whole = evaluate(mechanism_of(ledger).mechanism.through(point.step), spec.delta).interval
        assert max(point.lower, whole.lower) <= min(point.upper, whole.upper)
        assert point.estimate == pytest.approx(whole.estimate, abs=0.02)
    assert all(a.estimate <= b.estimate for a, b in itertools.pairwise(curve))


def test_epsilon_by_step_takes_a_law_that_was_not_run():
    curve = epsilon_by_step(law())
    assert curve[-1].step == STEPS
    assert curve[-1].upper == pytest.approx(state(SampledGaussian(0.05, 1.1, STEPS), 1e-5).upper, rel=0.1)
    assert epsilon_by_step(SampledGaussian(0.05, 1.1, 0), delta=1e-5) == []
    with pytest.raises(InputError, match="delta"):
        epsilon_by_step(SampledGaussian(0.05, 1.1, 3))


@pytest.mark.parametrize(
    ("target", "q", "steps", "delta"),
    [(8.0, 0.05, 60, 1e-5), (1.0, 0.02, 300, 1e-6), (3.0, 1.0, 10, 1e-5), (0.3, 0.1, 1, 1e-4)],
)
def test_a_calibrated_run_costs_at_most_its_target_and_little_less(target: float, q: float, steps: int, delta: float):
    sigma = calibrate(target, sampling_rate=q, steps=steps, delta=delta)
    spec = law(noise_multiplier=sigma, sampling_rate=q, delta=delta, schedule=Schedule.constant(0.1, steps=steps))
    found = price(account(run(spec, steps)))
    assert found.upper <= target
    assert found.upper >= 0.97 * target
    assert float(f"{sigma:.4g}") == sigma


def test_an_unreachable_target_is_refused():
    for target in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="target_epsilon"):
            calibrate(target, sampling_rate=0.1, steps=10, delta=1e-5)
    with pytest.raises(InputError, match="no noise multiplier"):
        calibrate(1e-9, sampling_rate=1.0, steps=1_000_000, delta=1e-12)
    with pytest.raises(InputError, match="steps"):
        calibrate(1.0, sampling_rate=0.1, steps=0, delta=1e-5)
