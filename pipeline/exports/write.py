"""Export a run: one call per label shard (`export_shard`), then the files that are assembled from all shards.

`export_shard` does not depend on Ray or on processes, and holds one image in memory at a time.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pipeline.bounded_json import InvalidFile, read_bounded
from pipeline.executor.parallel import parallel_map
from pipeline.exports import coco, cvat, huggingface, label_studio, semantic, voc, yolo
from pipeline.exports.assemble import Fragments, Lines
from pipeline.exports.items import (
    Export,
    ExportTask,
    LabelledImage,
    read_labelled_images,
)
from pipeline.exports.tally import Tally
from pipeline.output.ownership import refuse_foreign_folder
from pipeline.output.schemas import DOCUMENT_BYTES
from pipeline.storage import SourceError

RECORD = ".diffseg-export.json"
"""File in DEST that records the export, so that only the same command may write to DEST again.

It is hidden, because importers take every other JSON file in a data set for annotations.
"""

FormatName: TypeAlias = Literal[
    "coco-panoptic",
    "coco-instances",
    "voc",
    "huggingface",
    "label-studio",
    "cvat",
    "mmseg",
    "yolo",
    "ultralytics-semantic",
    "png",
]


@dataclass(frozen=True, kw_only=True)
class Format:
    """An export format.

    Attributes:
        write: Writes the files of one label shard, and returns lines for `files`.
        files: Yields path and contents of each file of the whole export, assembled from the lines of all shards.
        needs_images: Whether the format always includes the source images.
        jpeg: Whether source images must be JPEGs.
        needs_names: Whether label maps hold classes, of which a run without names has only one.
    """

    write: Callable[[Export, ExportTask, Iterable[LabelledImage], Tally], Lines]
    files: Callable[[Export, Fragments], Iterator[tuple[str, Iterator[bytes]]]]
    needs_images: bool = False
    jpeg: bool = False
    needs_names: bool = False


FORMATS: Mapping[FormatName, Format] = {
    "coco-panoptic": Format(write=coco.write_panoptic, files=coco.panoptic_files),
    "coco-instances": Format(write=coco.write_instances, files=coco.instances_files),
    "voc": Format(write=voc.write_shard, files=voc.files, needs_images=True, jpeg=True, needs_names=True),
    "huggingface": Format(write=huggingface.write_shard, files=huggingface.files, needs_images=True),
    "label-studio": Format(write=label_studio.write_shard, files=label_studio.files),
    "cvat": Format(write=cvat.write_shard, files=cvat.files),
    "mmseg": Format(
        write=semantic.write_mmseg, files=semantic.mmseg_files, needs_images=True, jpeg=True, needs_names=True
    ),
    "yolo": Format(write=yolo.write_shard, files=yolo.files, needs_images=True),
    "ultralytics-semantic": Format(
        write=semantic.write_ultralytics, files=semantic.ultralytics_files, needs_images=True, needs_names=True
    ),
    "png": Format(write=semantic.write_png, files=semantic.png_files),
}


def claim(export: Export, format_name: FormatName, shards: int) -> None:
    """Record the export in DEST.

    Raises:
        SourceError: DEST holds another export, or other files.
    """
    settings = {
        field.name: getattr(export, field.name)
        for field in dataclasses.fields(export)
        if field.name not in ("out", "dest", "copy_images", "manifest", "selection", "cut")
    }
    settings["selection"] = export.selection.plain()
    if export.cut is not None:
        settings["level"] = str(export.cut.cut)
    run = {"fingerprint": export.manifest.fingerprint, "shards": shards}
    record = settings | run | {"format": format_name, "photographs": export.copy_images}
    text = json.dumps(record, indent=1, sort_keys=True).encode() + b"\n"
    try:
        existing = read_bounded(export.dest, RECORD, DOCUMENT_BYTES)
    except FileNotFoundError:
        existing = None
    except InvalidFile as error:
        raise SourceError(f"{export.dest.joined(RECORD)}: {error}; choose an empty folder") from None
    if existing is None:
        refuse_foreign_folder(export.dest, RECORD)
    elif existing != text:
        raise SourceError(
            f"{export.dest.redacted}: holds an export of another run, or with other flags; choose an empty folder"
        )
    export.dest.write_bytes(RECORD, text)


def export_shard(export_and_format: tuple[Export, FormatName], task: ExportTask) -> tuple[Lines, Tally]:
    """Write the files of one label shard, and return its lines for the files of the whole export."""
    export, format_name = export_and_format
    tally = Tally()
    lines = FORMATS[format_name].write(export, task, read_labelled_images(export, task, tally), tally)
    return lines, tally


def export_shards(
    export: Export,
    format_name: FormatName,
    tasks: list[ExportTask],
    *,
    processes: int,
    address: str | None = None,
    on_shard: Callable[[], None] = lambda: None,
) -> Tally:
    """Write all label shards, and then the files that are assembled from them.

    Args:
        export: What the tasks share.
        format_name: Key in `FORMATS`.
        tasks: The label shards.
        processes: Number of processes on this machine.
        address: Ray cluster to use instead of local processes.
        on_shard: Called after each label shard.
    """
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="diffseg-export-") as folder:
        fragments = Fragments(folder)
        common = (export, format_name)
        for lines, shard_tally in parallel_map(export_shard, common, tasks, processes=processes, address=address):
            fragments.add(lines)
            tally.add(shard_tally)
            on_shard()
        for path, pieces in FORMATS[format_name].files(export, fragments):
            local = f"{folder}/whole"
            with open(local, "wb") as file:
                file.writelines(pieces)
            export.dest.write_file(path, local)
    return tally
