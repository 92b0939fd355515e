"""What do the contrasts of ToCo change? Networks trained on the classes of images alone, with and without each of them.

    python tests/end_to_end/proofs/toco_proof.py --folder toco-proof

The images are captioned scenes, the kind that tiny-text was trained on. Their ten kinds of objects are the classes, and
all grounds are background. The label maps of the run that is trained on say which objects an image has, but not where:
the objects are bands of equal width. For each seed four networks are trained by the recipe toco, with neither contrast,
with patch token contrast, with class token contrast, and with both. They are scored on scenes that no network has seen,
by the mIoU of their classes over all pixels and by the mean |cosine| of their final tokens. Chance is the better of a
constant background and classes drawn at random. The command resumes after a stop. It writes results.json and
results.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))  # before the folders of tests that have the names of packages
from labelled_runs import write_png, write_run
from proof_parts import mean_and_values, train

from diffseg.segmentation import BACKGROUND
from diffseg.tiny.evaluation.tables import markdown
from diffseg.tiny.scenes.captioned import generate_captioned, visible_classes
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS, TRAINING_SEEDS
from diffseg.tiny.scenes.vocabulary import NOUNS, OBJECTS, STUFF
from pipeline.networks.files import load_network
from pipeline.networks.vit import ViTSegmenter
from pipeline.storage import Storage
from pipeline.training.recipes.toco import mean_similarity

VARIANTS = {"neither": (0.0, 0.0), "PTC": (0.2, 0.0), "CTC": (0.0, 0.5), "PTC and CTC": (0.2, 0.5)}
"""Weights of patch token contrast and of class token contrast by the name of a variant."""

SCORES = {"miou": "mIoU", "similarity": "mean \\|cos\\| of tokens"}
PER_SHARD = 32
WIDTH = 64
"""Channels of the transformer."""

NETWORK = {"model_type": "vit", "patch_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2}


def classes_of(nouns: np.ndarray) -> np.ndarray:
    """Return the class of each pixel from its index in `NOUNS`: 0 for all grounds, and 1, 2, … for the objects."""
    return np.maximum(nouns.astype(np.int64) - len(STUFF) + 1, 0)


def bands(count: int, side: int) -> np.ndarray:
    """Return a label map of `count` vertical bands, uint16 [side, side], which do not depend on the image."""
    return np.repeat((np.arange(side) * count // side)[None], side, axis=0).astype(np.uint16)


def training_run(folder: Path, seeds: Sequence[int], side: int) -> None:
    """Write images and OUT of a run whose label maps hold the names of the objects, unless they exist."""
    if (folder / "done").exists():
        return
    labels: dict[str, np.ndarray | None] = {}
    names: dict[str, Sequence[str | None]] = {}
    for seed in seeds:
        scene, key = generate_captioned(seed, side), f"{seed}.png"
        write_png(folder / "images" / key, scene.image)
        names[key] = [BACKGROUND, *(NOUNS[noun] for noun in visible_classes(scene.classes) if noun >= len(STUFF))]
        labels[key] = bands(len(names[key]), side)
    write_run(folder / "out", labels, source=folder / "images", per_shard=PER_SHARD, names=names, vocabulary=OBJECTS)
    (folder / "done").touch()


def held_out(seeds: Sequence[int], side: int) -> tuple[Tensor, np.ndarray]:
    """Return images, float32 [B, 3, side, side] in [−1, 1], and the classes of their pixels, int64 [B, side, side]."""
    scenes = [generate_captioned(seed, side) for seed in seeds]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    return images.float() / 127.5 - 1, np.stack([classes_of(scene.classes) for scene in scenes])


def miou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean IoU over the classes that the truth has, over all pixels of all images."""
    classes = len(OBJECTS) + 1
    table = np.bincount((truth * classes + predicted).ravel(), minlength=classes**2).reshape(classes, classes)
    union = table.sum(0) + table.sum(1) - table.diagonal()
    return float((table.diagonal() / union.clip(1))[table.sum(1) > 0].mean())


@torch.inference_mode()
def scores_of(model: Path, images: Tensor, truth: np.ndarray) -> dict[str, float]:
    """Return the scores of a trained network."""
    network, _ = load_network(Storage(url=str(model)))
    assert isinstance(network, ViTSegmenter)
    predicted, similarities = [], []
    for batch in images.split(16):
        final = network.encoder(batch).final
        scores = F.interpolate(network.decoder(final), images.shape[2:], mode="bilinear")
        predicted.append(scores.argmax(dim=1))
        similarities += [float(mean_similarity(tokens[None])) for tokens in final]
    return {"miou": miou(torch.cat(predicted).numpy(), truth), "similarity": float(np.mean(similarities))}


def table_of(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return a Markdown table of the scores of each variant: mean, standard deviation and the value of each seed."""
    rows = []
    for variant, runs in results.items():
        values = ([run[score] for run in runs if score in run] for score in SCORES)
        rows.append([variant, *(mean_and_values(each, with_deviation=True) for each in values)])
    return markdown(["trained with", *SCORES.values()], rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=512, help="number of images that are trained on")
    parser.add_argument("--held-out", type=int, default=128, help="number of scenes that are scored")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    training_run(folder / "training", TRAINING_SEEDS[: options.images], options.size)
    images, truth = held_out(HELD_OUT_SEEDS[: options.held_out], options.size)
    backbone = {**NETWORK, "image_size": options.size, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
    (folder / "backbone.json").write_text(json.dumps(backbone))
    random = np.random.default_rng(0).integers(len(OBJECTS) + 1, size=truth.shape)
    chance = max(miou(np.zeros_like(truth), truth), miou(random, truth))
    results: dict[str, list[dict[str, float]]] = {"*chance*": [{"miou": chance}], **{name: [] for name in VARIANTS}}
    # All variants of a seed are trained before the next seed, so that results can be compared at any time.
    for seed in range(options.seeds):
        for variant, (ptc, ctc) in VARIANTS.items():
            model = folder / "networks" / f"{variant.replace(' ', '-')}-{seed}"
            settings: dict[str, object] = {"recipe": "toco", "target": "classes", "network": "vit"}
            settings |= {"backbone": folder / "backbone.json", "ptc-weight": ptc, "ctc-weight": ctc}
            settings |= {"size": options.size, "batch-size": options.batch_size, "steps": options.steps}
            settings |= {"learning-rate": options.learning_rate, "seed": seed, "threads": options.threads}
            train(folder / "training" / "out", model, settings)
            results[variant].append(scores_of(model, images, truth))
            (folder / "results.json").write_text(json.dumps(results, indent=1))
            print(seed, variant, results[variant][-1], flush=True)
    text = table_of(results)
    (folder / "results.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
