"""What do learned affinity and random walks gain? Labels of held-out scenes with each and without.

    python tests/end_to_end/proofs/affinity_proof.py --folder affinity-proof

The embedded model labels generated scenes, `diffseg fit` learns from these labels without any ground truth, and each
method labels held-out scenes, which are scored. It resumes after a stop and writes results.json and results.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from runs import masks_of
from train_proof import UNSEEN, make_scenes, pseudo_labels, scores_of

import jobs.fit
import jobs.label
from diffseg.tiny.evaluation.tables import markdown
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS

METHODS = {
    "diffseg": (),
    "diffseg,par": (),
    "diffseg,walk": (),
    "diffseg,walk,par": (),
    "affinity,diffseg": ("heads",),
    "affinity,diffseg,par": ("heads",),
    "diffseg,walk, learned": ("features",),
    "diffseg,walk,par, learned": ("features",),
}
"""The kinds of affinity that a method is given, by its name, which starts with its stages."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=96, help="number of images that are learned from")
    parser.add_argument("--held-out", type=int, default=60, help="number of scenes that are scored")
    parser.add_argument("--side", type=int, default=256, help="side of the scenes in pixels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder: Path = options.folder
    sets = {"training": UNSEEN[: options.images], "held-out": HELD_OUT_SEEDS[: options.held_out]}
    truth = {name: make_scenes(folder / "scenes" / name, seeds, options.side) for name, seeds in sets.items()}
    images = {name: folder / "scenes" / name / "images" for name in sets}
    labels = folder / "pseudo-labels"
    pseudo_labels(images["training"], labels, list(truth["training"]))
    auc = {}
    for kind in ("heads", "features"):
        state = folder / f"{kind}.safetensors"
        assert jobs.fit.main([kind, str(labels), str(state), "--images", str(options.images), "--no-ray"]) == 0
        auc[kind] = json.loads(Path(f"{state}.json").read_text())["auc"]
    results = {}
    for name, kinds in METHODS.items():
        out = folder / "labels" / name.replace(", ", "-").replace(",", "-")
        words = [str(images["held-out"]), str(out), "--no-ray", "--method", name.partition(", ")[0]]
        words += [word for kind in kinds for word in ("--affinity", str(folder / f"{kind}.safetensors"))]
        assert jobs.label.main(words) == 0
        results[name] = scores_of(masks_of(out), truth["held-out"])
    (folder / "results.json").write_text(json.dumps({"auc": auc, "scores": results}, indent=1))
    rows = [[name, *(f"{value:.3f}" for value in scores.values())] for name, scores in results.items()]
    text = markdown(["method", "covering", "mIoU matched per image"], rows)
    (folder / "results.md").write_text(text + "\n")
    print(text)
    print(f"AUC of pixel pairs in held-out images: {', '.join(f'{kind} {value:.3f}' for kind, value in auc.items())}")


if __name__ == "__main__":
    main()
