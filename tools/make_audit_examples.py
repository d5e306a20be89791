"""Train three runs and write what the audit says of them into docs/reviewers-guide.md (`make audit-examples`).

One run is as it should be; in one, only rows that a batch reads get noise (EANA); in one, rows are released without the
noise that they still owe. The keys are fixed, so that the pages come out the same every time: a real run's never are.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from samelaw.cli import train
from samelaw.cli.main import build_parser, main
from samelaw.contract.noise import NoiseKey
from samelaw.equivalence.faults import FAULTS

GUIDE = Path("docs/reviewers-guide.md")
REPORTS = Path("docs/audit-reports")
RUNS: dict[str, Callable[[Any], None] | None] = {
    "good": None,
    "eana": FAULTS["touched-rows-only"].apply,
    "unflushed": FAULTS["no-final-settle"].apply,
}
TRAIN = "train zipf --scale 1e-5 --steps 60 --batch-size 64 --noise-multiplier 1 --quiet"


def make_run(place: Path, name: str) -> Path:
    """A run folder, with key and transcript beside it."""
    folder = place / name
    beside = ["--out", folder, "--key-file", place / f"{name}.key", "--transcript", place / f"{name}.transcript"]
    options = build_parser().parse_args([*TRAIN.split(), *map(str, beside)])
    key = NoiseKey.from_bytes(hashlib.sha256(f"an example of the guide: {name}".encode()).digest(), origin="os")
    with mock.patch.object(train.NoiseKey, "from_os", return_value=key), redirect_stderr(io.StringIO()):
        assert train.run_train(options, prepare=RUNS[name]) == 0
    return folder


def audited(place: Path, name: str, *, replay: bool) -> str:
    """The command, its output and its exit status, as a reader would see them."""
    shown = f"samelaw audit {name} --out {name}.html"
    arguments = ["audit", str(place / name), "--out", str(place / f"{name}.html")]
    if replay:
        shown += f" --key {name}.key --transcript {name}.transcript"
        arguments += ["--key", str(place / f"{name}.key"), "--transcript", str(place / f"{name}.transcript")]
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        status = main(arguments)
    return f"$ {shown}; echo $?\n{out.getvalue()}{status}\n"


def insert(text: str, name: str, output: str) -> str:
    """Put an output between its two marks in the guide."""
    pattern = re.compile(rf"(<!-- output: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    assert len(pattern.findall(text)) == 1, f"{GUIDE} must hold one place for the output {name!r}"
    return pattern.sub(lambda found: f"{found[1]}```text\n{output}```\n{found[2]}", text)


def write_examples() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    REPORTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        for name in RUNS:
            make_run(place, name)
            text = insert(text, f"{name}, folder alone", audited(place, name, replay=False))
            text = insert(text, f"{name}, executed again", audited(place, name, replay=True))
            shutil.copy(place / f"{name}.html", REPORTS / f"{name}.html")
        shutil.copy(place / "good.record.json", REPORTS / "good.record.json")
    GUIDE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_examples()
