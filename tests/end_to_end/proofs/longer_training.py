"""Does a network that is trained on pseudo-labels until it learns no more pass the model that made them?

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
import io
import json
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))  # before the folders of tests that have the names of packages
sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))
from labelled_runs import write_png, write_run
from runs import rows_of
from train_proof import PER_SHARD, UNSEEN

import jobs.label
import jobs.train
from diffseg.scoring.overlap import covering, overlap
from diffseg.tiny.evaluation.tables import markdown
from diffseg.tiny.scenes.captioned import CaptionedScene, generate_captioned, visible_classes
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS
from diffseg.tiny.scenes.vocabulary import NOUNS
from pipeline.output.rows import decode_mask

FACTOR, FLAT = 4, 0.01
"""A training is flat if it gains less than `FLAT` over one with a quarter of its steps, in the mean over the seeds."""

LABELS = ("pseudo-labels", "truth")
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
        path = folder / "tars" / f"{first:06d}.tar"
        if not path.exists():  # a tar that is written again would be labelled again
            path.parent.mkdir(exist_ok=True)
            _write_tar(path, {name: scenes[name] for name in names[first : first + PER_SHARD]}, folder / "images")
    return scenes


def _write_tar(path: Path, scenes: Mapping[str, CaptionedScene], images: Path) -> None:
    """Write the images with the nouns that they show, as a field `labels`."""
    aside = path.with_suffix(".writing")
    with tarfile.open(aside, "w") as tar:
        for name, scene in scenes.items():
            nouns = [NOUNS[c] for c in visible_classes(scene.classes)]
            files = {name: (images / name).read_bytes()}
            files[Path(name).stem + ".json"] = json.dumps({"labels": nouns}).encode()
            for member, data in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    aside.rename(path)


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


def train(out: Path, model: Path, images: Path, settings: Mapping[str, Any]) -> Path:
    """Train and label `images`, or continue; return the labels."""
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    assert jobs.train.main([str(out), str(model), *flags, "--no-ray", "--predict", str(images)]) == 0
    return model / "labels"


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
    values = [run[score] for run in runs if score in run]
    if len(values) < 2:
        return "".join(f"{value:.3f}" for value in values)
    return f"{np.mean(values):.3f}: {' '.join(f'{value:.3f}' for value in values)}"


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
    own = ("--labels-field", "labels")
    runs = {
        "tiny-text, nouns of the image": (folder / "teacher" / "own", own),
        f"tiny-text, all {len(NOUNS)} nouns": (folder / "teacher" / "all", ()),
    }
    results: list[dict[str, Any]] = []
    for name, (out, flags) in runs.items():
        label(folder / "scenes" / "held-out" / "tars", out, *flags)
        scores = scores_of(out, scenes["held-out"])
        results.append({"labels": name, "target": "–", "steps": 0, "seed": 0, "scores": scores})
        print(name, scores, flush=True)
    outs = {name: folder / name for name in LABELS}
    label(folder / "scenes" / "training" / "tars", outs["pseudo-labels"], *own)
    scores = scores_of(outs["pseudo-labels"], scenes["training"])
    results.append(
        {"labels": "pseudo-labels (training scenes)", "target": "–", "steps": 0, "seed": 0, "scores": scores}
    )
    print("training scenes", scores, flush=True)
    write_run(
        outs["truth"],
        {name: scene.labels for name, scene in scenes["training"].items()},
        source=folder / "scenes" / "training" / "images",
        per_shard=PER_SHARD,
        names={name: [NOUNS[c] for c in np.unique(scene.classes)] for name, scene in scenes["training"].items()},
        vocabulary=NOUNS,
    )
    steps = options.steps
    while steps == options.steps or (steps <= options.most_steps and not are_flat(results, steps // FACTOR)):
        # All labels of a seed are trained before the next seed, so that results can be compared at any time.
        for target in options.targets:
            for seed in range(options.seeds):
                for labels in LABELS:
                    settings = {
                        "target": target,
                        "size": options.size,
                        "width": options.width,
                        "batch-size": 8,
                        "steps": steps,
                        "seed": seed,
                        "threads": options.threads,
                    }
                    model = folder / "networks" / f"{labels}-{target}-{steps}-{seed}"
                    predicted = train(outs[labels], model, folder / "scenes" / "held-out" / "images", settings)
                    scores = scores_of(predicted, scenes["held-out"])
                    results.append({"labels": labels, "target": target, "steps": steps, "seed": seed, "scores": scores})
                    (folder / "results.json").write_text(json.dumps(results, indent=1))
                    (folder / "results.md").write_text(table_of(results) + "\n")
                    print(labels, target, steps, seed, scores, flush=True)
        steps *= FACTOR
    print(table_of(results))


if __name__ == "__main__":
    main()
