"""Are the labels worth training on? Networks trained on them, on the ground truth and on shuffled labels.

    python tests/end_to_end/proofs/train_proof.py --folder train-proof

The embedded model labels generated scenes that it was not trained on. Three copies of one small network are trained: on
those labels, on the true regions, and on the labels in another order, so that each image has those of another one. Each
labels held-out scenes and is scored, beside the embedded model's own labels of them. The command resumes after a stop.
It writes results.json and results.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))  # before the folders of tests that have the names of packages
sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))
from labelled_runs import write_png, write_run
from proof_parts import mean_and_values, train
from runs import masks_of

import jobs.label
from diffseg.scoring.overlap import covering, match_per_image, overlap
from diffseg.tiny.evaluation.tables import markdown
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS, TRAINING_SEEDS, generate_scene

SIDE = 128
UNSEEN = TRAINING_SEEDS[5_000_000:]
"""Seeds of scenes that the embedded model was not trained on: its training took the first ones of the range."""

PER_SHARD = 32
TARGETS = ("pseudo-labels", "truth", "shuffled pseudo-labels")
EMBEDDED = "the pseudo-labels' own score"
SCORES = {"covering": covering, "miou": lambda table: match_per_image(table).miou}


def make_scenes(folder: Path, seeds: Sequence[int], side: int = SIDE) -> dict[str, np.ndarray]:
    """Write images/ and truth/ unless they exist, and return the true regions by the names of the images."""
    truth = {}
    for seed in seeds:
        name = f"{seed}.png"
        if not (folder / "truth" / name).exists():
            scene = generate_scene(seed, side)
            write_png(folder / "images" / name, scene.image)
            write_png(folder / "truth" / name, scene.labels)
        with Image.open(folder / "truth" / name) as opened:
            truth[name] = np.asarray(opened).astype(np.uint16)
    return truth


def pseudo_labels(images: Path, out: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Label the images with the embedded model unless they are labelled, and return their label maps by name."""
    masks = masks_of(out)
    if set(masks) != set(names):
        words = [str(images), str(out), "--no-ray", "--device", "cpu", "--samples-per-shard", str(PER_SHARD)]
        assert jobs.label.main(words) == 0
        masks = masks_of(out)
    return masks


def scores_of(labels: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the mean of each score over the images."""
    tables = [overlap(truth[name], labels[name]) for name in truth]
    return {name: float(np.mean([score(table) for table in tables])) for name, score in SCORES.items()}


def shuffled(labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the label maps shifted by one, so that each image has that of the preceding one."""
    names = list(labels)
    return {name: labels[other] for name, other in zip(names, [names[-1], *names[:-1]], strict=True)}


def table_of(results: Mapping[str, list[dict[str, float]]]) -> str:
    """Return a Markdown table of the scores of each target: mean, standard deviation and the value of each seed."""
    rows = []
    for target, runs in results.items():
        cells = (mean_and_values([run[score] for run in runs], with_deviation=True) for score in SCORES)
        rows.append([target, *cells])
    return markdown(["trained on", "covering: mean ± deviation, each seed", "mIoU matched per image"], rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=320, help="number of images that are trained on")
    parser.add_argument("--held-out", type=int, default=48, help="number of scenes that are scored")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--size", type=int, default=64, help="side of the network's input in pixels (scenes have 128)")
    parser.add_argument("--width", type=int, default=16, help="width of the network")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder: Path = options.folder
    sets = {"training": UNSEEN[: options.images], "held-out": HELD_OUT_SEEDS[: options.held_out]}
    truth = {name: make_scenes(folder / "scenes" / name, seeds) for name, seeds in sets.items()}
    images = {name: folder / "scenes" / name / "images" for name in sets}
    pseudo = {name: pseudo_labels(images[name], folder / "pseudo-labels" / name, list(truth[name])) for name in sets}
    labels = {"truth": truth["training"], "shuffled pseudo-labels": shuffled(pseudo["training"])}
    outs = {"pseudo-labels": folder / "pseudo-labels" / "training"}
    for target, maps in labels.items():
        outs[target] = folder / target.replace(" ", "-")
        write_run(outs[target], maps, source=images["training"], per_shard=PER_SHARD)
    results = {EMBEDDED: [scores_of(pseudo["held-out"], truth["held-out"])], **{target: [] for target in TARGETS}}
    # All targets of a seed are trained before the next seed, so that results can be compared at any time.
    for seed in range(options.seeds):
        for target in TARGETS:
            model = folder / "networks" / f"{target.replace(' ', '-')}-{seed}"
            settings = {
                "size": options.size,
                "width": options.width,
                "batch-size": 8,
                "steps": options.steps,
                "seed": seed,
                "threads": options.threads,
            }
            train(outs[target], model, settings, "--predict", str(images["held-out"]))
            results[target].append(scores_of(masks_of(model / "labels"), truth["held-out"]))
            (folder / "results.json").write_text(json.dumps(results, indent=1))
            print(seed, target, results[target][-1], flush=True)
    text = table_of(results)
    (folder / "results.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
