# make demo: set up and train the default model.
# make test: set up and run the tests that are not slow.  make test-slow: the slow ones.  make types: with types checked.
# PYTHON picks the interpreter (3.11 or later), VENV the environment's folder, WORKERS the number of test processes.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
WORKDIR ?= runs/ncsn
run := $(VENV)/bin/python
pip := $(run) -m pip install --quiet --disable-pip-version-check
pytest := $(run) -m pytest -n $(WORKERS) --dist worksteal
# pyenv offers names of interpreters that it refuses to start unless they are selected: they are looked up in its folder.
interpreter = $(shell $(PYTHON) -c 'import sys; print(sys.executable)' 2>/dev/null \
	|| ls $${PYENV_ROOT:-$$HOME/.pyenv}/versions/*/bin/$(PYTHON) 2>/dev/null | tail -n 1)

.PHONY: demo setup test test-slow types lint parity docs audit python clean

demo: $(VENV)/.demo
	$(run) -m diffusion_jax.main --config=configs/ncsn.py --workdir=$(WORKDIR)

setup: $(VENV)/.test

test: $(VENV)/.test
	$(pytest) -m "not slow and not parity"

test-slow: $(VENV)/.test
	$(pytest) -m "slow and not parity"

# The annotations of the functions of the package, checked at each call, in tests of the rooms that are pure functions.
TYPES ?= tests/processes tests/losses tests/guidance tests/modalities tests/test_parameterizations.py \
	tests/networks/test_base.py tests/networks/test_conditions.py tests/networks/test_mlp.py
types: $(VENV)/.test
	$(pytest) -m "not slow and not parity" --jaxtyping-packages=diffusion_jax,beartype.beartype $(TYPES)

lint: $(VENV)/.lint
	$(run) -m ruff check .
	$(run) -m ruff format --check .

# Comparisons with the PyTorch originals, kept apart so that nobody needs torch for the rest.
parity: $(VENV)/.parity
	$(pytest) -m parity tests/parity

# The site of README, docs/ and the API reference, in build/site. Broken links and anchors are errors.
docs: $(VENV)/.docs
	$(run) -m mkdocs build --strict

# Known vulnerabilities of the dependencies; says so where the service cannot be reached.
audit: $(VENV)/.audit
	$(run) .ci/audit.py

# Prints the interpreter that PYTHON names, and fails where there is none.
python:
	@test -n '$(interpreter)' && echo $(interpreter)

$(run):
	@test -n '$(interpreter)' || { echo "make: PYTHON=$(PYTHON) is not an interpreter that starts"; exit 1; }
	$(interpreter) -c 'import sys; assert sys.version_info >= (3, 11), "diffusion_jax needs Python 3.11 or later; set PYTHON"'
	$(interpreter) -m venv $(VENV)
	$(pip) --upgrade pip

$(VENV)/.demo: setup.py | $(run)
	$(pip) -e .
	touch $@

$(VENV)/.test: setup.py | $(run)
	$(pip) -e '.[test]'
	touch $@

$(VENV)/.lint: setup.py | $(run)
	$(pip) -e '.[lint]'
	touch $@

$(VENV)/.parity: setup.py | $(run)
	$(pip) -e '.[test,parity]'
	touch $@

$(VENV)/.docs: setup.py | $(run)
	$(pip) -e '.[docs]'
	touch $@

$(VENV)/.audit: setup.py | $(run)
	$(pip) -e '.[audit]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .jax_cache
