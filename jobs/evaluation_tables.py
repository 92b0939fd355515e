"""An evaluation as JSON, and that as tables: no figure without its matching, its pixels and the number of images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from diffseg.scoring.boundaries import TOLERANCE
from diffseg.scoring.scores import CLASS_SCORES, IMAGE_SCORES
from pipeline.evaluation.pairing import Pairing, Rows
from pipeline.evaluation.score import THIS_RUN, Evaluation, Evaluator

FIRST = 3
"""Of the keys of a kind, how many are named."""

WORTH_SAYING = 0.01
"""Share of the pixels."""

PER_IMAGE, BY_CLASS, ONCE = "for each image", "for each image, counted by class", "once for the data set"
MATCHING = dict.fromkeys(IMAGE_SCORES[:2], PER_IMAGE) | dict(
    zip(CLASS_SCORES, (BY_CLASS,) * 2 + (ONCE,) * 2, strict=True)
)
"""How segments were matched to classes, by score; the others match nothing."""

LEGEND = (
    f"{PER_IMAGE}: Hungarian matching, mean over images. {BY_CLASS}: the same matching, pixels summed over the images "
    f"(google/diffseg, and so DiffSeg's paper). {ONCE}: one matching for all images (PiCIE, STEGO); it needs ids that "
    "mean the same in every image, as DiffSeg's do not. ± is half of a 95 % bootstrap interval over images."
)
NAMES = (
    "Pixels of each class over all images; classes that neither occur nor were found are left out. Pixels without a "
    "name count as missed, pixels of classes that were not named in --classes are found wrong where they are given one."
)
REGIONS = (
    f"best IoU: of each true region, mean. covering: the same, weighted by area. VI: variation of information, bits, 0 "
    f"is best. boundary F: borders at most {TOLERANCE} px apart. split, merged: true regions an image that are over- "
    "and under-segmented (Hoover's definitions, 80 %)."
)


def as_document(evaluator: Evaluator, rows: Rows, pairing: Pairing, evaluation: Evaluation) -> dict[str, Any]:
    """What --json prints and scores.json holds."""
    layout = evaluator.truth.layout
    unusable = [problem for problem in evaluation.problems if problem.what == "truth"]
    images, missed = len(evaluation.scored), [one.scores[THIS_RUN].missed for one in evaluation.scored]
    there = [share for share in missed if not math.isnan(share)]
    return {
        "out": evaluator.out.redacted,
        "truth": evaluator.truth.storage.redacted,
        "protocol": {
            "layout": evaluator.truth.layout_name,
            "classes": layout.classes,
            "ignored": "the largest id" if layout.ignore is None else list(layout.ignore),
            "crop": evaluator.view.crop,
            "size": evaluator.view.size,
            "pixels": str(evaluator.view),
            "paired_by": pairing.rule,
        },
        "counts": {
            "rows": len(rows.ok) + rows.failed.total(),
            "scored": len(there),
            "truth_says_nothing": images - len(there),
            "pixels_in_no_segment": sum(there) / len(there) if there else 0.0,
            "without_label_map": dict(rows.failed),
            "shards_missing": rows.shards_missing,
            "without_truth": _listed(pairing.rows_alone),
            "truths_without_row": _listed(pairing.truths_alone),
            "ambiguous": _listed(pairing.repeated),
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
    }


def _listed(keys: Sequence[str]) -> dict[str, Any]:
    return {"count": len(keys), "first": list(keys[:FIRST])}


def print_document(console: Console, document: Mapping[str, Any]) -> None:
    """The same for people."""

    def said(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    protocol = document["protocol"]
    ignored = protocol["ignored"] if isinstance(protocol["ignored"], str) else ", ".join(map(str, protocol["ignored"]))
    said(
        f"{document['out']} against {document['truth']}, layout {protocol['layout']}, ids that count for nothing: "
        f"{ignored or 'none'}; paired by {protocol['paired_by']}"
    )
    for line in _uncounted(document["counts"]):
        said(line, "yellow")
    unusable = [problem for problem in document["problems"] if problem["what"] == "truth"]
    if unusable:
        said(f"{len(unusable)} truths cannot be used, and their images are not scored:", "red")
    for problem in unusable[:FIRST]:
        said(f"  {problem['key']}: {problem['message']}", "red")
    lost = [problem for problem in document["problems"] if problem["what"] == "image"]
    if lost:
        said(f"no baselines on {len(lost)} images that cannot be read; the first: {lost[0]['message']}", "yellow")
    pixels = f"{protocol['layout']}, {protocol['pixels']}, {document['counts']['scored']} images"
    if any(name in method["figures"] for method in document["methods"] for name in CLASS_SCORES):
        columns = dict.fromkeys(IMAGE_SCORES[:2], PER_IMAGE) | {name: MATCHING[name] for name in CLASS_SCORES}
    else:
        columns = dict.fromkeys(IMAGE_SCORES[:2], PER_IMAGE)
    heads = [f"{'accuracy' if 'accuracy' in name else 'mIoU'}\n{how}" for name, how in columns.items()]
    console.print(_table(f"Segments matched to classes ({pixels})", LEGEND, document["methods"], list(columns), heads))
    if document["named"]:
        console.print(_classes_table(f"Names of segments, nothing matched ({pixels})", document["named"]))
    names = ("best IoU", "covering", "VI", "boundary F", "split", "merged")
    console.print(_table(f"Regions, nothing matched ({pixels})", REGIONS, document["methods"], IMAGE_SCORES[2:], names))


def _classes_table(title: str, named: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", caption=NAMES, caption_justify="left", min_width=100)
    table.add_column("class")
    table.add_column("IoU", justify="right")
    for name, iou in sorted(named["iou"].items(), key=lambda pair: -pair[1]):
        table.add_row(name, f"{iou:.3f}")
    table.add_section()
    for name in ("miou", "accuracy"):
        table.add_row({"miou": "mean", "accuracy": "accuracy of pixels"}[name], _cell(name, named[name]))
    return table


def _uncounted(counts: Mapping[str, Any]) -> list[str]:
    """What of the run and of the truth no figure is about."""
    lines = []
    if counts["without_label_map"]:
        statuses = ", ".join(f"{count} {status}" for status, count in sorted(counts["without_label_map"].items()))
        lines.append(f"{sum(counts['without_label_map'].values())} rows have no label map ({statuses}): not scored")
    if counts["shards_missing"]:
        lines.append(f"{counts['shards_missing']} shards of the run have no labels: not scored (`diffseg status`)")
    if counts["truth_says_nothing"]:
        lines.append(f"{counts['truth_says_nothing']} truths ignore every pixel that is looked at: not scored")
    if counts["pixels_in_no_segment"] > WORTH_SAYING:
        lines.append(
            f"{counts['pixels_in_no_segment']:.1%} of the pixels are in no segment and count as missed; of labels with "
            "a crop, --crop centre scores the centre square alone"
        )
    for name, what in (
        ("without_truth", "rows have no truth: not scored"),
        ("truths_without_row", "truths have no row with a label map"),
        ("ambiguous", "rows share their key with another row, or with truths: not scored"),
    ):
        if counts[name]["count"]:
            first = ", ".join(counts[name]["first"])
            more = ", …" if counts[name]["count"] > FIRST else ""
            lines.append(f"{counts[name]['count']} {what} ({first}{more})")
    return lines


def _table(
    title: str, legend: str, methods: Sequence[Mapping[str, Any]], names: Sequence[str], heads: Sequence[str]
) -> Table:
    table = Table(title=title, caption=legend, title_justify="left", caption_justify="left", show_lines=False)
    table.add_column("method", no_wrap=True)
    table.add_column("images", justify="right")
    for head in heads:
        table.add_column(head, justify="right")
    for method in methods:
        cells = [_cell(name, method["figures"].get(name)) for name in names]
        table.add_row(method["name"], f"{method['images']:,}", *cells)
    return table


def _cell(name: str, figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "–"
    digits = 2 if name in ("vi", "split", "merged") else 3
    return f"{figure['mean']:.{digits}f} ±{figure['half_width']:.{digits}f}".replace("±0.", "±.")
