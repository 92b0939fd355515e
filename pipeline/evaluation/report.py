"""Write the files of an evaluation: scores per image as CSV, and pictures of the best and the worst images."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from diffseg.drawing.overlay import contact_sheet, overlay
from diffseg.scoring.scores import IMAGE_SCORES
from pipeline.evaluation.decoders import GroundTruthError
from pipeline.evaluation.pairing import RowLocation
from pipeline.evaluation.score import THIS_RUN, EvaluationContext, ScoredImage, ScoringTask
from pipeline.output.commit import LabelShard
from pipeline.output.reader import label_rows
from pipeline.output.rows import decode_mask
from pipeline.output.source_images import read_source_images
from pipeline.readers.samples import shorten
from pipeline.spreadsheet import text_cell
from pipeline.storage import Storage

IMAGES_PER_PICTURE = 6
"""Number of images drawn in each picture."""

CAPTION_SCORES = {"covering": "covering", "miou": "mIoU", "boundary_f": "boundary F"}
"""Scores above each image of a picture, by name, and their texts."""
CAPTION_CHARACTERS = 60
"""Characters of a key that are drawn."""

GREY = 160
"""Grey level drawn in place of a source image that cannot be read."""


def write_csv(target: Storage, path: str, scored: Sequence[ScoredImage]) -> None:
    """Write one line per image and method with the scores of `IMAGE_SCORES`; NaN scores are left empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    columns = ("method", "key", "shard", "row", "tag", "height", "width", "regions", "segments", "missed")
    writer.writerow((*columns, *IMAGE_SCORES))
    for image in scored:
        for method, scores in image.scores.items():
            numbers = [scores.missed, *(scores.values[name] for name in IMAGE_SCORES)]
            formatted = ["" if math.isnan(number) else f"{number:.6g}" for number in numbers]
            shard = image.location.shard
            location = (text_cell(str(shard)), image.location.row, shard.tag)
            facts = (method, text_cell(image.key), *location, *image.size, f"{scores.regions:g}", scores.segments)
            writer.writerow((*facts, *formatted))
    target.write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))


def rank_by_covering(scored: Sequence[ScoredImage], method: str) -> list[ScoredImage]:
    """Return the images with a covering score, the worst first."""

    def covering(image: ScoredImage) -> float:
        return image.scores[method].values["covering"]

    return sorted((image for image in scored if not math.isnan(covering(image))), key=covering)


def draw_picture(
    target: Storage,
    path: str,
    context: EvaluationContext,
    tasks: Sequence[ScoringTask],
    chosen: Sequence[ScoredImage],
) -> None:
    """Write a JPEG with one row per chosen image: the source image, its ground truth and its segments.

    The key and scores of the image are above its row.
    A source image that cannot be read is drawn as a grey area.
    """
    images_by_shard: defaultdict[LabelShard, list[ScoredImage]] = defaultdict(list)
    for image in chosen:
        images_by_shard[image.location.shard].append(image)
    task_of = {task.shard: task for task in tasks}
    strips: dict[RowLocation, list[np.ndarray]] = {}
    for shard, images in images_by_shard.items():
        keys = {image.location.row: image.key for image in images}
        shard_strips = _strips(context, task_of[shard], keys)
        strips |= {RowLocation(shard, row): strip for row, strip in shard_strips.items()}
    buffer = io.BytesIO()
    drawn = [image for image in chosen if image.location in strips]
    sheet = contact_sheet([strips[image.location] for image in drawn], captions=[_caption(image) for image in drawn])
    sheet.save(buffer, "JPEG", quality=90)
    target.write_bytes(path, buffer.getvalue())


def _caption(image: ScoredImage) -> str:
    values = image.scores[THIS_RUN].values
    key = image.key if image.key.isprintable() else ascii(image.key)
    scores = ", ".join(f"{text} {values[name]:.3f}" for name, text in CAPTION_SCORES.items())
    return f"{shorten(key, CAPTION_CHARACTERS)}: {scores}"


def _strips(context: EvaluationContext, task: ScoringTask, keys: Mapping[int, str]) -> dict[int, list[np.ndarray]]:
    masks = {
        row["index"]: decode_mask(row["mask"])
        for row in label_rows(context.out, task.shard, ("index", "mask"))
        if row["index"] in keys
    }
    images: dict[int, np.ndarray | str] = {}
    if task.source is not None:
        images = dict(read_source_images(task.source, keys, context.out, context.image_field))
    strips = {}
    for number, ground_truth in context.ground_truth.read({number: task.locations[number] for number in keys}):
        image, labels = images.get(number), masks[number]
        if isinstance(image, str) or image is None or image.shape[:2] != labels.shape:
            image = np.full((*labels.shape, 3), GREY, np.uint8)
        if not isinstance(ground_truth, GroundTruthError):
            strips[number] = [image, overlay(image, ground_truth[0]), overlay(image, labels)]
    return strips
