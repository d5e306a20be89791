"""The code on docs/training.md runs as it stands, block after block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numba
import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small batches only wait for a second thread."""
    before = torch.get_num_threads(), numba.get_num_threads()
    numba.set_num_threads(1)  # first: it may set torch's number too
    torch.set_num_threads(1)
    yield
    numba.set_num_threads(before[1])
    torch.set_num_threads(before[0])


PAGE = Path(__file__).parent.parent / "docs" / "training.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/training.md, block {number}", "exec"), names)
    assert (tmp_path / "model.pt").exists()
    assert set(torch.load(tmp_path / "model.pt")) >= {"user.weight", "item.weight", "top.0.weight"}
