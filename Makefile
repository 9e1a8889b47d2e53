## make quickstart   install into .venv, then solve the bundled word problems with the bundled model, here
## make loop         a teacher solves, a student is trained on what is correct, evaluated before and after: 15 minutes on two cores
## make test         the whole test suite: the fast part, then what is slow or needs a real Slurm and Apptainer
## make trials       the long trials: kills, time limits, preemptions
## make check        format, lint and types; shell scripts too where shellcheck is installed
## make golden       write the golden scripts of tests/launch anew; read the difference before you commit it
## PYTHON=python3.12 make …   names the Python (3.10 or newer) that makes .venv

PYTHON ?= python3
BIN := .venv/bin
EXTRAS := dev$(if $(filter true,$(CI)),-train-wandb)
NEEDS := setup.cfg pyproject.toml constraints.txt
SCRIPTS := .ci/run tests/slurm/slurm-up tests/apptainer/apptainer-up tests/apptainer/apptainer-check
FAST := not slow and not slurm and not apptainer and not trial
REST := (slow or slurm or apptainer) and not trial

.PHONY: help quickstart loop test trials check golden

help:
	@sed -n 's/^## //p' Makefile

quickstart: .venv/installed
	@$(BIN)/python pipeline/run_generation.py
	@echo "next: . .venv/bin/activate   then: python pipeline/solve.py   python pipeline/run_generation.py --help" >&2

loop: .venv/installed-train
	@$(BIN)/python pipeline/run_recipe.py quickstart

test: .venv/installed-$(EXTRAS)
	$(BIN)/pytest -n 2 -m "$(FAST)"
	$(BIN)/pytest -n 2 --dist worksteal -rs --durations=25 -m "$(REST)"

trials: .venv/installed-$(EXTRAS)
	$(BIN)/pytest -rs -m trial

check: .venv/installed-$(EXTRAS)
	$(BIN)/ruff format --check --output-format=concise
	$(BIN)/ruff check
	$(BIN)/mypy
	@if command -v shellcheck >/dev/null; then echo shellcheck $(SCRIPTS); shellcheck $(SCRIPTS); \
	else echo "shellcheck is not installed: shell scripts not checked"; fi

golden: .venv/installed-$(EXTRAS)
	$(BIN)/pytest tests/launch -k golden --golden

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	{ echo "$(PYTHON) is not Python 3.10 or newer; name one: PYTHON=python3.12 make …" >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version) …"
	@$(PYTHON) -m venv .venv

.venv/installed: $(NEEDS) | .venv/bin/pip
	@echo "installing mathmill into .venv … (a minute the first time)"
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-train .venv/installed-dev .venv/installed-dev-train .venv/installed-dev-train-wandb: $(NEEDS) | .venv/bin/pip
	@echo "installing mathmill and its tools for developers into .venv … (minutes the first time)"
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e ".[$(subst -,$(comma),$(@:.venv/installed-%=%))]"
	@touch .venv/installed $@

comma := ,
