"""Write the label maps of a run in the format of another tool.

Formats:
  coco-panoptic, coco-instances: COCO, in the layout of COCO itself.
  voc, mmseg, ultralytics-semantic: class maps, which need a run with names.
  yolo: polygons for Ultralytics; reports the IoU that they lose.
  huggingface: Parquet files with a dataset card; --push-to-hub uploads them.
  label-studio: tasks to import.
  cvat: an annotations.xml to upload.
  png: label maps in the folders of SRC.

The page docs/exports.md says how each tool reads them.

Exit codes:
  0: every label map is exported, or left out by your flags.
  1: some label maps could not be exported, or some shards of the run are not done.
  2: wrong usage, or DEST holds something else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from jobs.common import OK, SOME_FAILED, guarded, parsed
from jobs.printing import CleanConsole, print_json, print_line, progress_bar
from jobs.run_flags import CutFlags, ParallelFlags, SelectionFlags, SourceImageFlags, check_val_share
from pipeline.exports.card import UNNAMED_WARNING
from pipeline.exports.hub import push
from pipeline.exports.items import Export
from pipeline.exports.label_studio import LocalStorage, local_storage
from pipeline.exports.plan import done_shards, make_tasks, sources_of, survey_shard
from pipeline.exports.tally import Tally
from pipeline.exports.write import FORMATS, FormatName, claim, export_shards
from pipeline.output.levels import RunCut
from pipeline.storage import SourceError, redact, scheme
from pipeline.wording import counted


@dataclass(frozen=True, kw_only=True)
class ExportCommand(CutFlags, ParallelFlags, SelectionFlags, SourceImageFlags):
    """The flags of `diffseg export`."""

    dest: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DEST")]
    """Folder or URL to write to: an empty one, or one where the same command was stopped."""
    to: FormatName
    """Format to write."""
    copy_images: bool = False
    """Copy the source images into DEST; voc, huggingface, mmseg, yolo and ultralytics-semantic always contain them."""
    val_share: float = 0.0
    """Share of the images to put into a validation part, 0 to 1.
    The stem of an image alone decides, so that it is in the same part in every run and format."""
    min_confidence: float = 0.0
    """Leave out images with a lower confidence, 0 to 1."""
    min_segment_confidence: float = 0.0
    """Leave segments with a lower confidence unlabelled, 0 to 1."""
    without_names: bool = False
    """Write a format of class maps for a run without names: every segment has class 1."""
    license: str = "unknown"
    """Licence of the labels, for the dataset card and COCO: an identifier of the Hugging Face Hub, as cc-by-4.0."""
    push_to_hub: str | None = None
    """Also upload a huggingface export to this data set on the Hub, OWNER/NAME.
    A new data set is private; one that exists keeps the files of other runs."""
    image_prefix: str | None = None
    """Text before the path of each image in the tasks of label-studio; default: that of its local storage."""


def _export(command: ExportCommand) -> int:
    _check_flags(command)
    out, manifest = command.open()
    export_format = FORMATS[command.to]
    copy_images = export_format.needs_images or command.copy_images
    selection, cut = command.selection(), command.cut()
    run_cut = None if cut is None else RunCut.of(cut, manifest, out.redacted)
    shards = done_shards(out, manifest)
    sources = sources_of(out, shards, command.source_shards(manifest)) if copy_images else {}
    names = manifest.settings.get("naming", {}).get("names", ())
    surveys = [survey_shard(out, shard, selection.keys or ()) for shard in shards]
    categories, tasks = make_tasks(shards, surveys, sources, names)
    dest = command.store().at(command.dest)
    served = local_storage(dest.at(command.images or manifest.source), dest, copy_images=copy_images)
    export = Export(
        out=out,
        dest=dest,
        manifest=manifest,
        license=command.license,
        categories=categories,
        copy_images=copy_images,
        jpeg=export_format.jpeg,
        selection=selection,
        val_share=command.val_share,
        min_confidence=command.min_confidence,
        min_segment_confidence=command.min_segment_confidence,
        image_prefix=served.prefix if command.image_prefix is None else command.image_prefix,
        cut=run_cut,
    )
    _check_names(command, export)
    claim(export, command.to, len(tasks))
    with progress_bar("exporting label shards", len(tasks)) as advance:
        tally = export_shards(
            export,
            command.to,
            tasks,
            processes=command.process_count,
            address=command.ray_address,
            on_shard=advance,
        )
    missing = max(0, manifest.shards - len(shards))
    absent = sorted(selection.keys.difference(*(survey.found for survey in surveys))) if selection.keys else []
    appended = command.push_to_hub and push(dest.url, command.push_to_hub, manifest.fingerprint)
    if command.json:
        print_json(_facts(export, tally, missing, absent))
    else:
        console = CleanConsole(stderr=True)
        _print(console, export, tally, missing, absent)
        for line in _advice(command, export, served, bool(appended)):
            print_line(console, redact(line))
    return SOME_FAILED if tally.problems or missing else OK


def _check_flags(command: ExportCommand) -> None:
    check_val_share(command.val_share)
    if command.push_to_hub and (command.to != "huggingface" or scheme(command.dest)):
        raise ValueError(
            "--push-to-hub uploads a huggingface export from a local DEST: use --to huggingface and a folder"
        )


def _check_names(command: ExportCommand, export: Export) -> None:
    if FORMATS[command.to].needs_names and not (export.is_named or command.without_names):
        raise SourceError(
            f"{export.out.redacted}: its segments have no names, so --to {command.to} would hold class 1 everywhere. "
            "Label with --names, choose coco-instances, yolo or png, or pass --without-names"
        )


def _facts(export: Export, tally: Tally, missing: int, absent: list[str]) -> dict[str, Any]:
    """Return what --json prints: `missing` shards of the run are not done, and `absent` keys are not in it."""
    facts: dict[str, Any] = {
        "counts": tally.counts,
        "problems": tally.problems,
        "dest": export.dest.redacted,
        "shards_missing": missing,
        "keys_missing": absent,
        "categories": export.categories,
        "parts": tally.parts,
    }
    if tally.polygons:
        facts["polygon_iou"] = {"mean": tally.iou_mean, "lowest": tally.iou_lowest}
    return facts


def _print(console: CleanConsole, export: Export, tally: Tally, missing: int, absent: list[str]) -> None:
    left_out = [f"{count:,} {status}" for status, count in sorted(tally.counts.items()) if status != "exported"]
    images = f"{counted(tally.counts['exported'], 'image')}; left out: {', '.join(left_out) or 'none'}"
    print_line(console, redact(f"{export.dest.redacted}: {images}"))
    if missing:
        print_line(console, f"not exported: {counted(missing, 'shard')} of the run, failed or not done", "yellow")
    if absent:
        print_line(console, f"--keys: {counted(len(absent), 'key')} not in the run, such as {absent[0]!r}", "yellow")
    for part in export.parts:
        if not tally.parts[part]:
            print_line(console, f"no image is in the part {part}", "yellow")
    if tally.polygons:
        iou = f"mean {tally.iou_mean:.4f}, lowest {tally.iou_lowest:.4f}"
        print_line(console, f"polygons.csv has the IoU of each mask with its polygon: {iou}")
    for key, problem in tally.problems:
        print_line(console, redact(f"{key}: {problem}"), "yellow")


def _advice(command: ExportCommand, export: Export, served: LocalStorage, appended: bool) -> Iterator[str]:
    """Yield what the user of this format must know."""
    if command.to in ("huggingface", "png") and not export.is_named:
        yield f"{UNNAMED_WARNING}."
    if command.to == "label-studio" and command.image_prefix is None and served.document_root:
        yield "Start Label Studio with these variables, and add a storage of local files with this path to its project:"
        yield "  LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true"
        yield f"  LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={served.document_root}"
        yield f"  path of the storage: {served.path}"
    if command.push_to_hub:
        how = "appended to the files of other runs" if appended else "uploaded"
        yield f"https://huggingface.co/datasets/{command.push_to_hub}: {how}"


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg export` and return its exit code."""
    command = parsed(ExportCommand, argv, "export", __doc__)
    return guarded(lambda: _export(command))


if __name__ == "__main__":
    sys.exit(main())
