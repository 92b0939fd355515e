"""Does a network become better than the model whose labels it learns from, if it is trained until it stops improving?

    python tests/end_to_end/proofs/longer_training.py --folder longer-training

`tiny-text` labels captioned scenes that it was not trained on, with the nouns of each image as the possible names, as
with image-level labels. One network learns from these labels and one from the true classes, for the classes and for the
segments. Each labels held-out scenes without any names and is scored, beside the labels of `tiny-text` itself with the
nouns of each image and with the whole vocabulary. The trainings are repeated from the start with `FACTOR` times the
steps until that gains less than `FLAT` everywhere, since a schedule that has ended is always flat at its end. The
command resumes after a stop, and writes results.json and results.md after each training.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))  # before the folders of tests that have the names of packages
sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))
from labelled_runs import write_png
from proof_parts import mean_and_values, train, write_tar, write_truth
from runs import rows_of
from train_proof import PER_SHARD, UNSEEN

import jobs.label
from diffseg.scoring.overlap import covering, overlap
from diffseg.tiny.evaluation.tables import markdown
from diffseg.tiny.scenes.captioned import CaptionedScene, generate_captioned
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS
from diffseg.tiny.scenes.vocabulary import NOUNS
from pipeline.output.rows import decode_mask

FACTOR, FLAT = 4, 0.01
"""A training is flat if it gains less than `FLAT` over one with a quarter of its steps, in the mean over the seeds."""

LABELS = ("pseudo-labels", "truth")
NOUNS_OF_IMAGE = ("--labels-field", "labels")
"""Flags by which the nouns of an image are the only possible names of its segments."""

SCORE_OF_TARGET = {"classes": "miou", "segments": "covering"}
"""The score by which a training of a target counts as flat."""

Scores = dict[str, float]


def make_scenes(folder: Path, seeds: Sequence[int], side: int) -> dict[str, CaptionedScene]:
    """Return the scenes by the names of their images. Write images/ and, with the nouns of each image, tars/."""
    scenes = {f"{seed}.png": generate_captioned(seed, side) for seed in seeds}
    names = list(scenes)
    for name, scene in scenes.items():
        if not (folder / "images" / name).exists():
            write_png(folder / "images" / name, scene.image)
    for first in range(0, len(names), PER_SHARD):
        chosen = {name: scenes[name] for name in names[first : first + PER_SHARD]}
        write_tar(folder / "tars" / f"{first:06d}.tar", chosen, folder / "images")
    return scenes


def label(source: Path, out: Path, *flags: str) -> None:
    """Label with `tiny-text`, unless it is done."""
    words = ["--model", "tiny-text", "--names", ",".join(NOUNS), "--no-ray", "--device", "cpu", *flags]
    assert jobs.label.main([str(source), str(out), *words]) == 0


def scores_of(out: Path, scenes: Mapping[str, CaptionedScene]) -> Scores:
    """Return the scores of a run: mean covering and, if it has classes, their mIoU and the share of right pixels."""
    rows = {f"{Path(row['key']).stem}.png": row for row in rows_of(out)}
    coverings, confusion = [], np.zeros((len(NOUNS), len(NOUNS) + 1), np.int64)  # the last column: no class
    for name, scene in scenes.items():
        labels = decode_mask(rows[name]["mask"])
        coverings.append(covering(overlap(scene.labels, labels)))
        class_of_label = np.full(np.iinfo(labels.dtype).max + 1, len(NOUNS), np.int64)
        for segment in rows[name]["segments"]:
            if segment["class_id"] is not None and segment["class_id"] > 0:
                class_of_label[segment["id"]] = segment["class_id"] - 1
        pairs = scene.classes.astype(np.int64) * confusion.shape[1] + class_of_label[labels]
        confusion += np.bincount(pairs.ravel(), minlength=confusion.size).reshape(confusion.shape)
    scores = {"covering": float(np.mean(coverings))}
    right = np.diagonal(confusion)
    if right.any():
        unions = confusion.sum(axis=1) + confusion[:, :-1].sum(axis=0) - right
        scores |= {"miou": float((right / np.maximum(unions, 1))[unions > 0].mean())}
        scores |= {"accuracy": float(right.sum() / confusion.sum())}
    return scores


def score_teacher(folder: Path, scenes: Mapping[str, Mapping[str, CaptionedScene]]) -> list[dict[str, Any]]:
    """Label both sets of scenes with `tiny-text`, and return the scores of its labels."""
    all_nouns = f"tiny-text, all {len(NOUNS)} nouns"
    runs = (
        ("tiny-text, nouns of the image", "held-out", folder / "teacher" / "own", NOUNS_OF_IMAGE),
        (all_nouns, "held-out", folder / "teacher" / "all", ()),
        ("pseudo-labels (training scenes)", "training", folder / "pseudo-labels", NOUNS_OF_IMAGE),
    )
    results: list[dict[str, Any]] = []
    for name, part, out, flags in runs:
        label(folder / "scenes" / part / "tars", out, *flags)
        scores = scores_of(out, scenes[part])
        results.append({"labels": name, "target": "–", "steps": 0, "seed": 0, "scores": scores})
        print(name, scores, flush=True)
    return results


def train_all(
    options: argparse.Namespace, steps: int, held_out: Mapping[str, CaptionedScene], results: list[dict[str, Any]]
) -> None:
    """Train all networks with this number of steps, append their scores to the results, and write these to files."""
    folder: Path = options.folder
    images = str(folder / "scenes" / "held-out" / "images")
    shared = {"size": options.size, "width": options.width, "batch-size": 8, "threads": options.threads}
    # All labels of a seed are trained before the next seed, so that results can be compared at any time.
    for target, seed, labels in product(options.targets, range(options.seeds), LABELS):
        model = folder / "networks" / f"{labels}-{target}-{steps}-{seed}"
        settings = {**shared, "target": target, "steps": steps, "seed": seed}
        train(folder / labels, model, settings, "--predict", images)
        scores = scores_of(model / "labels", held_out)
        results.append({"labels": labels, "target": target, "steps": steps, "seed": seed, "scores": scores})
        (folder / "results.json").write_text(json.dumps(results, indent=1))
        (folder / "results.md").write_text(table_of(results) + "\n")
        print(labels, target, steps, seed, scores, flush=True)


def are_flat(results: Sequence[dict[str, Any]], steps: int) -> bool:
    """Return whether the trainings with these steps gained less than `FLAT` over those with a quarter of them."""
    for target, score in SCORE_OF_TARGET.items():
        for labels in LABELS:
            values = [
                [r["scores"][score] for r in results if (r["target"], r["labels"], r["steps"]) == (target, labels, n)]
                for n in (steps // FACTOR, steps)
            ]
            if values[1] and (not values[0] or np.mean(values[1]) - np.mean(values[0]) >= FLAT):
                return False
    return True


def table_of(results: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table with the mean and the value of each seed, by target, labels and steps."""
    groups: dict[tuple[str, str, str], list[Scores]] = {}
    for result in results:
        key = (result["labels"], result["target"], f"{result['steps']:,}" if result["steps"] else "–")
        groups.setdefault(key, []).append(result["scores"])
    rows = [[*key, *(_cell(runs, score) for score in ("miou", "accuracy", "covering"))] for key, runs in groups.items()]
    return markdown(["labels by", "target", "steps", "mIoU of classes", "right pixels", "covering"], rows)


