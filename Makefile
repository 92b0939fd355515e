# The commands that people run. Each makes the environment that it needs: `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported, because compiling all of them takes longer than most tests. The
# compiled files are kept even where the environment forbids it: otherwise each worker process compiles them again.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench bench-gpu evaluate-sd tiny-eval tiny-train tiny-text-train fuzz proof clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch is installed first and alone, at the version of constraints.txt. On a machine without a GPU, pip then takes a CPU
# build of that version from a configured index or wheel folder, instead of gigabytes of CUDA libraries.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -e '.[demo]'
	@touch $@

# An extra that contains another one counts as its installation too, so that `make check test` installs once.
$(VENV)/.test: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -e '.[test]'
	@touch $(VENV)/.demo $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	@touch $(VENV)/.demo $(VENV)/.test $@

demo: $(VENV)/.demo ## Label photographs and generated scenes on this machine, and draw a picture of the result
	$(BIN)/diffseg demo demo

# Three processes, because tests wait for servers and clusters more than they compute. All tests of a file run in one
# process and share its fixtures. tests/conftest.py starts the longest files first.
test: $(VENV)/.test ## Install what the tests need and run all of them
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.dev ## Run the formatter, the linter and the type checker
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev ## Apply the formatter and the fixes of the linter
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.test ## Measure speed beside the bare model, google/diffseg's formulas and a plain loop: ARGS="--parts growth"
	$(BIN)/diffseg bench $(ARGS)

# OFFLINE=1 takes PYTHON as it is, for a machine without a network: docs/performance.md lists what it needs.
bench-gpu: $(if $(OFFLINE),,$(VENV)/.demo) ## Measure SD 1.5 and SDXL (random weights) and the pipeline on a GPU in five minutes: OFFLINE=1
	$(if $(OFFLINE),$(PYTHON),$(BIN)/python) -m jobs.benchmarks.gpu $(ARGS)

evaluate-sd: $(VENV)/.demo ## Score a checkpoint by published protocols: MODEL=… DATA=… BENCHMARK=coco-stuff-27|cityscapes-27|voc|context|coco-object|ade20k
	$(BIN)/python -m jobs.benchmarks.paper $(MODEL) $(DATA) --benchmark $(or $(BENCHMARK),coco-stuff-27) $(ARGS)

# PHOTOGRAPHS names a folder of photographs with masks. HALF=held-out scores only those that no setting was chosen on.
PHOTOGRAPHS ?= $(wildcard ../shared/data)
SAMPLES = $(if $(PHOTOGRAPHS),--photographs $(PHOTOGRAPHS)) $(if $(HALF),--half $(HALF)) $(ARGS)

tiny-eval: $(VENV)/.demo ## Score the embedded models beside their baselines: PHOTOGRAPHS=… HALF=held-out
	$(BIN)/python -m diffseg.tiny.evaluation.evaluate $(SAMPLES)

tiny-train: $(VENV)/.demo ## Train the embedded model again (about three hours on one core; resumes after a stop)
	$(BIN)/python -m diffseg.tiny.recipe.train
	$(BIN)/python -m diffseg.tiny.recipe.tune --write

tiny-text-train: $(VENV)/.demo ## Train the embedded text model again (an hour and a half on one core; resumes after a stop)
	$(BIN)/python -m diffseg.tiny.recipe.train_text
	$(BIN)/python -m diffseg.tiny.recipe.tune --model diffseg/tiny/text-checkpoint --captioned --write

fuzz: $(VENV)/.test ## Label thousands of hostile shards: CASES=2000 SEED=0
	$(BIN)/python tests/end_to_end/proofs/fuzz.py --cases $(or $(CASES),2000) --seed $(or $(SEED),0)

proof: $(VENV)/.test ## Run a long proof: NAME=chaos (docs/proofs.md describes each; without NAME, lists them)
	@$(MAKE) --no-print-directory -f tests/end_to_end/proofs/proofs.mk BIN=$(BIN) SAMPLES="$(SAMPLES)" $(or $(NAME),list)

clean: ## Remove the environment, caches and the demo
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
