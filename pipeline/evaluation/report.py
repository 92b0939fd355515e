"""What an evaluation leaves in files: a line an image as CSV, and pictures of the best and the worst images."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from diffseg.drawing.overlay import contact_sheet, overlay
from diffseg.scoring.scores import IMAGE_SCORES
from pipeline.evaluation.layouts import TruthError
from pipeline.evaluation.pairing import RowPlace
from pipeline.evaluation.score import Evaluator, Part, Scored
from pipeline.output.reader import label_rows
from pipeline.output.rows import decode_mask
from pipeline.output.source_images import read_images
from pipeline.storage import Storage

SHOWN = 6
"""Images in each picture."""

GREY = 160


def write_csv(target: Storage, path: str, scored: Sequence[Scored]) -> None:
    """A line an image and method, with the scores of `IMAGE_SCORES`, empty where the truth says nothing."""
    text = io.StringIO()
    lines = csv.writer(text)
    facts = ("method", "key", "shard", "row", "height", "width", "regions", "segments", "missed")
    lines.writerow((*facts, *IMAGE_SCORES))
    for one in scored:
        for method, scores in one.scores.items():
            numbers = [scores.missed, *(scores.values[name] for name in IMAGE_SCORES)]
            shown = ["" if math.isnan(number) else f"{number:.6g}" for number in numbers]
            place = (method, one.key, *one.place, *one.size, f"{scores.regions:g}", scores.segments)
            lines.writerow((*place, *shown))
    target.write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))


def ranked(scored: Sequence[Scored], method: str) -> list[Scored]:
    """By covering, the worst first; without images whose truth says nothing."""
    there = [one for one in scored if not math.isnan(one.scores[method].values["covering"])]
    return sorted(there, key=lambda one: one.scores[method].values["covering"])


def draw(target: Storage, path: str, evaluator: Evaluator, parts: Sequence[Part], chosen: Sequence[Scored]) -> None:
    """A JPEG with a line for each of these images: the image (grey where it cannot be had), its truth, its segments."""
    by_shard: defaultdict[str, list[Scored]] = defaultdict(list)
    for one in chosen:
        by_shard[one.place.shard].append(one)
    part_of = {part.shard: part for part in parts}
    strips: dict[RowPlace, list[np.ndarray]] = {}
    for shard, there in by_shard.items():
        keys = {one.place.row: one.key for one in there}
        drawn = _strips(evaluator, part_of[shard], keys)
        strips |= {RowPlace(shard, row): images for row, images in drawn.items()}
    buffer = io.BytesIO()
    contact_sheet([strips[one.place] for one in chosen if one.place in strips]).save(buffer, "JPEG", quality=90)
    target.write_bytes(path, buffer.getvalue())


def _strips(evaluator: Evaluator, part: Part, keys: Mapping[int, str]) -> dict[int, list[np.ndarray]]:
    masks = {
        row["index"]: decode_mask(row["mask"])
        for row in label_rows(evaluator.out, part.shard, ("index", "mask"))
        if row["index"] in keys
    }
    images: dict[int, np.ndarray | str] = {}
    if part.source is not None:
        images = dict(read_images(part.source, keys, evaluator.out, evaluator.image_field))
    strips = {}
    for number, truths in evaluator.truth.read({number: part.truths[number] for number in keys}):
        image, labels = images.get(number), masks[number]
        if isinstance(image, str) or image is None or image.shape[:2] != labels.shape:
            image = np.full((*labels.shape, 3), GREY, np.uint8)
        if not isinstance(truths, TruthError):
            strips[number] = [image, overlay(image, truths[0]), overlay(image, labels)]
    return strips
