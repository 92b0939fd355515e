"""Export a run, a label shard after another: what a part is to write, and what is made of all parts at the end.

One call writes a part, `export_part`; it knows neither Ray nor processes, and one image is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from diffseg.segmentation import BACKGROUND
from pipeline.executor.parallel import parallel_map
from pipeline.exports import coco, cvat, huggingface, labelstudio, voc
from pipeline.exports.assemble import Fragments, Lines
from pipeline.exports.items import PROBLEMS_SHOWN, UNNAMED, Export, Item, Part, Tally, read_items
from pipeline.exports.names import name_hash, repeated
from pipeline.output.commit import read_run_commits
from pipeline.output.manifest import Manifest
from pipeline.output.reader import is_uncertain, label_rows
from pipeline.readers.samples import Shard
from pipeline.storage import SourceError, Storage

RECORD = "export.json"
"""In DEST: what lies there, so that the same command goes over it again and another one does not."""

FormatName: TypeAlias = Literal["coco-panoptic", "coco-instances", "voc", "huggingface", "label-studio", "cvat"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """write: the files of a part; returns lines for `files`, which makes those of the whole export, piece by piece.

    photographs: whether it is nothing without them. jpeg: whether it knows only JPEGs.
    """

    write: Callable[[Export, Part, Iterable[Item], Tally], Lines]
    files: Callable[[Export, Fragments], Iterator[tuple[str, Iterator[bytes]]]]
    photographs: bool = False
    jpeg: bool = False


FORMATS: Mapping[FormatName, Format] = {
    "coco-panoptic": Format(write=coco.write_panoptic, files=coco.panoptic_files),
    "coco-instances": Format(write=coco.write_instances, files=coco.instances_files),
    "voc": Format(write=voc.write_part, files=voc.files, photographs=True, jpeg=True),
    "huggingface": Format(write=huggingface.write_part, files=huggingface.files, photographs=True),
    "label-studio": Format(write=labelstudio.write_part, files=labelstudio.files),
    "cvat": Format(write=cvat.write_part, files=cvat.files),
}


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What names depend on. hashes: uint64 of the ok rows, by their numbers in `rows`. names: of their segments."""

    shard: str
    rows: np.ndarray
    hashes: np.ndarray
    names: frozenset[str]


def done_shards(out: Storage, manifest: Manifest) -> dict[str, int]:
    """Rows by label shard, in order of their names. Raises SourceError where there is none."""
    rows = {shard: commit.rows for shard, commit in read_run_commits(out, manifest).done.items()}
    if not rows:
        raise SourceError(f"{out.redacted}: no shard of this run is done, so there is nothing to export")
    return dict(sorted(rows.items()))


def survey_part(out: Storage, shard: str) -> Survey:
    """Read the keys and the segments' names of a label shard."""
    rows, hashes = [], []
    names: set[str] = set()
    for row in label_rows(out, shard, ("key", "index", "status", "segments")):
        if row["status"] == "ok":
            rows.append(row["index"])
            hashes.append(name_hash(row["key"]))
            names.update(segment["name"] or UNNAMED for segment in row["segments"] if not is_uncertain(segment))
    names.discard(BACKGROUND)
    return Survey(shard=shard, rows=np.array(rows, int), hashes=np.array(hashes, np.uint64), names=frozenset(names))


def make_parts(
    shards: Mapping[str, int], surveys: Iterable[Survey], sources: Mapping[str, Shard], names: Sequence[str] = ()
) -> tuple[tuple[str, ...], list[Part]]:
    """(categories, the work by label shard). shards: their rows. sources: the shards that were labelled, by name.

    names: the run's, which come first and in their order, so that ids are the rows' class ids.
    """
    by_shard = {survey.shard: survey for survey in surveys}
    several = repeated({name: survey.hashes for name, survey in by_shard.items()})
    found = set().union(*(survey.names for survey in by_shard.values()))
    categories = [*names, *sorted(found - set(names))] or [UNNAMED]
    parts, first = [], 1
    for number, (shard, rows) in enumerate(shards.items()):
        survey = by_shard[shard]
        parts.append(
            Part(
                shard=shard,
                number=number,
                parts=len(shards),
                first_id=first,
                renamed=frozenset(survey.rows[np.isin(survey.hashes, several)].tolist()),
                source=sources.get(shard),
            )
        )
        first += rows
    return tuple(categories), parts


def claim(export: Export, format_name: FormatName, manifest: Manifest, parts: int) -> None:
    """Leave a record in DEST. Raises SourceError where there is something else."""
    plain = {
        field.name: getattr(export, field.name)
        for field in dataclasses.fields(export)
        if field.name not in ("out", "dest")
    }
    record = plain | {"format": format_name, "fingerprint": manifest.fingerprint, "shards": parts}
    text = json.dumps(record, indent=1, sort_keys=True).encode() + b"\n"
    try:
        before = export.dest.read_bytes(RECORD)
    except FileNotFoundError:
        before = None
    if before != text and (before is not None or export.dest.files(depth=2)):
        what = "an export of another run, or with other flags" if before else "files"
        raise SourceError(f"{export.dest.redacted}: holds {what}; name an empty folder")
    export.dest.write_bytes(RECORD, text)


def export_part(common: tuple[Export, FormatName], part: Part) -> tuple[Lines, Tally]:
    """Write one label shard's part."""
    export, name = common
    tally = Tally()
    lines = FORMATS[name].write(export, part, read_items(export, part, tally), tally)
    return lines, tally


def export_parts(
    export: Export,
    name: FormatName,
    parts: list[Part],
    *,
    processes: int,
    address: str | None = None,
    on_part: Callable[[], None] = lambda: None,
) -> Tally:
    """Write all parts, in so many processes or on the Ray cluster at the address, and then what is made of them."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="diffseg-export-") as folder:
        fragments = Fragments(folder)
        for lines, of_part in parallel_map(export_part, (export, name), parts, processes=processes, address=address):
            fragments.add(lines)
            tally.counts.update(of_part.counts)
            tally.problems += of_part.problems[: PROBLEMS_SHOWN - len(tally.problems)]
            on_part()
        for path, pieces in FORMATS[name].files(export, fragments):
            local = f"{folder}/whole"
            with open(local, "wb") as file:
                file.writelines(pieces)
            export.dest.write_file(path, local)
    return tally