def _cell(runs: Sequence[Scores], score: str) -> str:
    return mean_and_values([run[score] for run in runs if score in run])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=512, help="number of images that are trained on")
    parser.add_argument("--held-out", type=int, default=100, help="number of scenes that are scored")
    parser.add_argument("--steps", type=int, default=500, help="steps of the first trainings")
    parser.add_argument("--most-steps", type=int, default=32_000, help="largest number of steps")
    parser.add_argument("--size", type=int, default=128, help="side of the scenes and of the network's input in pixels")
    parser.add_argument("--width", type=int, default=16, help="width of the network")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", nargs="+", default=list(SCORE_OF_TARGET), choices=list(SCORE_OF_TARGET))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder: Path = options.folder
    sets = {"training": UNSEEN[: options.images], "held-out": HELD_OUT_SEEDS[: options.held_out]}
    scenes = {name: make_scenes(folder / "scenes" / name, seeds, options.size) for name, seeds in sets.items()}
    results = score_teacher(folder, scenes)
    write_truth(folder / "truth", scenes["training"], folder / "scenes" / "training" / "images", PER_SHARD)
    steps = options.steps
    while steps == options.steps or (steps <= options.most_steps and not are_flat(results, steps // FACTOR)):
        train_all(options, steps, scenes["held-out"], results)
        steps *= FACTOR
    print(table_of(results))


if __name__ == "__main__":
    main()
