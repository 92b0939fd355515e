"""How well do the recipes denseclip and maskclip label nouns with and without training labels?

    python tests/end_to_end/proofs/denseclip_proof.py --folder denseclip-proof

Captioned scenes have the true classes of 14 nouns, and the pixels of four others are ignored. Networks of the recipes
plain, denseclip and maskclip are trained on them with the text encoder of tiny-text. A second maskclip is trained on
the labels that the first gives to the same images with all 18 nouns as names (self-training). Each network labels
held-out scenes three times. With the 14 nouns as names, the score is their semantic mIoU, without any matching, over
the pixels of these nouns. With all 18 (plain always has its 14), the scores are the mIoU of the 14 and that of the
four, over all pixels. With the four, the score is the share of the pixels of each that is named correctly; chance is a
quarter.

The command resumes after a stop, and writes results.json and results.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))  # before the folders of tests that have the names of packages
sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))
from labelled_runs import write_png, write_run
from proof_parts import mean_and_values, train
from runs import rows_of

import jobs.label
from diffseg.tiny.evaluation.tables import markdown
from diffseg.tiny.scenes.captioned import generate_captioned
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS, TRAINING_SEEDS
from diffseg.tiny.scenes.vocabulary import NOUNS
from pipeline.output.rows import decode_mask

UNSEEN = ("water", "road", "green bush", "purple star")
"""Nouns without training labels, chosen before anything was trained: two grounds and two objects, and no word of them
is in another noun."""

SEEN = tuple(noun for noun in NOUNS if noun not in UNSEEN)
SEEDS = TRAINING_SEEDS[6_000_000:]
"""Seeds of scenes that tiny-text was not trained on."""

SECOND = "maskclip, second round"
RECIPES = ("plain", "denseclip", "maskclip", SECOND)
SCORES = ("asked for 14: mIoU", "for 18: mIoU of the 14", "for 18: mIoU of the 4", "for 4: accuracy")


def make_scenes(folder: Path, seeds: Sequence[int], side: int) -> dict[str, np.ndarray]:
    """Write images/ unless they exist, and return the nouns of the pixels by the names of the images."""
    truth = {}
    for seed in seeds:
        scene = generate_captioned(seed, side)
        truth[f"{seed}.png"] = scene.classes
        if not (folder / f"{seed}.png").exists():
            write_png(folder / f"{seed}.png", scene.image)
    return truth


def write_truth(out: Path, truth: dict[str, np.ndarray], images: Path) -> None:
    """Write a run with the true classes of the seen nouns; other segments have no name."""
    labels: dict[str, np.ndarray | None] = {}
    names = {}
    for key, classes in truth.items():
        present, segments = np.unique(classes, return_inverse=True)
        labels[key] = segments.reshape(classes.shape).astype(np.uint16)
        names[key] = [NOUNS[noun] if NOUNS[noun] in SEEN else None for noun in present]
    write_run(out, labels, source=images, per_shard=32, names=names, vocabulary=SEEN)


def label(images: Path, out: Path, model: Path, names: Sequence[str]) -> None:
    """Label images with a trained network and these names; without names, with those of its training."""
    given = ["--names", ",".join(names)] if names else []
    words = [str(images), str(out), "--no-ray", "--device", "cpu", "--network", str(model), *given]
    assert jobs.label.main(words) == 0


def confusion(out: Path, truth: dict[str, np.ndarray]) -> np.ndarray:
    """Return how many pixels of each true noun have each predicted noun; the last column is the background."""
    number = {noun: index for index, noun in enumerate(NOUNS)}
    counts = np.zeros((len(NOUNS), len(NOUNS) + 1), np.int64)
    for row in rows_of(out):
        table = np.array([number.get(segment["name"], len(NOUNS)) for segment in row["segments"]])
        np.add.at(counts, (truth[row["key"]], table[decode_mask(row["mask"])]), 1)
    return counts


def scores_of(model: Path, images: Path, truth: dict[str, np.ndarray], *, takes_names: bool) -> list[float | None]:
    """Label held-out scenes, and return the value of each of SCORES."""
    seen, unseen = ([NOUNS.index(noun) for noun in nouns] for nouns in (SEEN, UNSEEN))
    label(images, model / "seen", model, SEEN if takes_names else ())
    alone = confusion(model / "seen", truth)
    among_seen = float(ious(np.where(np.isin(range(len(NOUNS)), seen)[:, None], alone, 0))[seen].mean())
    if takes_names:
        label(images, model / "all", model, NOUNS)
    found = ious(confusion(model / "all", truth) if takes_names else alone)
    scores: list[float | None] = [among_seen, float(found[seen].mean()), float(found[unseen].mean())]
    if not takes_names:
        return [*scores, None]
    label(images, model / "unseen", model, UNSEEN)
    of_unseen = confusion(model / "unseen", truth)[unseen]
    return [*scores, float((of_unseen[range(len(unseen)), unseen] / of_unseen.sum(axis=1)).mean())]


def ious(counts: np.ndarray) -> np.ndarray:
    """Return the IoU of each noun from the numbers of pixels by true and predicted noun."""
    both = np.diag(counts)
    return both / np.maximum(counts.sum(axis=1) + counts.sum(axis=0)[:-1] - both, 1)


def table_of(results: dict[str, list[list[float | None]]]) -> str:
    """Return a Markdown table: the mean of each score, and the value of each seed."""
    rows = []
    for recipe, runs in results.items():
        columns = [[value for value in values if value is not None] for values in zip(*runs, strict=True)]
        rows.append([recipe, *map(mean_and_values, columns)])
    return markdown(["recipe", *SCORES], rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=320, help="number of scenes that are trained on")
    parser.add_argument("--held-out", type=int, default=64, help="number of scenes that are scored")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--side", type=int, default=64, help="side of the scenes and of the networks' input in pixels")
    parser.add_argument("--width", type=int, default=16, help="width of the networks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder: Path = options.folder.resolve()
    images = {name: folder / name for name in ("training", "held-out")}
    truth = make_scenes(images["training"], SEEDS[: options.images], options.side)
    held_out = make_scenes(images["held-out"], HELD_OUT_SEEDS[: options.held_out], options.side)
    write_truth(folder / "truth", truth, images["training"])
    results: dict[str, list[list[float | None]]] = {recipe: [] for recipe in RECIPES}
    # All recipes of a seed are trained before the next seed, so that results can be compared at any time.
    for seed in range(options.seeds):
        for recipe in RECIPES:
            out, model = folder / "truth", folder / f"{recipe.replace(', ', '-').replace(' ', '-')}-{seed}"
            if recipe == SECOND:
                out = folder / f"labels-{seed}"
                label(images["training"], out, folder / f"maskclip-{seed}", NOUNS)
            settings = {"size": options.side, "width": options.width, "steps": options.steps, "seed": seed}
            settings |= {"threads": options.threads, "target": "classes"}
            if recipe != "plain":
                settings |= {"recipe": recipe.partition(",")[0], "text-model": "tiny-text"}
            train(out, model, settings)
            results[recipe].append(scores_of(model, images["held-out"], held_out, takes_names=recipe != "plain"))
            (folder / "results.json").write_text(json.dumps(results, indent=1))
            print(seed, recipe, results[recipe][-1], flush=True)
    text = table_of({recipe: runs for recipe, runs in results.items() if runs})
    (folder / "results.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
