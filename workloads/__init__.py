"""Real data sets and synthetic traces, as batches of lookups. Vocabularies are declared, never counted in the data."""

from __future__ import annotations

from pathlib import Path

from samelaw.contract.errors import InputError
from samelaw.workloads.base import Dataset, DatasetUnavailable, Workload
from samelaw.workloads.criteo import load_criteo
from samelaw.workloads.insteval import load_insteval
from samelaw.workloads.movielens import load_movielens
from samelaw.workloads.synthetic import VERIFY_SCALE, ReadLaw, make_synthetic

__all__ = [
    "VERIFY_SCALE",
    "Dataset",
    "DatasetUnavailable",
    "Workload",
    "available",
    "load",
]

_DESCRIPTIONS = {
    "movielens-100k": "100,000 ratings of 1,682 films by 943 people; fetched once with pip, research use only",
    "insteval": "73,421 ratings of lectures by students; fetched once with pip",
    "criteo": "click logs in Criteo's TSV format, plain or .gz, from a path of yours",
    "zipf": "synthetic clicks, MLPerf DLRM table sizes, rows read by Zipf's law",
    "uniform": "synthetic clicks, MLPerf DLRM table sizes, rows read uniformly",
}


def available() -> list[tuple[str, str]]:
    """Name and one line about each workload, the default first."""
    return list(_DESCRIPTIONS.items())


def load(
    name: str,
    *,
    scale: float = 1.0,
    path: str | Path | None = None,
    skip_bad_lines: bool = False,
    seed: int = 0,
    cache: str | Path | None = None,
) -> Workload:
    """Load a workload by name.

    Args:
        name: one of `available()`.
        scale: factor on the declared table sizes of criteo, zipf and uniform; MovieLens and InstEval have fixed sizes.
        path: criteo: the file; movielens-100k and insteval: a copy of one's own, see their modules.
        skip_bad_lines: skip and count malformed lines (in the notes) instead of raising.
        seed: of the synthetic workloads; real data ignores it.
        cache: folder for fetched data; default SAMELAW_CACHE, else samelaw/ in the user's cache folder.

    Raises:
        DatasetUnavailable: the data is not in the cache and cannot be fetched.
        DataError: the data is missing, damaged or malformed; the message says where.
        InputError: an argument is out of range or does not apply to this workload.
    """
    if name not in _DESCRIPTIONS:
        raise InputError(f"workload must be one of {', '.join(_DESCRIPTIONS)}, got {name!r}")
    fixed_size = name in ("movielens-100k", "insteval")
    if not scale > 0 or (fixed_size and scale != 1.0):
        requirement = "1, for its tables have fixed sizes," if fixed_size else "> 0"
        raise InputError(f"scale must be {requirement} got {scale!r} for workload {name!r}")
    if name == "movielens-100k":
        return load_movielens(path=path, skip_bad_lines=skip_bad_lines, cache=cache)
    if name == "insteval":
        return load_insteval(path=path, skip_bad_lines=skip_bad_lines, cache=cache)
    if name == "criteo":
        return load_criteo(path=path, scale=scale, skip_bad_lines=skip_bad_lines)
    if path is not None:
        raise InputError(f"workload {name!r} is synthetic and takes no path, got {str(path)!r}")
    return make_synthetic(ReadLaw(name), scale=scale, seed=seed)
