"""Score the label maps of a run against ground truth, beside baselines without a model.

TRUTH is a folder, glob or URL of label PNGs in the layout of COCO-Stuff, COCO panoptic, Cityscapes, PASCAL VOC, PASCAL
Context, ADE20K or BSDS500, or of tars or Parquet files with label maps, or the OUT of another run.

Exit codes:
  0: every image with ground truth is scored.
  1: some ground truth could not be used.
  2: wrong usage, or nothing to score.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from diffseg.scoring.baselines import LEFT_OUT
from diffseg.scoring.view import Crop, View
from diffseg.segmentation import IGNORE
from jobs.common import OK, SOME_FAILED, guarded, parsed
from jobs.evaluation_tables import as_document, comparison_document, print_document
from jobs.printing import CleanConsole, print_json, print_line, progress_bar
from jobs.protocol_tables import chosen_protocol, protocol_document
from jobs.run_flags import ParallelFlags, SourceImageFlags
from pipeline.errors import RunFailed
from pipeline.evaluation.compare import Comparison, by_ground_truth, compare
from pipeline.evaluation.evaluate import Evaluation, evaluate, make_tasks
from pipeline.evaluation.ground_truth import GroundTruth, find_ground_truth
from pipeline.evaluation.layouts import LayoutName
from pipeline.evaluation.pairing import pair_rows, read_run_rows
from pipeline.evaluation.protocols import ProtocolName
from pipeline.evaluation.report import IMAGES_PER_PICTURE, draw_picture, rank_by_covering, write_csv
from pipeline.evaluation.score import THIS_RUN, EvaluationContext, ScoredImage, ScoringTask
from pipeline.output.levels import curve_cuts, has_levels
from pipeline.output.manifest import Manifest, require_manifest
from pipeline.readers.names import NameSettings
from pipeline.readers.samples import Shard
from pipeline.storage import Storage, redact
from pipeline.storage.urls import split_url

FILES = ("scores.json", "images.csv", "worst.jpg", "best.jpg")
"""The files of the report."""

TABLE_WIDTH = 130
"""Width of the tables in characters, if the output is not a terminal."""


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(ParallelFlags, SourceImageFlags):
    """The flags of `diffseg evaluate`."""

    truth: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TRUTH")]
    """Ground truth: a folder, glob or URL, a panoptic JSON file, or the OUT of another run.
    Each row is paired with ground truth by its path or its name."""
    protocol: ProtocolName | None = None
    """Published protocol by which accuracy and mIoU are computed too, and printed beside its published figures.
    It sets the layout of TRUTH, its classes, and the pixels that are scored."""
    layout: LayoutName | None = None
    """Layout of TRUTH; default: the layout that its paths suggest, else plain label maps (labels)."""
    truth_field: str | None = None
    """Extension (tar, such as seg.png) or column (Parquet) of the ground truth, if a sample has several."""
    classes: str | None = None
    """Names of the ids in TRUTH; with it, the names of segments are scored too, without matching.
    This is a JSON object such as {"person": 1, …}, or the path or URL of one."""
    ignore: str | None = None
    """Ids in TRUTH that are not scored, separated by commas; default: those of the layout; "" for none."""
    crop: Crop = "none"
    """centre: score only the centre square, as DiffSeg's paper does."""
    size: int | None = None
    """Score at this length of the shorter side in pixels, with nearest-neighbour resizing of both label maps.
    Default: the size of the image."""
    baseline_images: int = 200
    """Images that the baselines segment, a seeded random sample of the scored ones; 0 for no baselines. A run with
    levels is scored at other levels on the same images."""
    compare: str | None = None
    """OUT of another run: score it in the same way, and print the differences on the images that both runs have."""
    report: str | None = None
    """Folder or URL for scores.json, images.csv, worst.jpg and best.jpg; default: OUT/report."""
    name: str | None = None
    """Name of this evaluation, such as paper-protocol: its files go into a subfolder of that name, and evaluations
    under other names are kept."""


def _evaluate(command: EvaluateCommand) -> int:
    _check_name(command.name)
    out, manifest = command.open()
    store = command.store()
    naming = NameSettings(**manifest.settings["naming"])
    given = {flag: getattr(command, flag) for flag in ("layout", "ignore", "crop", "size")}
    chosen = chosen_protocol(command.protocol, given, naming)
    ground_truth = find_ground_truth(
        command.truth,
        store,
        layout=chosen.layout if chosen else command.layout,
        field=command.truth_field,
        ignore=parse_ids(command.ignore),
    )
    if chosen:
        ground_truth = dataclasses.replace(ground_truth, merges=chosen.merges)
    rows = read_run_rows(out, manifest)
    pairing = pair_rows(rows, ground_truth)
    sources = _source_shards(command, manifest)
    tasks = make_tasks(pairing, ground_truth, sources=sources, baseline_images=command.baseline_images)
    context = EvaluationContext(
        out=out,
        ground_truth=dataclasses.replace(ground_truth, locations={}),
        view=chosen.protocol.view if chosen else View(crop=command.crop, size=command.size),
        image_field=manifest.settings["image_field"],
        classes=(chosen.class_of_word if chosen else {}) | parse_classes(command.classes, store),
        has_names=bool(naming),
        unnamed=chosen.unnamed if chosen else IGNORE,
        protocol=chosen.protocol if chosen else None,
        levels=curve_cuts(manifest, out.redacted) if has_levels(manifest) else (),
    )
    with progress_bar("scoring label shards", len(tasks)) as advance:
        evaluation = evaluate(
            context, tasks, processes=command.process_count, address=command.ray_address, on_shard=advance
        )
    document = as_document(context, rows, pairing, evaluation)
    if command.protocol and chosen:
        document["by_protocol"] = protocol_document(command.protocol, context.classes, evaluation.methods, naming)
    if command.compare:
        comparison = _compare(command, context, ground_truth, by_ground_truth(evaluation.scored, pairing))
        document["comparison"] = comparison_document(comparison)
    report = store.at(command.report) if command.report else out.at(f"{out.url}/report")
    report = report.at(f"{report.url}/{command.name}") if command.name else report
    document |= _write_report(report, document, context, tasks, evaluation)
    if command.json:
        print_json(document)
    else:
        _print(document, report, baselines=command.baseline_images > 0)
    return SOME_FAILED if document["counts"]["unusable_truths"] else OK


