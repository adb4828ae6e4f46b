# Every target installs what it needs into .venv the first time; a second call installs nothing.
#   make demo        compare the method with data parallelism over a slow link inside this machine
#   make test        run all tests
#   make check       check format, lint and types
#   make bench       measure speed, which no test does
#   make lab         measure the main result on test hosts with slow links: takes hours; needs root
#                    for the host that stutters
#   make analysis    draw the notebooks; URI=sqlite:///mlflow.db STUDY=demo: from another store
#   make predicted   predict the throughput tables in analysis/lab_first with the planner
#   make scale       simulate the sweep that analysis/7_scale.ipynb draws: five minutes
#   make recorded    train the runs in analysis/store again (ten minutes) and draw the notebooks
#   make ui          serve MLflow's pages of the recorded runs; STUDY=demo: of one study
#   make clean       remove the environment; make clean-cache: the built Horovod and rendered images
# Variables: PYTHON is the interpreter for .venv; EXTRAS=tests,analysis,gpu adds NVIDIA's gauges;
# WORKERS is the number of processes that run tests; JOBS is the number of compilers, 2 GB each, that
# build Horovod the first time. PYTHON, EXTRAS and the variables of Horovod's build stay as they were
# given until others are given, which installs again.

JOBS ?= 2
PORT ?= 5000
WORKERS ?= 2

BIN := .venv/bin
STAMP := .venv/.stamp
INSTALL := pyproject.toml install/install.sh install/build.txt install/constraints.txt install/horovod.py
# Those that Horovod reads only when it runs are not among them.
OF_BUILD := HOROVOD_ALLOW_% HOROVOD_BUILD_% HOROVOD_CPU_% HOROVOD_CUDA_% HOROVOD_DEBUG HOROVOD_GPU% \
	HOROVOD_MPICXX_% HOROVOD_NCCL_% HOROVOD_NVTX_% HOROVOD_ROCM_% HOROVOD_WITH%

.PHONY: setup demo test check bench lab analysis recorded predicted scale ui clean clean-cache again
.DELETE_ON_ERROR:

define DEFAULTS
PYTHON ?= python3
EXTRAS ?= tests,analysis
endef

# The stamp holds what the set-up was made with, as lines of a makefile: they apply where nothing
# else is given now. A call without any would otherwise install the defaults over it.
MADE_WITH := $(or $(file <$(STAMP)),$(DEFAULTS))
$(eval $(MADE_WITH))
NAMES := PYTHON EXTRAS $(sort $(filter $(OF_BUILD),$(.VARIABLES)))
export $(filter HOROVOD_%,$(NAMES))

ifneq ($(strip $(MADE_WITH)),$(strip $(foreach name,$(NAMES),$(name) ?= $($(name)))))
$(STAMP): again
endif

setup: $(STAMP)

$(STAMP): $(INSTALL)
	EXTRAS=$(EXTRAS) JOBS=$(JOBS) install/install.sh $(PYTHON) .venv
	@printf '%s\n' $(foreach name,$(NAMES),'$(name) ?= $($(name))') > $@

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

# No target removes runs and their records (runs/, mlflow.db): they are results.
clean:
	rm -rf .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

clean-cache:
	rm -rf .cache
