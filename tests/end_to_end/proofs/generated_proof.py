"""Are generated images worth training on? Networks trained on them, on the filtered ones, on pseudo-labels and truth.

    python tests/end_to_end/proofs/generated_proof.py --folder generated-proof

`diffseg generate` makes pairs from the captions of rendered scenes, and `diffseg filter` scores them. The same model
labels the scenes themselves, with the nouns of each scene as the possible names; their true classes are known. Copies
of one small network are trained on each, label held-out rendered scenes, and are scored by their semantic mIoU. Each
step is a command of the program. The proof resumes after a stop. It writes results.json and results.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))  # before the folders of tests that have the names of packages
from labelled_runs import write_png
from proof_parts import flags_of, train, write_tar, write_truth
from train_proof import UNSEEN

import jobs.evaluate
import jobs.filter
import jobs.generate
import jobs.label
from diffseg.tiny.evaluation.tables import markdown
from diffseg.tiny.scenes.captioned import CaptionedScene, generate_captioned
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS
from diffseg.tiny.scenes.vocabulary import NOUNS

PER_SHARD = 16
TARGETS = ("generated", "generated, filtered", "pseudo-labels", "truth")


def make_scenes(folder: Path, seeds: Sequence[int], count: int, side: int) -> dict[str, CaptionedScene]:
    """Return the first scenes that have a caption, by the names of their images, which are written into images/.

    truth/ receives label maps in which the first noun is 1, and scenes.tar the images with the nouns of each.
    """
    drawn = ((f"{seed}.png", generate_captioned(seed, side)) for seed in seeds)
    scenes: dict[str, CaptionedScene] = {}
    while len(scenes) < count:
        name, scene = next(drawn)
        if scene.caption.classes:
            scenes[name] = scene
            write_png(folder / "images" / name, scene.image)
            write_png(folder / "truth" / name, scene.classes + 1)
    write_tar(folder / "scenes.tar", scenes, folder / "images")
    return scenes


def write_prompts(path: Path, scenes: Mapping[str, CaptionedScene]) -> None:
    """Write the captions of scenes as PROMPTS of `diffseg generate`."""
    lines = [
        {"prompt": scene.caption.text, "classes": [NOUNS[c] for c in scene.caption.classes], "key": Path(name).stem}
        for name, scene in scenes.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_runs(options: argparse.Namespace) -> None:
    """Make the runs that networks are trained on, and the held-out scenes. All commands resume."""
    folder: Path = options.folder
    scenes = make_scenes(folder / "training", UNSEEN, options.images, options.side)
    make_scenes(folder / "held-out", HELD_OUT_SEEDS, options.held_out, options.side)
    vocabulary, shards = ",".join(NOUNS), str(PER_SHARD)
    images = folder / "training" / "images"
    if not (folder / "truth" / "run.json").exists():
        write_truth(folder / "truth", scenes, images, PER_SHARD)
    write_prompts(folder / "prompts.jsonl", scenes)
    generated = ["--names", vocabulary, "--guidance", str(options.guidance), "--steps", str(options.sampling_steps)]
    generated += ["--size", str(options.side), "--images-per-shard", shards, "--no-ray"]
    run(jobs.generate, str(folder / "prompts.jsonl"), str(folder / "generated"), *generated)
    pseudo = ["--model", "tiny-text", "--names", vocabulary, "--labels-field", "labels"]
    pseudo += ["--samples-per-shard", shards, "--device", "cpu", "--no-ray"]
    run(jobs.label, str(folder / "training" / "scenes.tar"), str(folder / "pseudo-labels"), *pseudo)
    scoring = {"size": options.size, "width": options.width, "steps": options.fold_steps, "folds": options.folds}
    scoring |= {"keep": options.keep, "threads": options.threads}
    run(jobs.filter, str(folder / "generated"), *flags_of(scoring), "--no-ray")


def run(command: ModuleType, *words: str) -> None:
    """Run a command of the program in this process; it must succeed."""
    code = command.main(list(words))
    assert code == 0, (words, code)


def score(options: argparse.Namespace, target: str, seed: int) -> float:
    """Train a network on a target with a seed, and return its semantic mIoU on the held-out scenes."""
    folder: Path = options.folder
    filtered = target == "generated, filtered"
    model = folder / "networks" / f"{target.replace(', ', '-')}-{seed}"
    settings = {"target": "classes", "size": options.size, "width": options.width, "steps": options.steps}
    settings |= {"threads": options.threads, "seed": seed, "predict": folder / "held-out" / "images"}
    out = folder / ("generated" if filtered else target)
    train(out, model, settings, *(["--filter"] if filtered else []))
    classes = json.dumps({noun: index + 1 for index, noun in enumerate(NOUNS)})
    truth = ["--classes", classes, "--ignore", "", "--baseline-images", "0", "--processes", "1"]
    run(jobs.evaluate, str(model / "labels"), str(folder / "held-out" / "truth"), *truth)
    return json.loads((model / "labels" / "report" / "scores.json").read_text())["named"]["miou"]["mean"]


def table_of(results: Mapping[str, Sequence[float]]) -> str:
    """Return a Markdown table of the scores of each target: mean, standard deviation and the value of each seed."""
    rows = []
    for target, values in results.items():
        spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        rows.append([target, f"{np.mean(values):.3f}{spread}", " ".join(f"{value:.3f}" for value in values)])
    return markdown(["trained on", "semantic mIoU: mean ± deviation", "each seed"], rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=320, help="number of pairs that are trained on")
    parser.add_argument("--held-out", type=int, default=60, help="number of rendered scenes that are scored")
    parser.add_argument("--side", type=int, default=256, help="side of all images in pixels")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--sampling-steps", type=int, default=25, help="steps of the generation")
    parser.add_argument("--steps", type=int, default=800, help="steps of each network")
    parser.add_argument("--size", type=int, default=128, help="side of the network's input in pixels")
    parser.add_argument("--width", type=int, default=16, help="width of the network")
    parser.add_argument("--folds", type=int, default=4, help="parts of the filter's cross-validation")
    parser.add_argument("--fold-steps", type=int, default=300, help="steps of each network of the filter")
    parser.add_argument("--keep", type=float, default=0.7, help="share of the generated pairs that the filter keeps")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    make_runs(options)
    path = options.folder / "results.json"
    results: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {name: [] for name in TARGETS}
    # All targets of a seed are trained before the next seed, so that results can be compared at any time.
    for seed in range(options.seeds):
        for target in TARGETS:
            if len(results[target]) <= seed:
                results[target].append(score(options, target, seed))
                path.write_text(json.dumps(results, indent=1))
                print(seed, target, results[target][-1], flush=True)
    text = table_of(results)
    (options.folder / "results.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
