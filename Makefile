# make demo | make test    set everything up by themselves, in .venv; a second time in seconds, and offline.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
AZURITE := .venv/node/node_modules/.bin/azurite-blob
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Tests share the cores; the threads of OpenMP would spin while they wait for each other.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q
FUZZ := $(BIN)/python -m tests.security.fuzz
FUZZ_SECONDS ?= 120
LOCK := $(BIN)/uv pip compile --quiet pyproject.toml --extra gcs --extra azure --extra cluster --generate-hashes --python-version 3.11 \
	--python-platform linux -c constraints.txt --no-header --no-annotate --no-emit-index-url --no-emit-find-links

.PHONY: setup demo test lint unit whole system chaos-short chaos scale bench-streaming bench-qa bench-readers bench-decode \
	bench-peers bench-flame fuzz slurm lock audit clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/tokenmill demo

test: lint unit whole

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: setup
	$(PYTEST) -n 2 -m "not system and not chaos"

# What Python cannot bring: Azurite (an Azure store) from npm; from Debian a browser, `ip`, Prometheus (23 MB), Slurm
# (3 MB) and docker-compose (1 MB).
$(AZURITE): $(READY)
	npm install --prefix .venv/node --silent --no-audit --no-fund --omit=dev --ignore-scripts azurite@3.35.0
	@touch $@

.PHONY: packages slurm-packages
packages:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null && command -v promtool >/dev/null && \
		command -v docker-compose >/dev/null && test -x /usr/sbin/ip -o -x /sbin/ip || \
		(apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver iproute2 \
		prometheus docker-compose >/dev/null)

slurm-packages:
	@command -v sbatch >/dev/null || (apt-get update -qq && \
		apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client >/dev/null)

# Whole commands and servers, undisturbed and disturbed. The long ones are the first in the order of collection.
whole: setup packages slurm-packages $(AZURITE)
	$(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder -m "(system or chaos) and not thorough"

system: setup packages slurm-packages $(AZURITE)
	$(PYTEST) -n 3 --dist loadfile -m "system and not chaos and not thorough"

chaos-short: setup packages
	$(PYTEST) -n 2 --dist loadfile -m "chaos and not thorough"

# A batch job over two nodes of a real Slurm on this machine.
slurm: setup slurm-packages
	SLURM_NODES=2 $(PYTEST) tests/system/test_slurm.py

# Heavier than CI: kills by the hundred, full disks, poison, hosts that vanish; and the driver at 100,000 shards.
chaos: setup packages slurm-packages $(AZURITE)
	CHAOS=full $(PYTEST) -m "chaos or thorough"
	CHAOS=full $(PYTEST) tests/system/test_store_faults.py

scale: setup
	SCALE_SHARDS=100000 $(PYTEST) -s tests/scale

bench-streaming: setup
	$(BIN)/python -m tests.benchmarks.streaming

# On a machine with a GPU, and nothing else within reach; `BENCH_GPU=--quick` for under 8 minutes.
BENCH_GPU ?=
.PHONY: bench-gpu
bench-gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,python3) -m tests.benchmarks.gpu $(BENCH_GPU)

# A prior of some size on a run of yours, where there is a GPU: make prior-gpu RUN=s3://bucket/tokens TO=prior
PRIOR_GPU := dim=768 layers=12 heads=12 steps=50000 batch_size=64 learning_rate=6e-4 warmup_steps=1000 \
	report_interval=100 checkpoint_interval=2500 hold_out=0.01 device=cuda
.PHONY: prior-gpu
prior-gpu: setup
	$(BIN)/tokenmill prior $(RUN) --to $(TO) $(PRIOR_GPU:%=--set %)

bench-qa: setup
	$(BIN)/python -m tests.benchmarks.qa

bench-readers: setup
	$(BIN)/python -m tests.benchmarks.readers

# The real driver and schedule on virtual time: 1 to 1,000 GPUs; draws docs/scaling.svg.
.PHONY: bench-scaling
bench-scaling: setup
	$(BIN)/python -m tests.benchmarks.scaling

# What a forecast is worth; whether decode actors pay (as root: two nodes, each with a core and a network of its own).
.PHONY: bench-forecast bench-feeding bench-at-once
bench-forecast: setup
	$(BIN)/python -m tests.benchmarks.forecast

bench-feeding: setup packages
	$(BIN)/python -m tests.benchmarks.feeding

bench-at-once: setup
	$(BIN)/python -m tests.benchmarks.at_once

bench-decode: setup
	$(BIN)/python -m tests.benchmarks.decode

# `tokenmill run` beside Ray Data and a plain script, in turn; and where the time of a run goes. Both want an idle machine.
bench-peers: setup
	$(BIN)/python -m tests.benchmarks.peers.contest

bench-flame: setup
	$(PIP) py-spy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.benchmarks.flame docs/flame.svg

# Coverage-guided fuzzing of the tar reader and the decode chain; what it finds lies in .fuzz/.
fuzz: setup
	$(PIP) -e '.[fuzz]'
	mkdir -p .fuzz/tar .fuzz/image
	for target in tar image; do \
		$(FUZZ) $$target -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=4096 -max_len=8192 \
			-artifact_prefix=.fuzz/ .fuzz/$$target tests/security/corpus/$$target || exit 1; \
	done

# The locks of the image and of CI, with hashes; `make audit` asks a public database of known holes.
lock: setup
	$(PIP) uv
	$(LOCK) -o infra/requirements.lock
	$(LOCK) --extra dev -o infra/requirements-dev.lock

audit: setup
	$(PIP) pip-audit
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r infra/requirements.lock -r infra/requirements-dev.lock

# docs/ as a site, in .site/; a warning is an error (not with --quiet, which also hides it from --strict).
.PHONY: docs
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -f infra/site/mkdocs.yml

clean:
	rm -rf .venv .site demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz
