# Two commands do everything on a machine with Python 3.11+ and nothing installed: `make train` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  := .venv-peers
AGILERL := .venv-agilerl
DOCS   := .venv-docs
CONFIG ?= configs/calculator.yaml
SOAK   ?= 8h
SEED_MODEL := models/seed
RECALL_MODEL := models/recall_long
ARITHMETIC_MODEL := models/arithmetic
# A warm start whose time was over before its target keeps its state, and is gone on with.
unfinished = $(if $(wildcard $(1)/warmstart_state.pt),go-on)
# Two processes: while one waits for Ray's actors, the other computes. Which tests go together is said in tests/conftest.py.
# Of three processes one waits for something at any time.
PYTEST := $(BIN)/python -m pytest --numprocesses 3 --durations 10

# One thread per process: vLLM's and torch's OpenMP barriers cost more than a second core brings while several processes share it.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Compiled modules are kept, whatever a container image asks for: every process imports torch and ray, which costs 16 s of CPU
# without and 7 s with them.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: go-on help install lint test test-all test-versions train docs bench bench-peers soak clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

install: $(STAMP)  ## .venv with the pinned dependencies and this checkout in it

$(STAMP): requirements/cpu.txt requirements/install.sh pyproject.toml
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash requirements/install.sh
	@touch $(STAMP)

$(PEERS)/.installed: requirements/cpu.txt requirements/peers.txt requirements/install.sh pyproject.toml
	@PYTHON="$(PYTHON)" VENV="$(PEERS)" LISTS="cpu.txt peers.txt" bash requirements/install.sh
	@touch $@

$(AGILERL)/.installed: requirements/agilerl.txt requirements/install.sh pyproject.toml
	@PYTHON="$(PYTHON)" VENV="$(AGILERL)" LISTS="agilerl.txt" bash requirements/install.sh
	@touch $@

# Nothing of the project is imported to build its pages, so nothing that it needs is installed.
$(DOCS)/.installed: requirements/docs.txt
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip install -q --no-deps --requirement requirements/docs.txt
	@touch $@

lint: $(STAMP)  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/lint-imports --no-cache

test: lint  ## Everything that is checked: lint, doctests, README snippets, unit, contract and learning tests
	$(PYTEST) -m "not slow"

test-all: lint  ## The same, a learning run of every objective, suites that start slowly, and some minutes of `soak`
	$(PYTEST)
	$(BIN)/python benchmarks/soak.py --time 12m

test-versions: $(STAMP)  ## The lowest and highest supported versions, each in an environment of its own; by hand: slow, gigabytes
	$(BIN)/python requirements/test_versions.py $(ROWS)

docs: $(DOCS)/.installed  ## The documentation as a site in site/, which needs no network; a warning or a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict
	@$(DOCS)/bin/python docs/site/check.py site

train: $(SEED_MODEL)/config.json  ## Warm-start a small policy, train it with GSPO, say where the results are
	$(BIN)/gspo-rllib train $(CONFIG)

$(SEED_MODEL)/config.json: $(call unfinished,$(SEED_MODEL)) | $(STAMP)
	$(BIN)/gspo-rllib warmstart gspo_rllib.envs:gspo_rllib/Calculator-v0 $(SEED_MODEL) --env-config operations=6 --careless

$(RECALL_MODEL)/config.json: $(call unfinished,$(RECALL_MODEL)) | $(STAMP)
	$(BIN)/gspo-rllib warmstart gspo_rllib.envs:gspo_rllib/Recall-v0 $(RECALL_MODEL) --env-config turns=60 keys=1 values=8 --careless --target 0.25

$(ARITHMETIC_MODEL)/config.json: $(call unfinished,$(ARITHMETIC_MODEL)) | $(STAMP)
	$(BIN)/gspo-rllib warmstart gspo_rllib.envs:gspo_rllib/Arithmetic-v0 $(ARITHMETIC_MODEL) --careless

bench: $(STAMP)  ## This project against its own limits; writes benchmarks/latest.json
	$(BIN)/python benchmarks/learner.py --folder models/benchmarks --record
	$(BIN)/python benchmarks/rollout.py --goals --record
	$(BIN)/python benchmarks/loop.py --folder models/benchmarks --repetitions 4 --record
	$(BIN)/python benchmarks/async_loop.py --repetitions 3 --record
	$(BIN)/python benchmarks/weight_sync.py --models dense --remote 2
	$(BIN)/python benchmarks/start_up.py --repetitions 1
	$(BIN)/python benchmarks/growth.py --repetitions 2

bench-peers: $(PEERS)/.installed $(AGILERL)/.installed $(SEED_MODEL)/config.json $(RECALL_MODEL)/config.json $(ARITHMETIC_MODEL)/config.json  ## Side by side with TRL and AgileRL, each in an environment of its own; writes benchmarks/latest.json
	$(PEERS)/bin/python benchmarks/peers_learner.py --record
	$(PEERS)/bin/python benchmarks/peers_loop.py --record
	$(PEERS)/bin/python benchmarks/peers_multi_turn.py --record --pictures docs/results
	$(PEERS)/bin/python benchmarks/peers_learning.py --record

soak: $(STAMP)  ## A fault every minute for SOAK=8h (10m, …): does anything grow, or slow down? Writes docs/results/soak.json
	$(BIN)/python benchmarks/soak.py --time $(SOAK) --json docs/results/soak.json

clean:  ## Remove the environment and every cache; models/ and results/ stay
	rm -rf $(VENV) $(PEERS) $(AGILERL) $(DOCS) .venv-trackers .venv-versions site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
