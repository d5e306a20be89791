"""Golden runs: they are what the definition computes, the fast trainer computes them too, and each catches its bug."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numba
import pytest
import torch

from samelaw.cli.whole_runs import lazy_trainer
from samelaw.contract.errors import InputError, SchemaError
from samelaw.contract.ledger import Ledger, spent, verify_lines
from samelaw.contract.run import Release
from samelaw.contract.spec import Mode
from samelaw.equivalence.golden_runs import check_golden, golden_names, load_golden, parse_golden
from samelaw.equivalence.whole_runs import Ran, run_lazy

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))
from golden_faults import MUTATIONS, fault_of  # noqa: E402

sys.path.pop(0)
specification = importlib.util.spec_from_file_location("make_golden_runs", ROOT / "tools" / "make_golden_runs.py")
make = importlib.util.module_from_spec(specification)
sys.modules["make_golden_runs"] = make
specification.loader.exec_module(make)
VECTORS = {vector.name: vector for vector in make.VECTORS}
LONG = "owed-2-16"
SLOW = ("owed-2-8", LONG)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    yield
    numba.set_num_threads(before[1])
    torch.set_num_threads(before[0])


def marked(names):
    return [pytest.param(n, marks=pytest.mark.slow if n == LONG else ()) for n in names]


def runs():
    return [
        pytest.param(name, str(mode), marks=pytest.mark.slow if name == LONG else (), id=f"{name}-{mode}")
        for name, vector in VECTORS.items()
        for mode in vector.modes
    ]


def regenerated(names):
    """What --check says, in a process of its own: the checks of annotations would make it ten times as slow."""
    command = [sys.executable, "tools/make_golden_runs.py", "--check", *names]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_golden_runs_are_what_the_definition_computes():
    done = regenerated([name for name in VECTORS if name not in SLOW])
    assert done.returncode == 0, f"run `make golden` and review what changed: {done.stdout}{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["owed-2-8", "owed-2-16"])
def test_long_golden_runs_are_what_the_definition_computes(name):
    done = regenerated([name])
    assert done.returncode == 0, f"run `make golden` and review what changed: {done.stdout}{done.stderr}"


def test_every_golden_run_ships_and_is_small_and_names_its_bug():
    assert golden_names() == sorted(VECTORS)
    for name in golden_names():
        golden = load_golden(name)
        assert golden.document == json.loads((ROOT / "equivalence/golden/runs" / f"{name}.json").read_text())
        assert (golden.bug, golden.hunts) == (VECTORS[name].bug, VECTORS[name].hunts)
        assert len(json.dumps(golden.document)) < 60_000
        assert callable(fault_of(golden))
    assert set(MUTATIONS) <= {vector.bug for vector in VECTORS.values()}


@pytest.mark.parametrize(("name", "mode"), runs())
def test_the_fast_trainer_computes_a_golden_run(name, mode, tmp_path):
    golden = load_golden(name)
    ran = run_lazy(golden.plan(mode), lazy_trainer, tmp_path)
    assert check_golden(golden, mode, ran) == []


@pytest.mark.parametrize("name", marked(VECTORS))
def test_the_bug_that_a_golden_run_hunts_makes_it_fail(name, tmp_path):
    golden = load_golden(name)
    mode = golden.modes[-1]
    ran = run_lazy(golden.plan(mode), partial(lazy_trainer, fault=fault_of(golden)), tmp_path)
    found = check_golden(golden, mode, ran)
    assert found
    assert name in str(found[0])


def test_golden_ledgers_are_whole_and_end_where_they_say():
    for name in golden_names():
        golden = load_golden(name)
        for mode, said in golden.document["modes"].items():
            if not said["ledger"]["lines"]:
                continue
            entries = list(verify_lines("\n".join(said["ledger"]["lines"]), where=name))
            assert (len(entries), entries[-1].hash) == (said["ledger"]["entries"], said["ledger"]["head"])
            plan = golden.plan(mode)
            assert entries[0].data["key_commitment"] == plan.noise_key.commitment()
            assert entries[0].data["law_digest"] == plan.spec.digest()
            assert [s["examples"] for s in spent(entries).steps] == [len(drawn) for drawn in make.draws(plan)]


def test_golden_epsilon_lies_where_a_second_accountant_says():
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    golden = load_golden("repeated-ids")
    plan, said = golden.plan("replay"), golden.document["epsilon"]
    accountant = PLDAccountant()
    event = dp_event.PoissonSampledDpEvent(plan.sampling_rate, dp_event.GaussianDpEvent(plan.noise_multiplier))
    accountant.compose(event, plan.steps)
    epsilon = accountant.get_epsilon(float(said["delta"]))
    assert float(said["lower"]) <= epsilon <= 1.01 * float(said["upper"])
    assert float(said["upper"]) < 1.02 * float(said["lower"])


def test_in_bridge_eager_and_lazy_lie_within_the_bound_that_is_written_down():
    from samelaw.equivalence.golden_runs import _matrix

    seen = 0
    for name in golden_names():
        said = load_golden(name).document["modes"].get("bridge", {"released": {}})
        if "eager" not in said["released"]:
            continue
        for table, bounds in said["rounding_bound"].items():
            one, other = (
                _matrix(said["released"][which]["tables"][table]).astype(float) for which in ("eager", "lazy")
            )
            for row, bound in enumerate(bounds):
                assert abs(one[row] - other[row]).max() <= float.fromhex(bound)
                seen += 1
    assert seen > 50


def test_a_worked_check_in_plain_numpy_agrees(tmp_path):
    page = (ROOT / "docs" / "golden-runs.md").read_text(encoding="utf-8")
    script = next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "def normals" in block)
    assert len([line for line in script.splitlines() if line]) < 60
    assert "samelaw" not in script.replace("samelaw.golden-run/1", "")
    path = tmp_path / "check.py"
    path.write_text(script, encoding="utf-8")
    files = [ROOT / "equivalence/golden/runs" / f"{name}.json" for name in golden_names() if name != LONG]
    done = subprocess.run([sys.executable, str(path), *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("agrees") == len(files)
    # It reads the numbers: a file with one changed bit fails.
    broken = json.loads(files[0].read_text())
    word = broken["modes"]["replay"]["released"]["eager"]["tables"]["tables.item"][0]
    broken["modes"]["replay"]["released"]["eager"]["tables"]["tables.item"][0] = (
        f"{int(word[:8], 16) ^ 1:08x}" + word[8:]
    )
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    done = subprocess.run([sys.executable, str(path), str(tmp_path / "broken.json")], capture_output=True, check=False)
    assert done.returncode != 0


def test_damaged_files_and_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"no golden run 'nope'; there are empty-batch"):
        load_golden("nope")
    golden = load_golden("read-at-every-step")
    with pytest.raises(InputError, match="mode must be one of"):
        golden.plan("bridge")
    broken = copy.deepcopy(golden.document)
    broken["run"]["tables"][0]["initial"] = broken["run"]["tables"][0]["initial"][:-1]
    with pytest.raises(SchemaError, match="its weights have other sizes"):
        parse_golden(broken)
    broken = copy.deepcopy(golden.document)
    broken["run"]["law"]["clip_norm"] = 1.0
    with pytest.raises(SchemaError, match="run/law/clip_norm"):
        parse_golden(broken)


def test_a_run_that_stops_early_or_draws_other_examples_is_told_so():
    golden = load_golden("repeated-ids")
    eager = make.trainer(make.Eager, golden.plan("replay"))
    ran = Ran(eager.transcript, Release({}, {}, 0, ""), [])
    assert "0 steps" in str(check_golden(golden, "replay", ran)[0])
    assert isinstance(Ledger().entries, list)
    assert golden.modes == tuple(map(str, Mode))
