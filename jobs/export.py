"""Write the label maps of a run in the format of another tool.

Formats:
  coco-panoptic, coco-instances: COCO. FiftyOne reads the latter (fiftyone.types.COCODetectionDataset).
  voc, huggingface: these contain the source images as well.
  label-studio: tasks to import.
  cvat: an annotations.xml to upload.

Exit codes:
  0: every label map is exported, or left out by your flags.
  1: some label maps could not be exported, or some shards of the run are not done.
  2: wrong usage, or DEST holds something else.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.common import OK, SOME_FAILED, guarded, parsed
from jobs.printing import CleanConsole, print_json, print_line, progress_bar
from jobs.run_flags import ParallelFlags, SourceImageFlags
from pipeline.exports.items import Export, Tally
from pipeline.exports.write import FORMATS, FormatName, claim, done_shards, export_shards, make_tasks, survey_shard
from pipeline.storage import redact


@dataclass(frozen=True, kw_only=True)
class ExportCommand(ParallelFlags, SourceImageFlags):
    """The flags of `diffseg export`."""

    dest: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DEST")]
    """Folder or URL to write to: an empty one, or one where the same command was stopped."""
    to: FormatName
    """Format to write."""
    copy_images: bool = False
    """Copy the source images into DEST/images; voc and huggingface always contain them."""
    min_confidence: float = 0.0
    """Leave out images with a lower confidence, 0 to 1."""
    min_segment_confidence: float = 0.0
    """Leave segments with a lower confidence unlabelled, 0 to 1."""
    image_prefix: str = "/data/local-files/?d="
    """Text before the path of each image in the tasks of label-studio; default: the prefix of its local storage."""


def _export(command: ExportCommand) -> int:
    out, manifest = command.open()
    export_format = FORMATS[command.to]
    copy_images = export_format.needs_images or command.copy_images
    sources = command.source_shards(manifest) if copy_images else {}
    shards = done_shards(out, manifest)
    names = manifest.settings.get("naming", {}).get("names", ())
    categories, tasks = make_tasks(shards, (survey_shard(out, shard) for shard in shards), sources, names)
    export = Export(
        out=out,
        dest=command.store().at(command.dest),
        image_field=manifest.settings["image_field"],
        categories=categories,
        copy_images=copy_images,
        jpeg=export_format.jpeg,
        min_confidence=command.min_confidence,
        min_segment_confidence=command.min_segment_confidence,
        image_prefix=command.image_prefix,
    )
    claim(export, command.to, manifest, len(tasks))
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
    if command.json:
        facts = {
            "counts": tally.counts,
            "problems": tally.problems,
            "dest": export.dest.redacted,
            "shards_missing": missing,
        }
        print_json(facts | {"categories": categories})
    else:
        _print(export, tally, missing)
    return SOME_FAILED if tally.problems or missing else OK


def _print(export: Export, tally: Tally, missing: int) -> None:
    console = CleanConsole(stderr=True)
    left_out = [f"{count:,} {status}" for status, count in sorted(tally.counts.items()) if status != "exported"]
    images = f"{tally.counts['exported']:,} images; left out: {', '.join(left_out) or 'none'}"
    print_line(console, redact(f"{export.dest.redacted}: {images}"))
    if missing:
        print_line(console, f"{missing:,} shards of the run failed or are not done", "yellow")
    for key, problem in tally.problems:
        print_line(console, redact(f"{key}: {problem}"), "yellow")


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg export` and return its exit code."""
    command = parsed(ExportCommand, argv, "export", __doc__)
    return guarded(lambda: _export(command))


if __name__ == "__main__":
    sys.exit(main())
