"""Does the folder tell one story? Shapes, chain, digests, and ledger against manifest against weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from samelaw.audit.findings import Finding, Verdict, finding, not_assessed
from samelaw.audit.folder import EVIDENCE, INITIAL, LEDGER, PROOFS, WEIGHTS, RunFolder
from samelaw.audit.law import check_arithmetic, check_law, spec_of
from samelaw.contract.errors import AddressError, InputError
from samelaw.contract.ledger import Spent
from samelaw.contract.noise import check_address
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import PrivacySpec

GUESSABLE_SEEDS = 1 << 16


@dataclass(frozen=True)
class Integrity:
    """What the checks found, and the law if it could be rebuilt."""

    findings: list[Finding]
    spec: PrivacySpec | None


def check_integrity(folder: RunFolder, known: Schedule | None) -> Integrity:
    """Every check of the folder against itself.

    Args:
        known: the schedule, where a transcript holds it.
    """
    findings = [_files(folder), _manifest(folder), _ledger(folder), _digests(folder)]
    account = folder.account
    if account is None:
        lacking = "The ledger tells of no run, so this could not be checked."
        return Integrity(
            [*findings, *(not_assessed(c, lacking, required=True) for c in ("I5", "I6", "I7", "K1"))], None
        )
    law, spec = _law(folder, account, known)
    findings += [law, _weights(folder, account), _settled(folder, account), _key_origin(folder, account)]
    return Integrity([*findings, *_own_evidence(folder)], spec)


def _result(check: str, problems: list[str], passed: str, private: Mapping[str, Any] | None = None) -> Finding:
    """PROVED, or REFUTED with the problems: these checks look at everything there is."""
    if problems:
        return finding(check, Verdict.REFUTED, " ".join(problems), private=private or {})
    return finding(check, Verdict.PROVED, passed)


def _files(folder: RunFolder) -> Finding:
    if not folder.strangers:
        return _result("I1", [], "Only the files of a run folder are there, all of them plain.")
    return _result(
        "I1",
        [
            f"{len(folder.strangers)} files are there that no run folder holds; none was opened. "
            "Find out what they are: a checkpoint or a key beside the weights gives the data away."
        ],
        "",
        {"files": folder.strangers},
    )


def _manifest(folder: RunFolder) -> Finding:
    problem = folder.manifest_problem
    return _result(
        "I2",
        [] if problem is None else ["manifest.json does not match its schema."],
        "manifest.json matches samelaw.manifest/1.",
        {"problem": problem},
    )


def _ledger(folder: RunFolder) -> Finding:
    problems: list[str] = []
    if folder.ledger_problem is not None:
        problems.append("The ledger's chain or its order is broken.")
    elif folder.account is not None and not folder.account.releases:
        problems.append("The ledger records no release, yet released weights are there.")
    return _result(
        "I3",
        problems,
        "Every line hashes to what it says, follows the one before it, and the run is told from opening to release.",
        {"problem": folder.ledger_problem},
    )


def _digests(folder: RunFolder) -> Finding:
    bound = folder.manifest.get("files")
    named: dict[str, Any] = bound if type(bound) is dict else {}
    problems = [
        f"{name} is in the folder and not bound by the manifest." for name in sorted(set(folder.digests) - set(named))
    ]
    if set(named) - set(folder.digests):
        problems.append("The manifest binds a file that is not there.")
    problems += [
        f"{name} is not the file that the manifest was made for: its digest differs."
        for name in sorted(set(folder.digests) & set(named))
        if folder.digests[name] != named[name]
    ]
    problems += [f"The manifest binds no {name}." for name in (LEDGER, WEIGHTS) if name not in named]
    stated = folder.manifest.get("ledger")
    if folder.entries and stated != {"head": folder.entries[-1].hash, "entries": len(folder.entries)}:
        problems.append("The ledger does not end where the manifest says.")
    return _result("I4", problems, "All digests agree, and the ledger's last entry is the one that the manifest names.")


def _law(folder: RunFolder, account: Spent, known: Schedule | None) -> tuple[Finding, PrivacySpec | None]:
    """I5, and the law rebuilt."""
    opened, manifest = account.opened, folder.manifest
    problems: list[str] = []
    for name, stated in (("law", opened["law"]), ("law_digest", opened["law_digest"])):
        if manifest.get(name) != stated:
            problems.append(f"Manifest and ledger state a different {name}.")
    key = manifest.get("key")
    if not (type(key) is dict and key.get("commitment") == opened["key_commitment"]):
        problems.append("Manifest and ledger name different keys.")
    impossible = check_law(opened["law"])
    if impossible is not None:
        return _result("I5", [*problems, "No run can have the law in the ledger."], "", {"problem": impossible}), None
    rates = [float(step["lr"]) for step in account.steps]
    try:
        spec = spec_of(opened["law"], rates, known)
        if spec is not None:
            check_arithmetic(spec)
    except InputError as cause:
        return _result("I5", [*problems, "No run can have the law in the ledger."], "", {"problem": str(cause)}), None
    if spec is None:
        named = opened["law"]["schedule"]["name"]
        told = len(rates) == opened["law"]["schedule"]["steps"] and not named.startswith("piecewise(")
        if known is not None or problems or told:  # of a whole run, one entry a step or one for all were tried
            return _result("I5", [*problems, "The law's schedule is not the one that its digest names."], ""), None
        why = "The schedule cannot be told from the ledger's steps alone; --transcript brings it."
        return not_assessed("I5", why, required=True), None
    if spec.digest() != opened["law_digest"]:
        problems.append("The law does not hash to its digest.")
    if len(rates) > spec.schedule.steps:
        problems.append("The ledger has more steps than its law declares.")
    problems += _unlawful(account, spec)
    said = f"The law hashes to its digest; all {len(rates)} steps have its learning rate and its noise."
    return _result("I5", problems, said), spec


def _unlawful(account: Spent, spec: PrivacySpec) -> list[str]:
    """What a step did that the law does not say."""
    noise = spec.noise_multiplier * spec.clip_norm
    problems: list[str] = []
    steps = account.steps[: spec.schedule.steps]
    if any(step["lr"] != spec.schedule.rate(i) for i, step in enumerate(steps)):
        problems.append("A step had another learning rate than the law's schedule gives.")
    if any(step["noise_std"] != noise for step in account.steps):
        problems.append("A step's noise was not noise_multiplier * clip_norm.")
    if any(step["examples"] > account.opened["examples"] for step in account.steps):
        problems.append("A step drew more examples than there are.")
    return problems


def _weights(folder: RunFolder, account: Spent) -> Finding:
    """I6: names, shapes, place in the ledger, and every value finite; initial weights likewise."""
    shapes = {f"{name}.weight": tuple(size[:2]) for name, size in account.opened["tables"].items()}
    shapes |= {name: tuple(size) for name, size in account.opened["dense"].items()}
    padding = [(size[0], size[2]) for size in account.opened["tables"].values() if size[2] is not None]
    problems = ["A padding row lies outside of its table."] if any(not 0 <= row < n for n, row in padding) else []
    if not _addressable(account.opened):
        problems.append("No noise address reaches every weight of the model that the ledger opened with.")
    for file, what in ((folder.weights, WEIGHTS), (folder.initial, INITIAL)):
        if file is None:
            continue
        if {name: tensor.shape for name, tensor in file.tensors.items()} != shapes:
            problems.append(f"{what} does not hold the tables and parameters that the ledger opened with.")
        elif not file.finite():
            problems.append(f"{what} holds values that are not finite.")
    released = [entry for entry in folder.entries if entry.event == "release"]
    expected = {"step": str(released[-1].data["step"]), "ledger_head": released[-1].hash} if released else {}
    if folder.weights.metadata != expected:
        problems.append("The released weights name another step or another ledger entry than the ledger's release.")
    if folder.initial is not None and folder.initial.metadata.get("step") != "0":
        problems.append(f"{INITIAL} does not say that it is of step 0.")
    return _result("I6", problems, "Names, shapes, step and ledger entry agree, and every value is finite.")


def _addressable(opened: Mapping[str, Any]) -> bool:
    """Whether a trainer could have drawn noise for this model; it also bounds the width of a row that is read."""
    try:
        for number, (rows, dim, _) in enumerate(opened["tables"].values()):
            check_address(table=number, largest_row=rows - 1, largest_step=0, dim=dim)
        for number, shape in enumerate(opened["dense"].values()):
            check_address(table=number, largest_row=0, largest_step=0, dim=max(1, math.prod(shape)))
    except AddressError:
        return False
    return True


def _settled(folder: RunFolder, account: Spent) -> Finding:
    """I7: after the last step every row that is no padding row owes that step's noise, so all must have paid."""
    paid: dict[str, int] = dict.fromkeys(account.opened["tables"], 0)
    problems: list[str] = []
    settled = False
    for entry in folder.entries:
        if entry.event in ("step", "resume"):
            paid, settled = dict.fromkeys(paid, 0), False
        elif entry.event == "settle":
            settled = True
            if set(entry.data["rows"]) != set(paid):
                problems.append("A settlement left a table out.")
                break
            for name, rows in entry.data["rows"].items():
                paid[name] += rows
        elif entry.event == "release" and not settled:
            problems.append("Nothing was settled between the last step and the release.")
    owing = {name: size[0] - (size[2] is not None) for name, size in account.opened["tables"].items()}
    expected = owing if account.steps else dict.fromkeys(owing, 0)
    if not problems and paid != expected:
        problems.append("The rows that paid before the release are not all the rows of the model.")
    return _result(
        "I7", problems, "The ledger records that every row of every table paid between last step and release."
    )


