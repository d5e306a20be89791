"""Claims about MovieLens-100k, on tiny files that these tests write in its format."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from samelaw.contract.errors import DataError
from samelaw.contract.trace import Pooling
from samelaw.workloads import fetch, load, movielens
from samelaw.workloads.hashing import held_out, text_bucket
from samelaw.workloads.movielens import FOLDER, HEADERS, SALT, parse

USER_LINES = [
    "1\t24\tM\ttechnician\t85711",
    "2\t53\tF\tother\t94043",
    "943\t100\tM\twriter\tT8H1N",
]
FILM_LINES = [
    "1\tToy Story\t1995\tAnimation Children's Comedy",
    "2\tThe Good, The Bad and The Ugly\t1966\tAction Western",
    "3\tunkonwn\tunkonwn\tunknown",
    "1682\tIl \x85 Postino\tV\t",
]
RATING_LINES = [
    f"{user}\t{film}\t{1 + (user + film) % 5}\t{881250949 + user}" for user in (1, 2, 943) for film in (1, 2, 3, 1682)
]


def texts(**replaced: list[str]) -> dict[str, str]:
    bodies = {"user": USER_LINES, "item": FILM_LINES, "inter": RATING_LINES} | replaced
    return {f"ml-100k.{part}": "\n".join([HEADERS[f"ml-100k.{part}"], *lines]) + "\n" for part, lines in bodies.items()}


def every_example() -> dict[tuple[int, int], dict[str, object]]:
    """What the workload holds for each (user, film), train and test together."""
    workload = parse(texts())
    found: dict[tuple[int, int], dict[str, object]] = {}
    for part in (workload.train, workload.test):
        batch = part.batch(np.arange(len(part)))
        for i in range(len(batch)):
            bags = {
                feature.name: bag.ids[bag.offsets[i] : bag.offsets[i + 1]].tolist()
                for feature, bag in zip(workload.features, batch.features, strict=True)
            }
            key = (bags["user"][0] + 1, bags["film"][0] + 1)
            found[key] = {"dense": batch.dense[i], "label": batch.labels[i], **bags}
    return found


def test_every_rating_becomes_one_example_with_the_facts_of_its_user_and_film() -> None:
    found = every_example()
    assert len(found) == len(RATING_LINES)
    example = found[(2, 2)]
    assert example["label"] == 1.0  # five stars
    assert example["gender"] == [0]
    assert example["occupation"] == [13]
    assert example["genres"] == [1, 18]
    assert example["zip_code"] == [text_bucket("94043", buckets=4096, salt="movielens-100k zip")]
    assert example["zip_area"] == [text_bucket("940", buckets=4096, salt="movielens-100k zip area")]
    words = [
        text_bucket(word, buckets=1024, salt="movielens-100k word")
        for word in ("the", "good", "the", "bad", "and", "the", "ugly")
    ]
    assert example["title"] == words  # three times the same row in one bag
    moment = 2 * (881250951 - 873072000) / (893980800 - 873072000) - 1
    assert np.allclose(example["dense"], [0.06, 0.32, 1.0, moment], atol=1e-6)  # float32 of numbers near 1


def test_what_is_not_known_of_a_film_is_a_zero_and_an_empty_bag() -> None:
    example = every_example()[(943, 1682)]
    assert example["genres"] == []
    assert example["dense"][1:3].tolist() == [0.0, 0.0]
    assert every_example()[(1, 3)]["genres"] == [0]


def test_vocabularies_are_declared_not_counted() -> None:
    rows = {feature.name: feature.rows for feature in parse(texts()).features}
    assert rows == {
        "user": 943,
        "film": 1682,
        "gender": 2,
        "occupation": 21,
        "zip_code": 4096,
        "zip_area": 4096,
        "genres": 19,
        "title": 1024,
    }
    features = {feature.name: feature for feature in parse(texts()).features}
    assert features["zip_code"].table == features["zip_area"].table
    assert features["genres"].pooling is Pooling.MEAN


def test_the_split_is_a_function_of_each_rating_alone() -> None:
    workload = parse(texts())
    user, film = (workload.test.features[i][0] + 1 for i in (0, 1))
    assert len(workload.test) > 0
    assert held_out(user, film, salt=SALT).all()
    fewer = parse(texts(inter=RATING_LINES[1:]))
    assert len(workload.train) + len(workload.test) - 1 == len(fewer.train) + len(fewer.test)


@pytest.mark.parametrize(
    ("part", "line", "place", "problem"),
    [
        ("inter", "1\t1\t3", "ml-100k.inter, line 4", "a line must have 4 columns"),
        ("inter", "944\t1\t3\t9", "ml-100k.inter, line 4", r"user_id must be in 1\.\.943, got 944"),
        ("inter", "1\t0\t3\t9", "ml-100k.inter, line 4", r"item_id must be in 1\.\.1682, got 0"),
        ("inter", "1\t1\t6\t9", "ml-100k.inter, line 4", r"rating must be in 1\.\.5, got 6"),
        ("inter", "1\t1\tgood\t9", "ml-100k.inter, line 4", "rating must be an integer, got 'good'"),
        ("inter", "1_0\t1\t3\t9", "ml-100k.inter, line 4", "user_id must be an integer, got '1_0'"),
        ("inter", "7\t1\t3\t9", "ml-100k.inter, line 4", "user_id must have a line in ml-100k.user, got 7"),
        ("inter", "1\t9\t3\t9", "ml-100k.inter, line 4", "item_id must have a line in ml-100k.item, got 9"),
        ("inter", "", "ml-100k.inter, line 4", "a line must have 4 columns"),
        ("user", "5\t999\tM\twriter\t1", "ml-100k.user, line 4", r"age must be in 0\.\.100, got 999"),
        ("user", "5\t20\tX\twriter\t1", "ml-100k.user, line 4", "gender must be one of F, M, got 'X'"),
        ("user", "5\t20\tM\tpilot\t1", "ml-100k.user, line 4", "occupation must be one of .*, got 'pilot'"),
        ("user", "1\t20\tM\twriter\t1", "ml-100k.user, line 4", "user_id must appear once, got 1"),
        ("item", "5\tA\t199\tDrama", "ml-100k.item, line 4", r"release_year must be in 1900\.\.2000, got 199"),
        ("item", "5\tA\t1999\tOpera", "ml-100k.item, line 4", "class must be one of .*, got 'Opera'"),
    ],
)
def test_a_bad_line_is_refused_with_its_place_or_skipped_and_counted(
    part: str, line: str, place: str, problem: str
) -> None:
    lines = {"user": USER_LINES, "item": FILM_LINES, "inter": RATING_LINES}[part]
    damaged = texts(**{part: [*lines[:2], line, *lines[2:]]})
    with pytest.raises(DataError, match=f"{place}: {problem}.*skip_bad_lines"):
        parse(damaged)
    skipped = parse(damaged, skip_bad_lines=True)
    assert skipped.skipped == {f"ml-100k.{part}": 1}
    assert len(skipped.train) + len(skipped.test) == len(RATING_LINES)


def test_ratings_of_a_skipped_user_are_skipped_and_counted_too() -> None:
    damaged = texts(user=["1\t24\tM\tpilot\t85711", *USER_LINES[1:]])
    assert parse(damaged, skip_bad_lines=True).skipped == {"ml-100k.user": 1, "ml-100k.inter": 4}


def test_another_header_is_refused() -> None:
    damaged = texts() | {"ml-100k.user": "user,age\n1,2\n"}
    with pytest.raises(DataError, match=r"ml-100k\.user, line 1: the header must be .*, got 'user,age'"):
        parse(damaged, skip_bad_lines=True)


def test_a_file_of_bad_lines_only_is_refused_even_when_skipping() -> None:
    with pytest.raises(DataError, match="0 examples leave 0 to train on"):
        parse(texts(inter=["x"] * 5), skip_bad_lines=True)


def test_loads_from_a_folder_and_from_a_pinned_wheel_and_refuses_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in texts().items():
        (tmp_path / name).write_bytes(text.replace("\n", "\r\n").encode() if name.endswith("inter") else text.encode())
    from_folder = load("movielens-100k", path=tmp_path, cache=tmp_path / "cache")
    wheel_path = tmp_path / "data.whl"
    with zipfile.ZipFile(wheel_path, "w") as archive:
        for name, text in texts().items():
            archive.writestr(FOLDER + name, text)
    with pytest.raises(DataError, match="must have SHA-256 9c9948202011"):
        load("movielens-100k", path=wheel_path, cache=tmp_path / "cache")
    pin = fetch.Wheel("recbole", "1.2.1", "data.whl", hashlib.sha256(wheel_path.read_bytes()).hexdigest())
    monkeypatch.setattr(movielens, "WHEEL", pin)
    from_wheel = load("movielens-100k", path=wheel_path, cache=tmp_path / "cache")
    for one, other in zip(from_folder.train.features, from_wheel.train.features, strict=True):
        assert one[0].tolist() == other[0].tolist()
    assert json.loads(json.dumps(from_wheel.notes)) == from_wheel.notes
    assert "no redistribution" in from_wheel.licence
    (tmp_path / "ml-100k.user").unlink()
    with pytest.raises(DataError, match=r"cannot read .*ml-100k\.user.*A MovieLens folder holds"):
        load("movielens-100k", path=tmp_path, cache=tmp_path / "cache")
