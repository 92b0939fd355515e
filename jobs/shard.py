"""Pack a folder of images into WebDataset shards."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.common import OK, guarded, parsed, storage_options
from jobs.printing import print_json


@dataclass(frozen=True, kw_only=True)
class ShardCommand:
    """The flags of `diffseg shard`."""

    images: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="IMAGES")]
    """Folder or URL of image files (searched recursively), or a glob of them."""
    shards: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SHARDS")]
    """Folder or URL that the tars are written to; must not hold any yet."""
    samples_per_shard: int = 256
    """Images in one tar. A shard is the unit of work: minutes of labelling each is a good size."""
    storage_options: str = ""
    """JSON object for fsspec (credentials, endpoint), for both URLs."""
    json: bool = False
    """Print the summary as JSON."""


def _shard(command: ShardCommand) -> int:
    from pipeline.readers.pack import pack_images  # webdataset is slow to import, and --help should not wait for it

    packed = pack_images(
        command.images,
        command.shards,
        samples_per_shard=command.samples_per_shard,
        options=storage_options(command.storage_options),
    )
    if command.json:
        print_json(dataclasses.asdict(packed))
    else:
        print(f"{packed.images} images in {packed.shards} shards, {packed.bytes / 1e6:.1f} MB")
    return OK


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg shard`; exit code 0 when all is packed, 1 when the store failed, 2 if refused."""
    command = parsed(ShardCommand, argv, "shard", __doc__)
    return guarded(lambda: _shard(command))


if __name__ == "__main__":
    sys.exit(main())
