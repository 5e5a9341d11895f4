# make demo: set up and train the default model.  make test: set up and run the tests.
# PYTHON picks the interpreter (3.11 or later), VENV the environment's folder.

PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/ncsn
run := $(VENV)/bin/python
pip := $(run) -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint parity audit clean

demo: $(VENV)/.demo
	$(run) -m diffusion_jax.main --config=configs/ncsn.py --workdir=$(WORKDIR)

test: $(VENV)/.test
	$(run) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.lint
	$(run) -m ruff check .
	$(run) -m ruff format --check .

# Comparisons with the PyTorch originals, kept apart so that nobody needs torch for the rest.
parity: $(VENV)/.parity
	$(run) -m pytest -m parity tests/parity

# Known vulnerabilities of the dependencies; says so where the service cannot be reached.
audit: $(VENV)/.audit
	$(run) .ci/audit.py

$(run):
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "diffusion_jax needs Python 3.11 or later; set PYTHON"'
	$(PYTHON) -m venv $(VENV)
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

$(VENV)/.audit: setup.py | $(run)
	$(pip) -e '.[audit]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .jax_cache