def _key_origin(folder: RunFolder, account: Spent) -> Finding:
    """K1 as far as it goes without the key."""
    key: Any = folder.manifest.get("key", {})
    if "seed" in (account.opened["key_origin"], key.get("origin") if type(key) is dict else None):
        return finding(
            "K1",
            Verdict.REFUTED,
            "The run says itself that its key came from a fixed seed: whoever guesses it strips the noise.",
        )
    if guessed_seed(account.opened["key_commitment"], GUESSABLE_SEEDS) is not None:
        return finding(
            "K1", Verdict.REFUTED, "The key is that of a small fixed seed, although the run says that it was drawn."
        )
    return finding(
        "K1",
        Verdict.NOT_REFUTED,
        "The run says that its key was drawn at random, and commits to it.",
        detectable=f"a key made from a seed below {GUESSABLE_SEEDS}",
    )


def guessed_seed(commitment: str, seeds: int) -> int | None:
    """The seed below `seeds` whose key has this commitment, if there is one."""
    for seed in range(seeds):
        key = hashlib.sha256(b"samelaw seed key v1:" + str(seed).encode()).digest()
        if hashlib.sha256(b"samelaw key commitment v1:" + key).hexdigest() == commitment:
            return seed
    return None


def _own_evidence(folder: RunFolder) -> list[Finding]:
    """S6: a verify run that was refuted, or had a fault planted in it, says so itself."""
    if EVIDENCE not in folder.digests and PROOFS not in folder.digests and folder.manifest.get("kind") != "verify":
        return []
    options: Any = folder.manifest.get("options", {})
    fault = options.get("fault") if type(options) is dict else None
    if folder.manifest.get("verdict") != "HOLDS" or fault is not None:
        said = "The run's own evidence refutes a claim, or a fault was planted in it."
        return [finding("S6", Verdict.REFUTED, said)]
    return [finding("S6", Verdict.NOT_REFUTED, "The run says that its claims held.", detectable="what it says itself")]


def finite(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)
