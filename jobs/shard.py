"""Pack a folder of images into WebDataset shards.

Exit codes:
  0: every image is packed.
  1: the store failed.
  2: wrong usage, or refused.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.common import OK, guarded, parsed, storage_options
from jobs.printing import CleanConsole, print_json, print_line
from jobs.streams import print_text
from pipeline.readers.left_out import left_out_lines
from pipeline.wording import counted


@dataclass(frozen=True, kw_only=True)
class ShardCommand:
    """The flags of `diffseg shard`."""

    images: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="IMAGES")]
    """Folder or URL of image files, which is searched recursively, or a glob of image files."""
    shards: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SHARDS")]
    """Folder or URL to write the tars to; it must not contain any tars yet."""
    samples_per_shard: int = 256
    """Images per tar.
    A worker labels one shard at a time, and a shard that takes a few minutes has a good size."""
    storage_options: str = ""
    """JSON object with options for fsspec, such as credentials or an endpoint, for both URLs."""
    json: bool = False
    """Print the summary as JSON."""


def _shard(command: ShardCommand) -> int:
    from pipeline.readers.pack import pack_images  # imported here to keep --help fast: webdataset is slow

    packed = pack_images(
        command.images,
        command.shards,
        samples_per_shard=command.samples_per_shard,
        options=storage_options(command.storage_options),
    )
    if command.json:
        print_json(dataclasses.asdict(packed))
    else:
        print_text(
            f"{counted(packed.images, 'image')} in {counted(packed.shards, 'shard')}, {packed.bytes / 1e6:.1f} MB"
        )
        for line in left_out_lines(packed.left_out):
            print_line(CleanConsole(stderr=True), line, "yellow")
    return OK


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg shard` and return its exit code."""
    command = parsed(ShardCommand, argv, "shard", __doc__)
    return guarded(lambda: _shard(command))


if __name__ == "__main__":
    sys.exit(main())
