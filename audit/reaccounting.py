"""What the ledger costs, priced anew, against what the manifest promises."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from samelaw.accounting.statement import PrivacyStatement, price
from samelaw.audit.findings import Finding, Verdict, finding, not_assessed
from samelaw.audit.folder import RunFolder
from samelaw.audit.integrity import finite
from samelaw.contract.errors import SamelawError
from samelaw.contract.figures import rounded_down, rounded_up

ROUNDING = 1e-9
"""Relative difference of two runs of one accountant on two machines: elementary functions differ by a few ulps, and the
accountants' own error bounds are far wider."""
_ACCOUNTANTS = ("samelaw", "dp-accounting", "prv-accountant", "numpy", "scipy")


@dataclass(frozen=True)
class Reaccounting:
    """The finding, and the auditor's own statement if the ledger could be priced."""

    finding: Finding
    statement: PrivacyStatement | None


def check_price(folder: RunFolder) -> Reaccounting:
    """Price the ledger, and hold the manifest's statement against it."""
    if folder.account is None:
        return Reaccounting(not_assessed("A1", "The ledger tells of no run to price.", required=True), None)
    try:
        own = price(folder.account)
    except SamelawError as cause:
        said = "The ledger cannot be priced soundly, so no epsilon may be quoted for it."
        return Reaccounting(finding("A1", Verdict.REFUTED, said, private={"problem": str(cause)}), None)
    return Reaccounting(_compare(folder, own), own)


def _compare(folder: RunFolder, own: PrivacyStatement) -> Finding:
    claimed: Any = folder.manifest.get("statement")
    if type(claimed) is not dict or not all(finite(claimed.get(n)) for n in ("lower", "estimate", "upper", "delta")):
        return finding("A1", Verdict.REFUTED, "The manifest states no epsilon.")
    lower, estimate, upper, delta = (float(claimed[n]) for n in ("lower", "estimate", "upper", "delta"))
    found = (
        f"recomputed from the ledger, epsilon lies in [{rounded_down(own.lower, 4)}, {rounded_up(own.upper, 4)}] at "
        f"delta {rounded_up(own.delta, 4)}"
    )
    if delta != own.delta:
        return finding("A1", Verdict.REFUTED, f"The manifest quotes epsilon at another delta than the law's; {found}.")
    if not lower <= estimate <= upper:
        return finding("A1", Verdict.REFUTED, f"The manifest's interval is none; {found}.")
    differs = _other_mechanism(claimed, own)
    if differs:
        return finding("A1", Verdict.REFUTED, f"The manifest priced another {differs} than the ledger's; {found}.")
    total: Any = claimed.get("total_delta")
    # The generator's share grows with e^epsilon, which other versions of the accountants round otherwise.
    slack = ROUNDING if _same_versions(folder) else 0.01
    if not finite(total) or float(total) < own.total_delta * (1 - slack):
        return finding(
            "A1",
            Verdict.REFUTED,
            "The manifest's total delta leaves out what the noise generator adds: it is "
            f"{rounded_up(own.total_delta, 4)}; {found}.",
        )
    if upper < own.upper * (1 - ROUNDING):
        promised = f"The manifest promises epsilon {rounded_up(upper, 4)}; {found}"
        if upper < own.lower or _same_versions(folder):
            return finding("A1", Verdict.REFUTED, f"{promised}: the promise is too low.")
        return not_assessed("A1", f"{promised}, with other versions of the accountants.", required=True)
    return finding(
        "A1",
        Verdict.EQUIVALENT,
        f"The manifest promises epsilon {rounded_up(upper, 4)}; {found}.",
        detectable="a promise below the upper end by more than 1e-9 of it",
    )


def _other_mechanism(claimed: dict[str, Any], own: PrivacyStatement) -> str:
    """What the manifest's statement was about, where it was about something else."""
    mechanism = claimed.get("mechanism")
    if type(mechanism) is not dict:
        return "mechanism"
    if claimed.get("adjacency") != own.adjacency:
        return "adjacency"
    for name in ("sampling_rate", "noise_multiplier", "steps"):
        if mechanism.get(name) != getattr(own.mechanism, name):
            return name.replace("_", " ")
    return ""


def _same_versions(folder: RunFolder) -> bool:
    """Whether the run was priced with the versions that are installed here."""
    environment: Any = folder.manifest.get("environment", {})

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    return type(environment) is dict and all(environment.get(n) == installed(n) for n in _ACCOUNTANTS)
