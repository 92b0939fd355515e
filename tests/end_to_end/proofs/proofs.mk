# The long proofs, started by `make proof NAME=…` from the root of the repository. docs/proofs.md says what each one shows.
.PHONY: list ablation affinity chaos cluster denseclip filter full-size generated gpu image-groups launches longer-training metrics ncut-share outage photographs read-speed reference-pass reliability scale soak source-changes suite toco tools training tune-baselines weights

PROOFS := tests/end_to_end/proofs
PYTEST := $(BIN)/python -m pytest -s

list: # Show this list
	@awk -F ':.*# ' '/^[a-z-]+:.*# / {printf "  make proof NAME=%-16s %s\n", $$1, $$2}' $(PROOFS)/proofs.mk

ablation: # The worth of each setting of the embedded model (half an hour; resumes)
	$(BIN)/python -m diffseg.tiny.evaluation.ablation $(SAMPLES)

affinity: # Labels of held-out scenes with and without learned affinity and random walks (resumes)
	$(BIN)/python $(PROOFS)/affinity_proof.py --folder affinity-proof $(ARGS)

chaos: # 25 runs with random kills end in the same files as an undisturbed run (half an hour; resumes)
	$(BIN)/python $(PROOFS)/chaos.py --rounds 25 --seed 0 --folder chaos $(ARGS)

cluster: # Jobs and nodes that are killed, drained and added, Ray's autoscaler from 0 to 3 nodes and back, and Slurm
	$(PYTEST) -m cluster tests $(ARGS)

denseclip: # The recipes denseclip and maskclip beside plain, on nouns with and without training labels (resumes)
	$(BIN)/python $(PROOFS)/denseclip_proof.py --folder denseclip-proof $(ARGS)

filter: # The true IoU of the rows that `diffseg filter` keeps, on scenes labelled by tiny-text
	$(BIN)/python $(PROOFS)/filter_proof.py --folder filter-proof $(ARGS)

full-size: # One image through all of SD 1.5's 0.86 G parameters (random weights): seconds and memory
	$(PYTEST) -m full_size tests/end_to_end/test_full_size.py $(ARGS)

generated: # Networks trained on generated pairs, filtered ones, pseudo-labels and the truth, five seeds each (resumes)
	$(BIN)/python $(PROOFS)/generated_proof.py --folder generated-proof $(ARGS)

gpu: # Labels, attention maps and kernels on a GPU agree with those of a CPU (needs a GPU)
	$(PYTEST) tests/diffseg/test_devices.py tests/diffseg/attention tests/diffseg/method tests/diffseg/images tests/diffseg/model/test_compilation.py $(ARGS)

image-groups: # The cost and the sizes of the groups of 1,000,000 image files
	$(BIN)/python $(PROOFS)/image_groups.py $(ARGS)

launches: # The operations that the method sends to a GPU for a batch, counted without a GPU
	$(BIN)/python $(PROOFS)/launches.py $(ARGS)

longer-training: # Networks trained on tiny-text's labels and on the truth for longer and longer, beside tiny-text (hours; resumes)
	$(BIN)/python $(PROOFS)/longer_training.py --folder longer-training $(ARGS)

metrics: # Every panel of the Grafana dashboard has data in a real Prometheus
	$(PYTEST) --must-run metrics tests/end_to_end/test_observed.py $(ARGS)

ncut-share: # The time of a K-way normalised cut as a share of the pass of SD 1.5 (needs a GPU: ARGS="--device cuda")
	$(BIN)/python $(PROOFS)/ncut_share.py $(ARGS)

outage: # A run waits for a store that is away for a minute
	$(PYTEST) -m outage tests/end_to_end/test_stores.py $(ARGS)

photographs: # Identical masks from tars, Parquet and folders with 0 to 2 actors, over ../shared/data
	$(PYTEST) -m photographs tests/end_to_end/test_sources.py --timeout 3600 $(ARGS)

read-speed: # LabelDataset beside plain webdataset on the same files
	$(BIN)/python $(PROOFS)/read_speed.py $(ARGS)

reference-pass: # A whole pass beside google/diffseg's TensorFlow model on the same weights: CHECKOUT=… ARGS="--tensorflow … --images …"
	$(BIN)/python $(PROOFS)/reference_pass.py --checkout $(CHECKOUT) $(ARGS)

reliability: # The confidence of segments against their IoU: a table and a plot
	$(BIN)/python -m diffseg.tiny.evaluation.reliability $(SAMPLES)

scale: # The driver's costs with 20,000 shards on 100 sleeping actors, and of a resume over 20,000 records on S3
	$(BIN)/python $(PROOFS)/scale.py --shards 20000 --actors 100 $(ARGS)

soak: # An hour of labelling with flat memory, open files and threads
	$(BIN)/python $(PROOFS)/soak.py --minutes 60 --folder soak $(ARGS)

source-changes: # Twenty random changes of a folder, and 300 pairs of interleaved runs, end like a fresh run (ten minutes)
	$(BIN)/python $(PROOFS)/source_changes.py $(ARGS)

suite: # The whole test suite, five times by itself and three times beside two busy processes
	$(BIN)/python $(PROOFS)/suite.py $(ARGS)

toco: # What ToCo's contrasts change in networks that are trained on the classes of images, five seeds each (hours; resumes)
	$(BIN)/python $(PROOFS)/toco_proof.py --folder toco-proof $(ARGS)

tools: # Exports of a small run are read by SegFormer, supervision, Ultralytics, datumaro, FiftyOne and Label Studio (installs gigabytes)
	$(BIN)/python $(PROOFS)/tools.py --folder tools-proof $(ARGS)

training: # Networks trained on pseudo-labels, on the truth and on shuffled labels, five seeds each (resumes)
	$(BIN)/python $(PROOFS)/train_proof.py --folder train-proof $(ARGS)

tune-baselines: # The best settings of the baselines on validation scenes
	$(BIN)/python -m diffseg.tiny.evaluation.tune_baselines

weights: # 50 workers with 500 MB of weights in a store read one copy
	$(PYTEST) -m weights tests/end_to_end/test_weights.py $(ARGS)
