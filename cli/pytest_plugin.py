"""`pytest --samelaw-trainer MODULE:FACTORY`: each claim of the bench as a test of the user's own suite.

Loaded by every pytest of the environment, so it imports samelaw only where a trainer is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("samelaw", "samelaw's bench for private trainers")
    group.addoption(
        "--samelaw-trainer",
        metavar="MODULE:FACTORY",
        action="append",
        default=[],
        help="put this trainer on samelaw's bench: one test for each claim (may be given more than once)",
    )
    group.addoption("--samelaw-runs", type=int, default=None, help="repeated runs whose noise is judged (default 8)")
    group.addoption("--samelaw-seed", type=int, default=None, help="seed of the bench (default 0)")
    parser.addini("samelaw_trainer", "trainers for samelaw's bench, as MODULE:FACTORY", type="linelist", default=[])
    parser.addini("samelaw_runs", "as --samelaw-runs", default="8")
    parser.addini("samelaw_seed", "as --samelaw-seed", default="0")
    parser.addini("samelaw_timeout", "seconds that one run of a trainer may take", default="60")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    named: list[str] = config.getoption("--samelaw-trainer") or []
    trainers: list[str] = [*config.getini("samelaw_trainer"), *named]
    for trainer in dict.fromkeys(trainers):
        items.extend(TrainerOnBench.from_parent(session, name=f"samelaw[{trainer}]", trainer=trainer).collect())


class TrainerOnBench(pytest.Collector):
    """One trainer: its claims are judged together, when the first of them is asked for."""

    def __init__(self, *, trainer: str, **options: Any) -> None:
        super().__init__(**options)
        self.trainer = trainer
        self._evidence: dict[str, Any] | None = None
        self._error: Exception | None = None

    def collect(self) -> Iterator[pytest.Item]:
        from samelaw.equivalence.bench.claims import TITLES

        for claim, title in TITLES.items():
            yield ClaimItem.from_parent(self, name=claim, title=title)

    def evidence(self) -> dict[str, Any]:
        """By claim; the trainer runs once, whatever comes of it."""
        if self._error is not None:
            raise self._error
        if self._evidence is None:
            try:
                self._evidence = self._judge()
            except Exception as error:
                self._error = error
                raise
        return self._evidence

    def _judge(self) -> dict[str, Any]:
        from samelaw.cli.bench_processes import Worker
        from samelaw.equivalence.bench.conform import conform

        with Worker(self.trainer, timeout=self._timeout()) as worker:
            twin = None
            if worker.abilities.noise == "keyed":
                from samelaw.cli.bench_own import reference

                twin = reference
            found = conform(worker, worker.abilities, runs=self._chosen("runs"), seed=self._chosen("seed"), twin=twin)
        return {item.claim: item for item in found}

    def _chosen(self, name: str) -> int:
        from samelaw.contract.errors import InputError

        option = self.config.getoption(f"--samelaw-{name}")
        if option is not None:
            return int(option)
        written = self.config.getini(f"samelaw_{name}")
        try:
            return int(written)
        except ValueError as cause:
            raise InputError(f"samelaw_{name} of the pytest configuration must be a number, got {written!r}") from cause

    def _timeout(self) -> float:
        from samelaw.contract.errors import InputError

        written = self.config.getini("samelaw_timeout")
        try:
            seconds = float(written)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= 86400:
            raise InputError(f"samelaw_timeout must be > 0 and at most 86400 seconds (a day), got {written!r}")
        return seconds


class ClaimRefuted(Exception):
    """What a failing test says."""


class ClaimItem(pytest.Item):
    """One claim as a test: refuted fails, not assessed skips and says why."""

    parent: TrainerOnBench

    def __init__(self, *, title: str, **options: Any) -> None:
        super().__init__(**options)
        self.title = title

    def runtest(self) -> None:
        from samelaw.contract.evidence import Verdict

        item = self.parent.evidence()[self.name]
        if item.verdict is Verdict.NOT_ASSESSED:
            pytest.skip(item.summary)
        if item.verdict is Verdict.REFUTED:
            tests = [
                f"  {test.name}: {test.statistic:.4g}, allowed {test.threshold:.4g} ({test.gap}) {test.note}"
                for test in item.tests
                if test.verdict is Verdict.REFUTED
            ]
            also = [
                f"  {line}" for key in ("failures", "wrong", "beyond_the_bound") for line in item.numbers.get(key, ())
            ]
            raise ClaimRefuted("\n".join([f"{item.claim}: {item.title}", f"refuted: {item.summary}", *also, *tests]))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        from samelaw.contract.errors import InputError

        if isinstance(excinfo.value, ClaimRefuted | InputError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.path, None, f"{self.parent.name} {self.name}: {self.title}"
