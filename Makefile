# Every target starts from a fresh clone on a machine with Python >= 3.11 and make: it creates .venv, installs the
# exact versions in constraints.txt, installs samelaw itself (not editable: what is tested is what is installed), runs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := contract reference fast adapters equivalence accounting audit workloads cli
SOURCES := pyproject.toml $(shell find $(PACKAGES) -type f -not -path '*/__pycache__/*')
DEPENDENCIES := $(VENV)/.dependencies
PACKAGE := $(VENV)/.package
VERIFY ?=
PYTEST ?=
WORKERS ?= auto
RUNS ?= 5000

.PHONY: help test-accounting calibration power verify faults test test-slow test-runs test-gpu check proofs proofs-coqchk proofs-record proofs-mutants docs golden findings audit-examples benchmarks train clean

help:
	@echo "make verify      train both twins on MovieLens-100k, compare, price, report (VERIFY='--steps 50' passes options)"
	@echo "make faults      plant every fault in every mode, and write docs/faults-matrix.md (some minutes)"
	@echo "make test        the test suite (PYTEST='-k noise' passes options)"
	@echo "make test-slow   the long checks: 1e8 draws, 20 kills, every seeded fault through the command line"
	@echo "make test-runs   $(RUNS) whole runs made up by Hypothesis, each compared every way (RUNS=20000)"
	@echo "make test-accounting  every accountant against the others on a grid of 240 points (about half an hour)"
	@echo "make test-gpu    the checks that need a CUDA device"
	@echo "make check       ruff, pyright and import-linter on the installed package"
	@echo "make proofs      the machine-checked proofs (needs Coq 8.16; about two minutes, seconds when nothing has changed)"
	@echo "make proofs-coqchk  the same, and coqchk checks Coq's libraries too (about a minute more)"
	@echo "make docs        the documentation as a web site, in build/site"
	@echo "make golden      regenerate the golden vectors (a test fails when they differ)"
	@echo "make calibration  false-alarm rates of the tests of law on 2,100 true runs, into docs/power.md; about ten minutes"
	@echo "make power       detection of planted gaps, into docs/power.md; about five minutes"
	@echo "make audit-examples  train the three runs of the reviewer's guide and write what the audit says of them"
	@echo "make benchmarks  noise and step time, a few minutes; results in benchmarks/results"
	@echo "make findings    put Opacus, EANA, LazyDP and our own trainers on the bench again: docs/bench-findings.md"
	@echo "make clean       remove .venv and build"

$(DEPENDENCIES): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("samelaw needs Python >= 3.11; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	@mkdir -p build && $(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['dev'], *p['optional-dependencies']['docs'], sep='\n')" > build/requirements.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement build/requirements.txt
	@touch $@

$(PACKAGE): $(DEPENDENCIES) $(SOURCES)
	@rm -rf build/lib build/bdist.* samelaw.egg-info
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --force-reinstall .
	@touch $@

verify: $(PACKAGE)
	$(BIN)/samelaw verify $(VERIFY)

faults: $(PACKAGE)
	$(BIN)/samelaw faults --page docs/faults-matrix.md

test: $(PACKAGE)
	$(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses $(WORKERS) --dist loadfile $(PYTEST)

test-slow: $(PACKAGE)
	$(BIN)/python -m pytest -m "slow" --timeout 3600 $(PYTEST)

# Without the checks of annotations, which make a run four times as slow.
test-runs: $(PACKAGE)
	SAMELAW_RUNS=$(RUNS) $(BIN)/python -m pytest --noconftest -m "slow" --timeout 36000 -k thousands tests/test_whole_runs.py $(PYTEST)

test-accounting: $(PACKAGE)
	$(BIN)/python -m pytest --timeout 3600 tests/test_accounting.py tests/test_accounting_truth.py tests/test_accounting_contour.py tests/test_accounting_assumptions.py $(PYTEST)

test-gpu: $(PACKAGE)
	$(BIN)/python -m pytest -m "gpu" --timeout 3600 $(PYTEST)

check: $(PACKAGE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config pyproject.toml
	$(BIN)/pyright --pythonpath $(BIN)/python

proofs: $(PACKAGE)
	$(BIN)/python proofs/check.py

proofs-coqchk: $(PACKAGE)
	$(BIN)/python proofs/check.py --libraries

proofs-record: $(PACKAGE)
	$(BIN)/python proofs/check.py --record

proofs-mutants: $(PACKAGE)
	$(BIN)/python proofs/mutants.py

docs: $(PACKAGE)
	$(BIN)/mkdocs build --strict --site-dir build/site

golden: $(PACKAGE)
	$(BIN)/python tools/make_golden.py
	$(BIN)/python tools/make_golden_runs.py

calibration: $(PACKAGE)
	$(BIN)/samelaw calibrate --runs 2100 --synthetic 20000 --seed 20261126 --write docs/power.md

power: $(PACKAGE)
	$(BIN)/samelaw power --seed 20261126 --write docs/power.md

audit-examples: $(PACKAGE)
	$(BIN)/python tools/make_audit_examples.py

benchmarks: $(PACKAGE)
	$(BIN)/python benchmarks/noise.py
	$(BIN)/python benchmarks/step_time.py

findings: $(PACKAGE)
	$(BIN)/python benchmarks/bench_findings.py

clean:
	rm -rf $(VENV) build samelaw.egg-info
