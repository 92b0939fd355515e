# Everything a person runs, each with its own environment made on the way: `make help`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: all of them would take longer than most of the tests. What was
# compiled is kept, whatever the container says: else each worker's process would compile a thousand modules anew.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz check format tiny-eval ablation reliability tune-baselines tiny-train tiny-text-train evaluate-sd full-size photographs bench bench-gpu chaos cluster outage metrics scale weights soak train-proof affinity-proof read-speed clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch is installed by itself and first, at the version of constraints.txt: on a machine without a GPU a CPU build at
# that version (from a wheel folder or an index that pip is set up with) is taken instead of gigabytes of CUDA.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -e '.[demo]'
	@touch $@

# What holds another extra counts as its installation too: `make check test` installs once.
$(VENV)/.test: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -e '.[test]'
	@touch $(VENV)/.demo $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	@touch $(VENV)/.demo $(VENV)/.test $@

demo: $(VENV)/.demo ## Label photographs and generated scenes on this machine; ends with a picture to open
	$(BIN)/diffseg demo demo

# Two processes: tests wait for servers and clusters more than they compute. A file stays in one, with what it shares;
# files come in the order of tests/conftest.py, the longest first, and not by their number of tests.
test: $(VENV)/.test ## Install what the tests need and run them all
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

fuzz: $(VENV)/.test ## Feed thousands of hostile shards to the pipeline: CASES=2000 SEED=0
	$(BIN)/python tests/end_to_end/proofs/fuzz.py --cases $(or $(CASES),2000) --seed $(or $(SEED),0)

check: $(VENV)/.dev ## Formatter, linter and type checker
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev ## Apply the formatter and the linter's fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A folder of photographs with masks, where there is one; which half of them: HALF=held-out scores those that nobody looked at.
PHOTOGRAPHS ?= $(wildcard ../shared/data)
SAMPLES = $(if $(PHOTOGRAPHS),--photographs $(PHOTOGRAPHS)) $(if $(HALF),--half $(HALF)) $(ARGS)

tiny-eval: $(VENV)/.demo ## Score the embedded models, masks and names, beside what they must beat; photographs too: HALF=held-out
	$(BIN)/python -m diffseg.tiny.evaluation.evaluate $(SAMPLES)

ablation: $(VENV)/.demo ## What each setting is worth: a row each beside the default (half an hour; goes on where it was stopped)
	$(BIN)/python -m diffseg.tiny.evaluation.ablation $(SAMPLES)

reliability: $(VENV)/.demo ## Whether confidence says how good segments are: a table, and a plot in tiny-eval/
	$(BIN)/python -m diffseg.tiny.evaluation.reliability $(SAMPLES)

tune-baselines: $(VENV)/.demo ## Find the settings of the baselines again, on validation scenes
	$(BIN)/python -m diffseg.tiny.evaluation.tune_baselines

tiny-train: $(VENV)/.demo ## Train the embedded model again (about three hours on one core; resumes where it was stopped)
	$(BIN)/python -m diffseg.tiny.recipe.train
	$(BIN)/python -m diffseg.tiny.recipe.tune --write

tiny-text-train: $(VENV)/.demo ## Train the embedded model that reads text again (about an hour on one core; resumes where it was stopped)
	$(BIN)/python -m diffseg.tiny.recipe.train_text
	$(BIN)/python -m diffseg.tiny.recipe.tune --model diffseg/tiny/text-checkpoint --captioned --write

evaluate-sd: $(VENV)/.demo ## A checkpoint by the protocol of DiffSeg's paper: MODEL=… DATA=… BENCHMARK=coco-stuff-27|cityscapes-27
	$(BIN)/python -m jobs.benchmarks.paper $(MODEL) $(DATA) --benchmark $(or $(BENCHMARK),coco-stuff-27) $(ARGS)

full-size: $(VENV)/.test ## Label with all of SD 1.5's 0.86 G parameters (random weights): seconds and memory
	DIFFSEG_FULL_SIZE=1 $(BIN)/python -m pytest -s tests/end_to_end/test_full_size.py

photographs: $(VENV)/.test ## Identical masks from tars, Parquet and folders, 0 to 2 actors, over ../shared/data if it is there
	DIFFSEG_PHOTOGRAPHS=1 $(BIN)/python -m pytest -s tests/end_to_end/test_sources.py -k all_photographs --timeout 3600

bench: $(VENV)/.test ## Speed beside the bare model, google/diffseg's formulas and a plain loop; growth: ARGS="--parts growth"
	$(BIN)/diffseg bench $(ARGS)

bench-gpu: $(VENV)/.test ## The same on a GPU: all of SD 1.5 (random weights) in half precision, batches of 1 to 32
	$(BIN)/python -m pytest tests/diffseg/test_devices.py -k gpu
	$(BIN)/diffseg bench --device cuda --parts whole --models sd15-random --dtypes bfloat16,float16 --batch-sizes 1,8,16,32 $(ARGS)

chaos: $(VENV)/.test ## Kill runs in every way, 25 rounds (half an hour; goes on where it was stopped): the same tree each time
	$(BIN)/python tests/end_to_end/proofs/chaos.py --rounds 25 --seed 0 --folder chaos

cluster: $(VENV)/.test ## Jobs and nodes that are killed, drained and joined, and Ray's autoscaler from 0 to 3 nodes and back
	DIFFSEG_CLUSTER=1 $(BIN)/python -m pytest tests/end_to_end/test_submit.py tests/end_to_end/test_elastic.py

outage: $(VENV)/.test ## A store that is away for a minute in mid-run is waited for
	DIFFSEG_OUTAGE=60 $(BIN)/python -m pytest -s tests/end_to_end/test_stores.py -k away

scale: $(VENV)/.test ## 20,000 shards on 100 sleeping actors, and a resume over 20,000 records on S3: the driver's costs
	$(BIN)/python tests/end_to_end/proofs/scale.py --shards 20000 --actors 100

metrics: $(VENV)/.test ## A run scraped by a real Prometheus (apt-get install prometheus): every panel of the dashboard has data
	@command -v "$${DIFFSEG_PROMETHEUS:-prometheus}" > /dev/null || { echo "no prometheus: apt-get install prometheus, or name one in DIFFSEG_PROMETHEUS"; exit 1; }
	$(BIN)/python -m pytest -s tests/end_to_end/test_observed.py

weights: $(VENV)/.test ## 50 workers start on one node with 500 MB of weights in a store: one copy, each block asked for once
	DIFFSEG_WORKERS=50 DIFFSEG_MEGABYTES=500 $(BIN)/python -m pytest -s tests/end_to_end/test_weights.py -k one_copy

soak: $(VENV)/.test ## Label for an hour without a pause: memory, open files and threads stay flat
	$(BIN)/python tests/end_to_end/proofs/soak.py --minutes 60 --folder soak

train-proof: $(VENV)/.test ## Networks trained on pseudo-labels, on the truth and on shuffled labels, five seeds each (goes on where it was stopped)
	$(BIN)/python tests/end_to_end/proofs/train_proof.py --folder train-proof $(ARGS)

affinity-proof: $(VENV)/.test ## Labels of held-out scenes with learned affinity and random walks, and without (goes on where it was stopped)
	$(BIN)/python tests/end_to_end/proofs/affinity_proof.py --folder affinity-proof $(ARGS)

read-speed: $(VENV)/.test ## LabelDataset beside plain webdataset on the same photographs and label maps
	$(BIN)/python tests/end_to_end/proofs/read_speed.py $(ARGS)

clean: ## Remove the environment, caches and the demo
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
