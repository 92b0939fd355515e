"""Draw one sample of a run: the image beside its segments, and print its row. Without KEY, list the keys.

Exit codes:
  0: the picture is written, or the keys are listed.
  1: the row has no label map, and its error is printed.
  2: OUT holds no run, or no row with this key.
"""

from __future__ import annotations

import difflib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import tyro
from rich.table import Table
from rich.text import Text

from diffseg.drawing.overlay import contact_sheet, overlay, segment_colours
from jobs.common import OK, SOME_FAILED, guarded, parsed
from jobs.printing import CleanConsole, print_json, print_line
from jobs.run_flags import MOVED_IMAGES_ADVICE, SourceImageFlags
from jobs.streams import print_text
from pipeline.errors import RunFailed
from pipeline.output.commit import LabelShard
from pipeline.output.manifest import Manifest
from pipeline.output.reader import label_rows, segment_name
from pipeline.output.records import read_run_commits
from pipeline.output.rows import SCHEMA, decode_mask
from pipeline.output.source_images import read_source_images
from pipeline.storage import SourceError, Storage, redact

PICTURE_HEIGHT = 512
"""Height of the image in the picture, in pixels."""


@dataclass(frozen=True, kw_only=True)
class ShowCommand(SourceImageFlags):
    """The flags of `diffseg show`."""

    key: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="KEY")] = None
    """Key of the sample, as in column `key` of its row; without it, the keys of all rows are printed, one per line."""
    picture: str = "sample.png"
    """Path or URL of the PNG to write."""


def _show(command: ShowCommand) -> int:
    out, manifest = command.open()
    if command.key is None:
        return _list_keys(out, manifest, as_json=command.json)
    row = _find_row(out, manifest, command.key)
    mask = row.pop("mask")
    picture = None if mask is None else command.picture
    if picture is not None:
        image = _read_source_image(command, manifest, row)
        sheet = contact_sheet([_tiles(image, decode_mask(mask), _names(row))], height=PICTURE_HEIGHT)
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG")
        folder, _, name = picture.rpartition("/")
        command.store().at(folder or ".").write_bytes(name, buffer.getvalue())
    if command.json:
        print_json(row | {"picture": picture})
    else:
        _print(row, picture)
    return SOME_FAILED if picture is None else OK


def _list_keys(out: Storage, manifest: Manifest, *, as_json: bool) -> int:
    """Print the keys of a run in the order of its label shards."""
    keys = (key for _, _, key in _keys(out, manifest))
    if as_json:
        print_json({"keys": list(keys)})
    else:
        for key in keys:
            print_text(key)
    return OK


def _find_row(out: Storage, manifest: Manifest, key: str) -> dict[str, Any]:
    """Return the row with a key.

    Raises:
        SourceError: No row has the key. The message suggests similar keys.
    """
    keys: list[str] = []
    for shard, index, row_key in _keys(out, manifest):
        if row_key == key:
            (row,) = (row for row in label_rows(out, shard, SCHEMA.names) if row["index"] == index)
            return row
        keys.append(row_key)
    similar = ", ".join(map(repr, difflib.get_close_matches(key, keys, 3, 0.5) or keys[:3]))
    suggestion = f"did you mean {similar}?" if similar else "the run has no rows yet"
    raise SourceError(f"{out.redacted}: none of {len(keys)} rows has the key {key!r}; {suggestion}")


def _keys(out: Storage, manifest: Manifest) -> Iterator[tuple[LabelShard, int, str]]:
    """Yield the shard, the index in the shard and the key of each row of a run."""
    for shard in sorted(read_run_commits(out, manifest).done):
        yield from ((shard, row["index"], row["key"]) for row in label_rows(out, shard, ("index", "key")))


def _read_source_image(command: ShowCommand, manifest: Manifest, row: dict[str, Any]) -> np.ndarray | None:
    """Return the source image of a row, uint8 [H, W, 3]; if it cannot be read, print why and return None."""
    name, index = row["shard"], row["index"]
    try:
        shard = command.source_shards(manifest).get(name)
        keys = {index: row["key"]}
        field, sizes = manifest.settings["image_field"], {index: (row["height"], row["width"])}
        images = dict(read_source_images(shard, keys, command.store(), field, sizes)) if shard else {}
        image = images.get(index, f"sample {index} of shard {name} no longer exists")
        if isinstance(image, str):
            raise RunFailed(f"{image}; {MOVED_IMAGES_ADVICE}")
    except (RunFailed, OSError) as error:
        text = f"the picture shows the segments without the image: {redact(str(error))}"
        print_line(CleanConsole(stderr=True), text, "yellow")
        return None
    return image


def _names(row: dict[str, Any]) -> dict[int, str | None]:
    return {segment["id"]: segment_name(segment) for segment in row["segments"]}


def _tiles(image: np.ndarray | None, labels: np.ndarray, names: dict[int, str | None]) -> list[np.ndarray]:
    if image is None:
        return [overlay(np.zeros((*labels.shape, 3), np.uint8), labels, opacity=1, names=names)]
    return [image, overlay(image, labels, names=names)]


def _print(row: dict[str, Any], picture: str | None) -> None:
    console = CleanConsole()
    print_line(console, f"{row['key']}: row {row['index']} of shard {row['shard']}, {row['status']}")
    if picture is None:
        print_line(console, row["error"])
        return
    size = f"{row['width']} x {row['height']} pixels"
    print_line(console, f"{size}, {row['n_segments']} segments, confidence {row['confidence']:.2f}")
    console.print(_segment_table(row))
    print_line(console, f"picture: {picture}")


def _segment_table(row: dict[str, Any]) -> Table:
    """Make a table of the segments of a row, the largest first, each with its colour in the picture."""
    table = Table()
    for column in ("", "segment", "share", "confidence", "name"):
        table.add_column(column, justify="left" if column in ("", "name") else "right")
    for segment in sorted(row["segments"], key=lambda segment: -segment["area"]):
        name = segment_name(segment)
        red, green, blue = segment_colours(segment["id"] + 1, {segment["id"]: name})[-1]
        share = segment["area"] / (row["width"] * row["height"])
        table.add_row(
            Text("  ", style=f"on rgb({red},{green},{blue})"),
            str(segment["id"]),
            f"{share:.1%}",
            f"{segment['confidence']:.2f}",
            Text(json.dumps(name, ensure_ascii=False) if name else ""),
        )
    return table


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg show` and return its exit code."""
    command = parsed(ShowCommand, argv, "show", __doc__)
    return guarded(lambda: _show(command))


if __name__ == "__main__":
    sys.exit(main())
