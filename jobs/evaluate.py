"""Score the label maps of a run against ground truth, beside baselines without a model.

TRUTH is a folder, glob or URL of label PNGs in the layout of COCO-Stuff, COCO panoptic, Cityscapes, PASCAL VOC, ADE20K
or BSDS500, or of tars or Parquet files, or the OUT of another run. Exit code: 0 all that has a truth is scored; 1 some
truths could not be used; 2 wrong usage, or nothing to score.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import Progress

from diffseg.scoring.baselines import LEFT_OUT
from diffseg.scoring.view import Crop, View
from diffseg.segmentation import IGNORE
from jobs.common import OK, SOME_FAILED, RunFolder, guarded, parsed, print_json, storage_options
from jobs.evaluation_tables import as_document, print_document
from pipeline.evaluation.ground_truth import find_truth
from pipeline.evaluation.layouts import LayoutName
from pipeline.evaluation.pairing import pair, read_rows
from pipeline.evaluation.report import SHOWN, draw, ranked, write_csv
from pipeline.evaluation.score import THIS_RUN, Evaluation, Evaluator, Part, evaluate, make_parts
from pipeline.output.manifest import Manifest
from pipeline.output.source_images import find_images
from pipeline.readers.find import split_url
from pipeline.readers.samples import Shard
from pipeline.storage import SourceError, Storage, redact

FILES = ("scores.json", "images.csv", "worst.jpg", "best.jpg")

WIDTH = 130


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(RunFolder):
    """The flags of `diffseg evaluate`."""

    truth: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TRUTH")]
    """Folder, glob or URL of ground truth, panoptic JSON, or OUT of another run; paired by path or name."""
    layout: LayoutName | None = None
    """How TRUTH lays out its labels; default: what its paths tell, else plain label maps (labels)."""
    truth_field: str | None = None
    """Extension (tar, such as seg.png) or column (Parquet) of the truth where a sample has several."""
    classes: str | None = None
    """Names of TRUTH's ids, to score the names of segments too, with nothing matched: a JSON object {"person": 1, …},
    or the path or URL of one."""
    ignore: str | None = None
    """Ids in TRUTH that count for nothing, behind commas, in place of the layout's own; "" for none."""
    crop: Crop = "none"
    """centre: score the centre square alone, as DiffSeg's paper does."""
    size: int | None = None
    """Score at this many pixels of the shorter side, nearest for both; default: at the image's own size."""
    baseline_images: int = 200
    """How many images the baselines segment, a seeded sample of those that are scored; 0 for no baselines."""
    images: str | None = None
    """Where SRC of the run lies now, for baselines and pictures; default: where run.json says."""
    report: str | None = None
    """Folder or URL for scores.json, images.csv, worst.jpg and best.jpg; default: OUT/report."""
    processes: int | None = None
    """At once on this machine; default: one a core."""
    address: str | None = None
    """Of a Ray cluster whose CPUs do the work instead; default: RAY_ADDRESS, else this machine."""


def _evaluate(command: EvaluateCommand) -> int:
    out, manifest = command.open()
    store = Storage(url=".", options=storage_options(command.storage_options))
    truth = find_truth(
        command.truth, store, layout=command.layout, field=command.truth_field, ignore=_ids(command.ignore)
    )
    rows = read_rows(out, manifest)
    pairing = pair(rows, truth)
    errors = Console(stderr=True)
    sources = _sources(command, manifest, store, errors)
    parts = make_parts(pairing, truth, sources=sources, baseline_images=command.baseline_images)
    evaluator = Evaluator(
        out=out,
        truth=dataclasses.replace(truth, places={}),
        view=View(crop=command.crop, size=command.size),
        image_field=manifest.settings["image_field"],
        classes=_classes(command.classes, store),
    )
    with Progress(console=errors, transient=True) as bar:
        task = bar.add_task("scoring label shards", total=len(parts))
        evaluation = evaluate(
            evaluator,
            parts,
            processes=command.processes or os.cpu_count() or 1,
            address=command.address or os.environ.get("RAY_ADDRESS"),
            on_part=lambda: bar.advance(task),
        )
    document = as_document(evaluator, rows, pairing, evaluation)
    report = store.at(command.report) if command.report else out.at(f"{out.url}/report")
    document |= _write_report(report, document, evaluator, parts, evaluation)
    if command.json:
        print_json(document)
    else:
        print_document(_wide(Console()), document)
        if LEFT_OUT and command.baseline_images:
            errors.print(LEFT_OUT, markup=False, highlight=False, soft_wrap=True)
        errors.print(f"{report.redacted}: {', '.join(FILES)}", markup=False, highlight=False, soft_wrap=True)
    return SOME_FAILED if document["counts"]["unusable_truths"] else OK


def _classes(text: str | None, store: Storage) -> dict[str, int]:
    """The truth's id of each name."""
    if text is None:
        return {}
    folder, name = split_url(text)
    try:
        found = json.loads(text if text.lstrip().startswith("{") else store.at(folder).read_bytes(name))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"--classes {redact(text)}: cannot be read as JSON: {error}") from None
    numbers = found.values() if isinstance(found, dict) else [None]
    if not found or not all(isinstance(one, int) and 0 <= one < IGNORE for one in numbers):
        raise ValueError(f"--classes {redact(text)}: expected a JSON object of names and their ids in TRUTH")
    return found


def _ids(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise ValueError(f"--ignore {text}: expected whole numbers behind commas") from None


def _sources(command: EvaluateCommand, manifest: Manifest, store: Storage, errors: Console) -> dict[str, Shard]:
    """The shards that were labelled; {}, and a word of it, where they cannot be found."""
    try:
        return find_images(manifest, store, command.images)
    except (SourceError, OSError) as error:
        text = f"no baselines, and no photographs in pictures: {redact(str(error))}. --images says where they lie now"
        errors.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        return {}


def _write_report(
    report: Storage, document: Mapping[str, Any], evaluator: Evaluator, parts: list[Part], evaluation: Evaluation
) -> dict[str, Any]:
    """Write the files; the keys of the images that are drawn."""
    order = ranked(evaluation.scored, THIS_RUN)
    drawn = {"worst": order[:SHOWN], "best": order[: -SHOWN - 1 : -1]}
    keys = {name: [one.key for one in chosen] for name, chosen in drawn.items()}
    write_csv(report, "images.csv", evaluation.scored)
    report.write_bytes("scores.json", json.dumps({**document, **keys}, indent=1, sort_keys=True).encode() + b"\n")
    for name, chosen in drawn.items():
        if chosen:
            draw(report, f"{name}.jpg", evaluator, parts, chosen)
    return keys


def _wide(console: Console) -> Console:
    """Where the output is no terminal it is as wide as the tables."""
    return console if console.is_terminal else Console(width=WIDTH)


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg evaluate`; the exit code."""
    command = parsed(EvaluateCommand, argv, "evaluate", __doc__)
    return guarded(lambda: _evaluate(command))


if __name__ == "__main__":
    sys.exit(main())
