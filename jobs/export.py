"""Write the label maps of a run in the format of another tool.

coco-panoptic and coco-instances are COCO's; FiftyOne reads the latter (fiftyone.types.COCODetectionDataset). voc and
huggingface hold the photographs as well. label-studio makes tasks to import and cvat an annotations.xml to upload.
Exit code: 0 all label maps are exported, or left out by your flags; 1 some could not be; 2 wrong usage.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress

from jobs.common import OK, SOME_FAILED, guarded, parsed, storage_options
from jobs.printing import print_json
from jobs.run_flags import RunFlags
from pipeline.exports.items import Export, Tally
from pipeline.exports.write import FORMATS, FormatName, claim, done_shards, export_parts, make_parts, survey_part
from pipeline.output.source_images import find_source_shards
from pipeline.storage import SourceError, Storage, redact


@dataclass(frozen=True, kw_only=True)
class ExportCommand(RunFlags):
    """The flags of `diffseg export`."""

    dest: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DEST")]
    """Folder or URL to write to: an empty one, or one where this very command was stopped."""
    to: FormatName
    """The format."""
    copy_images: bool = False
    """Write the photographs into DEST/images; voc and huggingface hold them in any case."""
    images: str | None = None
    """Where SRC of the run lies now, for the photographs; default: where run.json says."""
    min_confidence: float = 0.0
    """Leave out images below it."""
    min_segment_confidence: float = 0.0
    """Leave segments below it unlabelled."""
    image_prefix: str = "/data/local-files/?d="
    """What goes before a photograph's path in label-studio's tasks; default: its local storage."""
    processes: int | None = None
    """At once on this machine; default: one a core."""
    address: str | None = None
    """Of a Ray cluster whose CPUs do the work instead; default: RAY_ADDRESS, else this machine."""


def _export(command: ExportCommand) -> int:
    out, manifest = command.open()
    store = Storage(url=".", options=storage_options(command.storage_options))
    form = FORMATS[command.to]
    photographs = form.photographs or command.copy_images
    try:
        sources = find_source_shards(manifest, store, command.images) if photographs else {}
    except SourceError as error:
        raise SourceError(f"{error}. --images says where the photographs of the run lie now") from error
    shards = done_shards(out, manifest)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        names = manifest.settings.get("naming", {}).get("names", ())
        categories, parts = make_parts(shards, (survey_part(out, shard) for shard in shards), sources, names)
        export = Export(
            out=out,
            dest=store.at(command.dest),
            image_field=manifest.settings["image_field"],
            categories=categories,
            photographs=photographs,
            jpeg=form.jpeg,
            min_confidence=command.min_confidence,
            min_segment_confidence=command.min_segment_confidence,
            image_prefix=command.image_prefix,
        )
        claim(export, command.to, manifest, len(parts))
        task = bar.add_task("exporting label shards", total=len(parts))
        tally = export_parts(
            export,
            command.to,
            parts,
            processes=command.processes or os.cpu_count() or 1,
            address=command.address or os.environ.get("RAY_ADDRESS"),
            on_part=lambda: bar.advance(task),
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
    console = Console(stderr=True)

    def line(text: str, style: str = "") -> None:
        console.print(redact(text), style=style, markup=False, highlight=False, soft_wrap=True)

    rest = [f"{count:,} {what}" for what, count in sorted(tally.counts.items()) if what != "exported"]
    line(f"{export.dest.redacted}: {tally.counts['exported']:,} images; left out: {', '.join(rest) or 'none'}")
    if missing:
        line(f"{missing:,} shards of the run failed or are not done", "yellow")
    for key, why in tally.problems:
        line(f"{key}: {why}", "yellow")


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg export`; the exit code."""
    command = parsed(ExportCommand, argv, "export", __doc__)
    return guarded(lambda: _export(command))


if __name__ == "__main__":
    sys.exit(main())
