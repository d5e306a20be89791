"""docs/bench.md can be followed: its files are written and its commands run, as a reader would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parent.parent / "docs" / "bench.md"
BLOCK = re.compile(r"<!-- (file|run): ([^\n]*) -->\n```\w+\n(.*?)```", re.DOTALL)
FEW = {"samelaw conform": " --runs 2 --quiet --seed 5", "pytest": " --samelaw-runs 2 -q -p no:cacheprovider"}


def test_the_guide_can_be_followed(tmp_path: Path) -> None:
    bin_folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    ran = 0
    for kind, words, text in BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        if kind == "file":
            (tmp_path / words).write_text(text, encoding="utf-8")
            continue
        status, *claims = words.removeprefix("exit ").split(", ")
        (command,) = text.strip().splitlines()
        fewer = next(extra for start, extra in FEW.items() if command.startswith(start))  # fewer runs than by default
        done = subprocess.run(
            command + fewer,
            shell=True,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == int(status), done.stdout + done.stderr
        for claim in claims:
            assert re.search(rf"^{claim} +refuted", done.stdout, re.MULTILINE)
        ran += 1
    assert ran == 4
    evidence = json.loads((tmp_path / "second" / "evidence.json").read_text())
    assert {c["claim"] for c in evidence["claims"] if c["verdict"] == "REFUTED"} == {"B4", "B5", "B7"}
    assert "expected noise in every column" in (tmp_path / "second" / "report.html").read_text()


@pytest.mark.parametrize("field", ["several_tables", "changing_rate", "iterates", "noise_off", "weights", "padding"])
def test_the_guide_names_every_ability(field: str) -> None:
    assert f"`{field}`" in GUIDE.read_text(encoding="utf-8")
