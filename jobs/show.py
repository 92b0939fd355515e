"""Draw one sample of a run: the image, its segments over it, and what its row says."""

from __future__ import annotations

import difflib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffseg.drawing.overlay import contact_sheet, overlay, segment_colours
from jobs.common import OK, SOME_FAILED, RunFolder, guarded, parsed, print_json, storage_options
from pipeline.output.commit import read_run_commits
from pipeline.output.manifest import Manifest
from pipeline.output.reader import label_rows, segment_name
from pipeline.output.rows import SCHEMA, decode_mask
from pipeline.output.source_images import find_images, read_images
from pipeline.storage import SourceError, Storage

HEIGHT = 512


@dataclass(frozen=True, kw_only=True)
class ShowCommand(RunFolder):
    """The flags of `diffseg show`."""

    key: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="KEY")]
    """Of the sample, as its row has it."""
    picture: str = "sample.png"
    """Where to write the picture: a path or URL."""
    images: str | None = None
    """Where SRC of the run lies now; default: where run.json says."""


def _show(command: ShowCommand) -> int:
    out, manifest = command.open()
    row = _row(out, manifest, command.key)
    mask = row.pop("mask")
    drawn = mask is not None
    if drawn:
        store = Storage(url=".", options=storage_options(command.storage_options))
        image = _image(manifest, store, row, command.images)
        sheet = contact_sheet([_tiles(image, decode_mask(mask), _names(row))], height=HEIGHT)
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG")
        place = Path(command.picture)
        target = store.at(command.picture.rpartition("/")[0] or ".")
        target.write_bytes(place.name, buffer.getvalue())
    if command.json:
        print_json(row | {"picture": command.picture if drawn else None})
    else:
        _print(row, command.picture if drawn else None)
    return OK if drawn else SOME_FAILED


def _row(out: Storage, manifest: Manifest, key: str) -> dict[str, Any]:
    """The row of a key. Raises SourceError, naming keys that are like it, where there is none."""
    seen: list[str] = []
    for shard, index, found in _keys(out, manifest):
        if found == key:
            (row,) = (row for row in label_rows(out, shard, SCHEMA.names) if row["index"] == index)
            return row
        seen.append(found)
    like = ", ".join(map(repr, difflib.get_close_matches(key, seen, 3, 0.5) or seen[:3]))
    raise SourceError(
        f"{out.redacted}: none of {len(seen)} rows has the key {key!r}; there are {like or 'none at all'}"
    )


def _keys(out: Storage, manifest: Manifest) -> Iterator[tuple[str, int, str]]:
    for shard in sorted(read_run_commits(out, manifest).done):
        yield from ((shard, row["index"], row["key"]) for row in label_rows(out, shard, ("index", "key")))


def _image(manifest: Manifest, store: Storage, row: dict[str, Any], images: str | None) -> np.ndarray | None:
    """uint8 [H, W, 3]; None, with a word of it, where the photograph is not there any more."""
    try:
        shard = find_images(manifest, store, images)[row["shard"]]
        keys = {row["index"]: row["key"]}
        found: np.ndarray | str = dict(read_images(shard, keys, store, manifest.settings["image_field"]))[row["index"]]
    except (SourceError, OSError, KeyError) as error:
        found = str(error)
    if isinstance(found, str):
        text = f"the labels alone are drawn: {found}; --images says where the run's images lie now"
        Console(stderr=True).print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        return None
    return found


def _names(row: dict[str, Any]) -> dict[int, str | None]:
    return {segment["id"]: segment_name(segment) for segment in row["segments"]}


def _tiles(image: np.ndarray | None, labels: np.ndarray, names: dict[int, str | None]) -> list[np.ndarray]:
    if image is None:
        return [overlay(np.zeros((*labels.shape, 3), np.uint8), labels, opacity=1, names=names)]
    return [image, overlay(image, labels, names=names)]


def _print(row: dict[str, Any], picture: str | None) -> None:
    console = Console()

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    line(f"{row['key']}: row {row['index']} of shard {row['shard']}, {row['status']}")
    if picture is None:
        line(row["error"])
        return
    line(f"{row['width']} x {row['height']} pixels, {row['n_segments']} segments, confidence {row['confidence']:.2f}")
    table = Table()
    for name in ("", "segment", "share", "confidence", "name"):
        table.add_column(name, justify="left" if name in ("", "name") else "right")
    for segment in sorted(row["segments"], key=lambda segment: -segment["area"]):
        called = segment_name(segment)
        red, green, blue = segment_colours(segment["id"] + 1, {segment["id"]: called})[-1]
        share = segment["area"] / (row["width"] * row["height"])
        table.add_row(
            f"[on rgb({red},{green},{blue})]  [/]",
            str(segment["id"]),
            f"{share:.1%}",
            f"{segment['confidence']:.2f}",
            Text(json.dumps(called, ensure_ascii=False) if called else ""),
        )
    console.print(table)
    line(picture)


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg show`; exit code 0 with a picture, 1 for a row without a label map, 2 if refused."""
    command = parsed(ShowCommand, argv, "show", __doc__)
    return guarded(lambda: _show(command))


if __name__ == "__main__":
    sys.exit(main())
