# One name, one thing. Every target does its own set-up, once; a second call installs nothing.
#   make demo    the method against data parallelism over a slow link of this machine's own
#   make test    every test
#   make check   format, lint, types
#   make bench   speed, which is measured and not tested
#   make lab     the headline on test hosts with slow links: hours; root, for the host that stutters
#   make analysis  draws the notebooks; URI=sqlite:///mlflow.db STUDY=demo: of another store
#   make predicted  has the planner predict the throughput tables in analysis/lab_first
#   make scale     simulates the sweep that analysis/7_scale.ipynb draws: five minutes
#   make recorded  trains what analysis/store holds anew (ten minutes), and draws the notebooks
#   make ui      MLflow's pages of the runs so far; STUDY=demo: of one study
#   make clean   undo the set-up; make clean-cache also forgets the built Horovod and rendered images
# PYTHON is what .venv is made from; EXTRAS=tests,analysis,gpu adds NVIDIA's gauges; WORKERS share the
# tests; JOBS compilers,
# 2 GB each, build Horovod the first time.

PYTHON ?= python3
EXTRAS ?= tests,analysis
JOBS ?= 2
PORT ?= 5000
WORKERS ?= 2

BIN := .venv/bin
STAMP := .venv/.stamp
INSTALL := pyproject.toml install/install.sh install/build.txt install/constraints.txt install/horovod.py

.PHONY: setup demo test check bench lab analysis recorded predicted scale ui clean clean-cache
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): $(INSTALL)
	EXTRAS=$(EXTRAS) JOBS=$(JOBS) install/install.sh $(PYTHON) .venv
	@touch $@

demo: $(STAMP)
	$(BIN)/harness demo

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS)

check: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

lab: $(STAMP)
	$(BIN)/python -m benchmarks.lab

analysis: $(STAMP)
	$(BIN)/python -m analysis.run $(if $(URI),--uri $(URI)) $(if $(STUDY),--study $(STUDY))

scale: $(STAMP)
	$(BIN)/python -m analysis.sweep

predicted: $(STAMP)
	$(BIN)/python -m analysis.predicted

recorded: $(STAMP)
	$(BIN)/python -m analysis.record
	$(BIN)/python -m analysis.run

ui: $(STAMP)
	$(BIN)/harness ui --port $(PORT) $(if $(STUDY),--study $(STUDY))

# Runs and their records (runs/, mlflow.db) are results: no target removes them.
clean:
	rm -rf .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

clean-cache:
	rm -rf .cache
