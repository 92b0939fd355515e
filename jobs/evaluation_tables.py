"""The result of an evaluation as a JSON document, and that document as tables.

Each score is shown with its matching, its pixels and its number of images, because scores that differ in these do not
compare.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from diffseg.scoring.boundaries import TOLERANCE
from diffseg.scoring.scores import CLASS_SCORES, IMAGE_SCORES
from jobs.printing import print_line
from jobs.protocol_tables import print_protocol
from pipeline.evaluation.compare import Comparison
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.pairing import Pairing, RunRows
from pipeline.evaluation.score import THIS_RUN, EvaluationContext
from pipeline.wording import counted

KEYS_SHOWN = 3
"""Keys of each kind that the document and the tables name."""

SHARE_WORTH_A_LINE = 0.01
"""Share of pixels in no segment above which a line mentions them."""

PER_IMAGE, BY_CLASS, ONCE = "for each image", "for each image, counted by class", "once for the data set"
MATCHING = dict.fromkeys(IMAGE_SCORES[:2], PER_IMAGE) | dict(
    zip(CLASS_SCORES, (BY_CLASS,) * 2 + (ONCE,) * 2, strict=True)
)
"""How segments are matched to classes, by score; other scores need no matching."""

MATCHING_CAPTION = (
    f"{PER_IMAGE}: Hungarian matching, mean over images. {BY_CLASS}: the same matching, pixels summed over the images "
    "(as in google/diffseg and therefore DiffSeg's paper). ± is half of a 95 % bootstrap interval over images."
)
ONCE_CAPTION = (
    f" {ONCE}: one matching for all images (PiCIE, STEGO), which needs ids that mean the same in every image, unlike "
    "those of DiffSeg's segments."
)
COMPARISON_CAPTION = (
    "± is half of the 95 % bootstrap interval of the paired differences: both scores of an image enter a resample "
    "together. Differences that are larger than it are marked with *. For VI, split and merged, less is better."
)
LEVEL_SCORES = {
    "accuracy": "accuracy",
    "miou": "mIoU",
    "best_iou": "best IoU",
    "covering": "covering",
    "vi": "VI",
    "boundary_f": "boundary F",
}
"""Scores in the table of levels, with their heads; accuracy and mIoU are matched for each image."""
LEVELS_CAPTION = (
    "segments: mean number per image. stable: a level chosen for each image. The other scores are those above, "
    f"accuracy and mIoU matched {PER_IMAGE}. `diffseg tune` finds the level that scores best."
)
NAMES_CAPTION = (
    "Pixels of each class over all images, without classes that occur neither in the ground truth nor in the labels. "
    "Pixels without a name count as missed. Pixels of classes that --classes does not name count as wrong if they have "
    "a name."
)
REGIONS_CAPTION = (
    "best IoU: mean over the true regions of the IoU with the best segment. covering: the same, weighted by area. VI: "
    f"variation of information in bits, 0 is best. boundary F: F-measure of borders at most {TOLERANCE} px apart. "
    "split, merged: true regions per image that are over- or under-segmented (Hoover's definitions, 80 %)."
)


def as_document(context: EvaluationContext, rows: RunRows, pairing: Pairing, evaluation: Evaluation) -> dict[str, Any]:
    """Return the document that --json prints and that scores.json contains."""
    layout = context.ground_truth.layout
    unusable = [problem for problem in evaluation.problems if problem.what == "truth"]
    missed = [image.scores[THIS_RUN].missed for image in evaluation.scored]
    missed_known = [share for share in missed if not math.isnan(share)]  # NaN: the ground truth ignores every pixel
    return {
        "out": context.out.redacted,
        "truth": context.ground_truth.storage.redacted,
        "protocol": {
            "layout": context.ground_truth.layout_name,
            "classes": layout.classes,
            "ignored": "the largest id" if layout.ignore is None else list(layout.ignore),
            "crop": context.view.crop,
            "size": context.view.size,
            "pixels": str(context.view),
            "paired_by": pairing.rule,
        },
        "counts": {
            "rows": len(rows.ok) + rows.failed.total(),
            "scored": len(missed_known),
            "truth_says_nothing": len(missed) - len(missed_known),
            "pixels_in_no_segment": sum(missed_known) / len(missed_known) if missed_known else 0.0,
            "without_label_map": dict(rows.failed),
            "shards_missing": rows.shards_missing,
            "without_truth": _listed(pairing.unpaired_rows),
            "truths_without_row": _listed(pairing.unpaired_ground_truth),
            "ambiguous": _listed(pairing.ambiguous_keys),
            "unusable_truths": len(unusable),
        },
        "methods": [
            {
                "name": method.name,
                "images": method.images,
                "figures": {
                    name: dataclasses.asdict(figure) | {"matching": MATCHING.get(name)}
                    for name, figure in method.figures.items()
                },
            }
            for method in evaluation.methods
        ],
        "named": None if evaluation.named is None else dataclasses.asdict(evaluation.named),
        "problems": [dataclasses.asdict(problem) for problem in evaluation.problems],
        **({"levels": [dataclasses.asdict(level) for level in evaluation.levels]} if evaluation.levels else {}),
    }


def _listed(keys: Sequence[str]) -> dict[str, Any]:
    return {"count": len(keys), "first": list(keys[:KEYS_SHOWN])}


def print_document(console: Console, document: Mapping[str, Any]) -> None:
    """Print the document as lines and tables."""
    protocol = document["protocol"]
    ignored = protocol["ignored"] if isinstance(protocol["ignored"], str) else ", ".join(map(str, protocol["ignored"]))
    ignored = "those of the protocol" if document.get("by_protocol") else ignored
    print_line(
        console,
        f"{document['out']} against {document['truth']}, layout {protocol['layout']}, ids that are not scored: "
        f"{ignored or 'none'}; paired by {protocol['paired_by']}",
    )
    for line in _lines_about_missing(document["counts"]):
        print_line(console, line, "yellow")
    _print_problems(console, document["problems"])
    if by_protocol := document.get("by_protocol"):
        print_protocol(console, by_protocol)
    pixels = f"{protocol['layout']}, {protocol['pixels']}, {document['counts']['scored']} images"
    methods = document["methods"]
    columns = dict.fromkeys(IMAGE_SCORES[:2], PER_IMAGE)
    if any(name in method["figures"] for method in methods for name in CLASS_SCORES):
        columns |= {name: MATCHING[name] for name in CLASS_SCORES if any(name in m["figures"] for m in methods)}
    heads = [f"{'accuracy' if 'accuracy' in name else 'mIoU'}\n{matching}" for name, matching in columns.items()]
    title = f"Segments matched to classes ({pixels})"
    caption = MATCHING_CAPTION + (ONCE_CAPTION if ONCE in columns.values() else "")
    console.print(_table(title, caption, methods, list(columns), heads))
    if document["named"]:
        console.print(_classes_table(f"Names of segments, without matching ({pixels})", document["named"]))
    heads = ["best IoU", "covering", "VI", "boundary F", "split", "merged"]
    console.print(_table(f"Regions, without matching ({pixels})", REGIONS_CAPTION, methods, IMAGE_SCORES[2:], heads))
    if levels := document.get("levels"):
        console.print(_levels_table(levels))
    if comparison := document.get("comparison"):
        console.print(_comparison_table(comparison))


def _levels_table(levels: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of the scores of each level."""
    images = next(iter(levels[0]["figures"].values()))["count"] if levels[0]["figures"] else 0
    title = f"Levels of the run ({images:,} images): `diffseg recut` makes the labels of any of them"
    table = Table(title=title, caption=LEVELS_CAPTION, title_justify="left", caption_justify="left")
    table.add_column("level", no_wrap=True)
    table.add_column("segments", justify="right")
    for head in LEVEL_SCORES.values():
        table.add_column(head, justify="right")
    for level in levels:
        cells = [_cell(name, level["figures"].get(name)) for name in LEVEL_SCORES]
        table.add_row(level["name"], f"{level['segments']:.1f}", *cells)
    return table


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as plain values for the document."""
    return {
        "other": comparison.other,
        "images": comparison.images,
        "scores": {
            name: {
                "this": dataclasses.asdict(score.second),
                "other": dataclasses.asdict(score.first),
                "difference": dataclasses.asdict(score.difference),
            }
            for name, score in comparison.scores.items()
        },
    }


def _comparison_table(comparison: Mapping[str, Any]) -> Table:
    title = f"This run beside {comparison['other']} ({comparison['images']:,} images that both have)"
    table = Table(title=title, title_justify="left", caption=COMPARISON_CAPTION, caption_justify="left", min_width=100)
    table.add_column("score")
    for head in ("this run", "other run", "difference"):
        table.add_column(head, justify="right")
    for name, score in comparison["scores"].items():
        difference = score["difference"]
        mark = "*" if abs(difference["mean"]) > difference["half_width"] else ""
        cells = (_cell(name, score["this"]), _cell(name, score["other"]), _cell(name, difference) + mark)
        table.add_row(f"{name}, {MATCHING[name]}" if name in MATCHING else name, *cells)
    return table


def _print_problems(console: Console, problems: Sequence[Mapping[str, Any]]) -> None:
    """Print the first ground truth and the first image that could not be used."""
    unusable = [problem for problem in problems if problem["what"] == "truth"]
    if unusable:
        text = f"{len(unusable)} ground-truth maps cannot be used, and their images are not scored:"
        print_line(console, text, "red")
    for problem in unusable[:KEYS_SHOWN]:
        print_line(console, f"  {problem['key']}: {problem['message']}", "red")
    unread = [problem for problem in problems if problem["what"] == "image"]
    if unread:
        text = f"no baselines on {len(unread)} images that cannot be read; the first: {unread[0]['message']}"
        print_line(console, text, "yellow")


def _classes_table(title: str, named: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", caption=NAMES_CAPTION, caption_justify="left", min_width=100)
    table.add_column("class")
    table.add_column("IoU", justify="right")
    for name, iou in sorted(named["iou"].items(), key=lambda pair: -pair[1]):
        table.add_row(name, f"{iou:.3f}")
    table.add_section()
    for name in ("miou", "accuracy"):
        table.add_row({"miou": "mean", "accuracy": "accuracy of pixels"}[name], _cell(name, named[name]))
    return table


def _lines_about_missing(counts: Mapping[str, Any]) -> list[str]:
    """Describe the rows, shards, ground truth and pixels that no score includes."""
    lines = []
    if counts["without_label_map"]:
        statuses = ", ".join(f"{count} {status}" for status, count in sorted(counts["without_label_map"].items()))
        rows = sum(counts["without_label_map"].values())
        lines.append(f"not scored: {counted(rows, 'row')} without a label map ({statuses})")
    if counts["shards_missing"]:
        lines.append(
            f"not scored: {counted(counts['shards_missing'], 'shard')} of the run without labels (see `diffseg status`)"
        )
    if counts["truth_says_nothing"]:
        lines.append(
            f"not scored: {counted(counts['truth_says_nothing'], 'image')} whose ground truth ignores every pixel"
        )
    if counts["pixels_in_no_segment"] > SHARE_WORTH_A_LINE:
        lines.append(
            f"{counts['pixels_in_no_segment']:.1%} of the pixels are in no segment and count as missed; if the labels "
            "were made with --fit crop, --crop centre scores only the centre square"
        )
    for name, noun, description in (
        ("without_truth", "row", "not scored: {} without ground truth"),
        ("truths_without_row", "ground-truth map", "not used: {} without a labelled row"),
        ("ambiguous", "row", "not scored: {} whose key matches several rows or ground-truth maps"),
    ):
        if counts[name]["count"]:
            keys = ", ".join(counts[name]["first"]) + ", …" * (counts[name]["count"] > KEYS_SHOWN)
            lines.append(f"{description.format(counted(counts[name]['count'], noun))} ({keys})")
    return lines


def _table(
    title: str, caption: str, methods: Sequence[Mapping[str, Any]], names: Sequence[str], heads: Sequence[str]
) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", show_lines=False)
    table.add_column("method", no_wrap=True)
    table.add_column("images", justify="right")
    for head in heads:
        table.add_column(head, justify="right")
    for method in methods:
        cells = [_cell(name, method["figures"].get(name)) for name in names]
        table.add_row(method["name"], f"{method['images']:,}", *cells)
    return table


def _cell(name: str, figure: Mapping[str, float] | None) -> str:
    """Format the mean and the half width of a score."""
    if figure is None:
        return "–"
    digits = 2 if name in ("vi", "split", "merged") else 3
    return f"{figure['mean']:.{digits}f} ±{figure['half_width']:.{digits}f}".replace("±0.", "±.")
