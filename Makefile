# Every target works on a fresh machine: it makes .venv and installs what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LOWEST := .venv-lowest
NEWEST := .venv-newest
CKPTS  ?= none-s0 local-k4-s0 global-k4-s0
SEEDS  := 0 1 2
ARMS   ?= $(foreach arm,none local-k4 global-k4,$(foreach seed,$(SEEDS),$(arm)-s$(seed)))

export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test check audit bench figures test-all test-lowest test-newest format install clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m analyses.localization $(CKPTS) --out results
	$(BIN)/python -m analyses.localization $(CKPTS) --method eap-ig --n 32 --out results
	$(BIN)/python -m analyses.leakage $(filter-out none-%,$(CKPTS)) --quick --out results
	$(BIN)/python -m analyses.specialization $(CKPTS) --quick --out results
	$(BIN)/python -m analyses.probing $(CKPTS) --target role --n 60 --out results
	$(BIN)/python -m analyses.self_repair $(CKPTS) --tokens 3000 --out results
	$(BIN)/python -m analyses.report $(CKPTS) --out results

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or not slow"

# The lowest versions that pyproject.toml allows and that resolve together, and the newest: each in a folder of its own.
test-lowest:
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/python tests/versions/lowest.py $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt torch
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt -e ".[dev]"
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

test-newest:
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade torch
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -e ".[dev]"
	$(NEWEST)/bin/python tests/versions/newer.py constraints.txt
	$(NEWEST)/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(MAKE) --no-print-directory audit

audit: $(STAMP)
	$(BIN)/python tests/audit.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/bench.py $(ARGS)

figures: $(STAMP)
	$(BIN)/python -m analyses.paper $(ARMS) --static --out results $(ARGS)

clean:
	rm -rf $(VENV) $(LOWEST) $(NEWEST) results
