# make demo | make test    set everything up by themselves, in .venv; a second time in seconds, and offline.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test lint unit system chaos-short chaos scale clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/tokenmill demo

test: lint unit system chaos-short

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: setup
	$(BIN)/python -m pytest -q -m "not system and not chaos"

system: setup
	$(BIN)/python -m pytest -q -m "system and not chaos"

chaos-short: setup
	$(BIN)/python -m pytest -q -m chaos

# Heavier than CI: kills by the hundred, full disks, poison; and the driver at 100,000 shards.
chaos: setup
	CHAOS=full $(BIN)/python -m pytest -q -m chaos

scale: setup
	SCALE_SHARDS=100000 $(BIN)/python -m pytest -q -s tests/scale

clean:
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
