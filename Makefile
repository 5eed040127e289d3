# make demo | make test    set everything up by themselves, in .venv; a second time in seconds, and offline.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test lint unit system chaos scale clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/tokenmill demo

test: lint unit system

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: setup
	$(BIN)/python -m pytest -q -m "not system"

system: setup
	$(BIN)/python -m pytest -q -m system

# Heavier than CI: kills, preemptions, full disks; and the driver at 100,000 shards.
chaos: setup
	$(BIN)/python -m pytest -q tests/chaos --chaos full

scale: setup
	SCALE_SHARDS=100000 $(BIN)/python -m pytest -q -s tests/scale

clean:
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