def _check_name(name: str | None) -> None:
    """Raise ValueError if a name cannot be that of a subfolder of the report, where `data` belongs to the page."""
    if name is not None and (not re.fullmatch(r"[\w][\w.-]{0,99}", name) or name == "data"):
        raise ValueError(f"--name {name!r}: expected letters, digits, dots, hyphens and underscores, but not data")


def _compare(
    command: EvaluateCommand,
    context: EvaluationContext,
    ground_truth: GroundTruth,
    this: Mapping[str, ScoredImage],
) -> Comparison:
    """Score the run of --compare in the same way, and compare it with this one.

    Args:
        command: The flags.
        context: The context of this run's evaluation.
        ground_truth: The ground truth, with its locations.
        this: Scored images of this run by the key of their ground truth.
    """
    assert command.compare is not None
    other = command.store().at(command.compare)
    pairing = pair_rows(read_run_rows(other, require_manifest(other)), ground_truth)
    tasks = make_tasks(pairing, ground_truth, sources={}, baseline_images=0)
    other_context = dataclasses.replace(context, out=other, levels=(), classes={}, protocol=None)
    with progress_bar("scoring the other run", len(tasks)) as advance:
        evaluation = evaluate(
            other_context, tasks, processes=command.process_count, address=command.ray_address, on_shard=advance
        )
    count = ground_truth.layout.classes
    scored = by_ground_truth(evaluation.scored, pairing)
    return compare(this, scored, other.redacted, None if count is None else range(count))


def parse_classes(text: str | None, store: Storage) -> dict[str, int]:
    """Return the id in TRUTH of each class name.

    Args:
        text: A JSON object, or the path or URL of one.
        store: The storage for the path or URL.

    Raises:
        ValueError: The text is not such an object.
    """
    if text is None:
        return {}
    folder, name = split_url(text)
    try:
        classes = json.loads(text if text.lstrip().startswith("{") else store.at(folder).read_bytes(name))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"--classes {redact(text)}: cannot be read as JSON: {error}") from None
    ids = classes.values() if isinstance(classes, dict) else [None]
    if not classes or not all(isinstance(class_id, int) and 0 <= class_id < IGNORE for class_id in ids):
        raise ValueError(f"--classes {redact(text)}: expected a JSON object of names and their ids in TRUTH")
    return classes


def parse_ids(text: str | None) -> tuple[int, ...] | None:
    """Return the ids of --ignore; None for those of the layout. Raises ValueError."""
    try:
        return None if text is None else tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise ValueError(f"--ignore {text}: expected whole numbers separated by commas") from None


def _source_shards(command: EvaluateCommand, manifest: Manifest) -> dict[str, Shard]:
    """Return the shards that the run labelled, by name; if they cannot be listed, print why and return {}."""
    try:
        return command.source_shards(manifest)
    except RunFailed as error:
        text = f"there will be no baselines, and no source images in the pictures: {redact(str(error))}"
        print_line(CleanConsole(stderr=True), text, "yellow")
        return {}


def _write_report(
    report: Storage,
    document: Mapping[str, Any],
    context: EvaluationContext,
    tasks: list[ScoringTask],
    evaluation: Evaluation,
) -> dict[str, Any]:
    """Write the files of the report, and return the keys of the images in each picture."""
    order = rank_by_covering(evaluation.scored, THIS_RUN)
    drawn = {"worst": order[:IMAGES_PER_PICTURE], "best": order[: -IMAGES_PER_PICTURE - 1 : -1]}
    keys = {name: [image.key for image in images] for name, images in drawn.items()}
    write_csv(report, "images.csv", evaluation.scored)
    report.write_bytes("scores.json", json.dumps({**document, **keys}, indent=1, sort_keys=True).encode() + b"\n")
    for name, images in drawn.items():
        if images:
            draw_picture(report, f"{name}.jpg", context, tasks, images)
    return keys


def _print(document: Mapping[str, Any], report: Storage, *, baselines: bool) -> None:
    console, errors = CleanConsole(), CleanConsole(stderr=True)
    print_document(console if console.is_terminal else CleanConsole(width=TABLE_WIDTH), document)
    if LEFT_OUT and baselines:
        print_line(errors, LEFT_OUT)
    print_line(errors, f"{report.redacted}: {', '.join(FILES)}")


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg evaluate` and return its exit code."""
    command = parsed(EvaluateCommand, argv, "evaluate", __doc__)
    return guarded(lambda: _evaluate(command))


if __name__ == "__main__":
    sys.exit(main())
