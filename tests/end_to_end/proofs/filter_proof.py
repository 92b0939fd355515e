"""Do the rows that `diffseg filter` keeps have better label maps? Scenes labelled by tiny-text, with known truth.

    python tests/end_to_end/proofs/filter_proof.py --folder filter-proof

tiny-text labels captioned scenes that it was not trained on, with the names of all nouns. The run is filtered by
cv_iou, by confidence and by both, as it is and as a run without names. The table has the mean true IoU of the rows that
are kept, of all rows and of as many rows with the highest true IoU, and the rank correlation of each score with the
true IoU. The command resumes after a stop, and writes results.json and results.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))  # before the folders of tests that have the names of packages
sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))
from labelled_runs import write_png, write_run
from proof_parts import flags_of
from runs import rows_of

import jobs.filter
import jobs.label
from diffseg import IGNORE
from diffseg.scoring.overlap import match_per_image, overlap
from diffseg.tiny.evaluation.tables import markdown
from diffseg.tiny.scenes.captioned import generate_captioned
from diffseg.tiny.scenes.scenes import TRAINING_SEEDS
from diffseg.tiny.scenes.vocabulary import NOUNS
from pipeline.output.rows import decode_mask

UNSEEN = TRAINING_SEEDS[7_000_000:]
"""Seeds of scenes that the embedded model was not trained on: its training took the first ones of the range."""

PER_SHARD = 32
SCORES = ("cv_iou", "confidence", "both")


def label_scenes(folder: Path, count: int, side: int) -> dict[str, np.ndarray]:
    """Label scenes into `named` and without names into `unnamed`; return the noun of each pixel by the image's name."""
    truth = {}
    for seed in UNSEEN[:count]:
        scene = generate_captioned(seed, side)
        truth[f"{seed}.png"] = scene.classes.astype(np.int32)
        if not (folder / "images" / f"{seed}.png").exists():
            write_png(folder / "images" / f"{seed}.png", scene.image)
    words = [str(folder / "images"), str(folder / "named"), "--model", "tiny-text", "--names", ",".join(NOUNS)]
    assert jobs.label.main([*words, "--no-ray", "--device", "cpu", "--samples-per-shard", str(PER_SHARD)]) == 0
    if not (folder / "unnamed" / "run.json").exists():
        masks = {row["key"]: decode_mask(row["mask"]) for row in rows_of(folder / "named")}
        # `write_run` sets every confidence to 1, so that the scores of this run are its cv_iou alone.
        write_run(folder / "unnamed", masks, source=folder / "images", per_shard=PER_SHARD)
    return truth


def semantic_iou(row: dict, truth: np.ndarray) -> float:
    """Return the mean IoU of the nouns of a scene with the named segments of its row."""
    table = np.full(2**16, -1, np.int32)
    for segment in row["segments"]:
        table[segment["id"]] = -1 if segment["name"] not in NOUNS else NOUNS.index(segment["name"])
    labels = table[decode_mask(row["mask"])]
    nouns = np.unique(truth)
    return float(np.mean([((labels == k) & (truth == k)).sum() / ((labels == k) | (truth == k)).sum() for k in nouns]))


def matched_iou(row: dict, truth: np.ndarray) -> float:
    """Return the mIoU of a row's segments with the nouns of a scene, matched per image."""
    return match_per_image(overlap(truth, decode_mask(row["mask"]), ignore_prediction=IGNORE)).miou


def results_of(out: Path, iou: dict[str, float], keep: float, flags: list[str], by: tuple[str, ...]) -> dict:
    """Filter a run by each score, and return the mean true IoU of the kept rows and the rank correlations."""
    every, count = np.array(list(iou.values())), 0
    results = {}
    for score in by:
        assert jobs.filter.main([str(out), "--no-ray", "--keep", str(keep), "--by", score, *flags]) == 0
        table = pq.read_table(out / "filter" / "keep.parquet").to_pylist()
        kept = [iou[row["key"]] for row in table if row["keep"]]
        results[score], count = float(np.mean(kept)), len(kept)
        if score != "both":
            values = [(row[score], iou[row["key"]]) for row in table if row[score] is not None]
            results[f"rank correlation of {score}"] = float(spearmanr(*zip(*values, strict=True)).statistic)
    return {
        "all rows": float(every.mean()),
        "as many rows at random, 95 % interval": interval_of_random_choice(every, count),
        **results,
        "the best as many rows": float(np.sort(every)[-count:].mean()),
    }


def interval_of_random_choice(iou: np.ndarray, count: int) -> list[float]:
    """Return the 2.5 % and 97.5 % quantiles of the mean of rows that are chosen at random."""
    rng = np.random.default_rng(0)
    means = [rng.permutation(iou)[:count].mean() for _ in range(5000)]
    return [float(value) for value in np.quantile(means, (0.025, 0.975))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--side", type=int, default=128, help="side of the scenes in pixels")
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder: Path = options.folder
    truth = label_scenes(folder, options.images, options.side)
    flags = flags_of({name: getattr(options, name) for name in ("folds", "steps", "size", "width")})
    rows = rows_of(folder / "named")
    results = {}
    for out, measure, by in (("named", semantic_iou, SCORES), ("unnamed", matched_iou, ("cv_iou",))):
        iou = {row["key"]: measure(row, truth[row["key"]]) for row in rows}
        results[out] = results_of(folder / out, iou, options.keep, flags, by)
        (folder / "results.json").write_text(json.dumps(results, indent=1))
    names = list(results["named"])
    cells = [[name, *(_cell(results[out].get(name)) for out in results)] for name in names]
    text = markdown(["mean true IoU of the kept rows", *results], cells)
    (folder / "results.md").write_text(text + "\n")
    print(text)


def _cell(value: float | list[float] | None) -> str:
    if value is None:
        return "–"
    return " to ".join(f"{each:.3f}" for each in value) if isinstance(value, list) else f"{value:.3f}"


if __name__ == "__main__":
    main()
