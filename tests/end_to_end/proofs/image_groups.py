"""The time that grouping image files by their paths takes, and the sizes of the groups.

    python tests/end_to_end/proofs/image_groups.py --files 1000000

No image file is written: the program groups a made-up listing with the given number of files.
"""

from __future__ import annotations

import argparse
import hashlib
import time

import numpy as np

from pipeline.output.listing import Listing
from pipeline.readers.image_groups import group_images
from pipeline.storage.backend import ListedFile


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--samples-per-shard", type=int, default=256)
    flags = parser.parse_args()
    # Names like those of LAION and ImageNet: hashes in a thousand folders.
    names = (hashlib.md5(b"%d" % number).hexdigest() for number in range(flags.files))
    files = sorted(ListedFile(f"{name[:3]}/{name}.jpg", 100_000, f"{number:019d}") for number, name in enumerate(names))
    started = time.perf_counter()
    shards = group_images("/data/images", files, flags.samples_per_shard)
    grouped = time.perf_counter()
    listing = Listing.of(shards)
    listing.digest()
    listed = time.perf_counter()
    sizes = np.array([len(shard.files) for shard in shards])
    print("| quantity | value |\n|---|---|")
    print(f"| files, `--samples-per-shard`, shards | {flags.files:,}, {flags.samples_per_shard}, {len(shards):,} |")
    print(f"| grouping, with the digests of paths and versions | {grouped - started:.1f} s |")
    print(f"| the listing of the run and its digest | {listed - grouped:.2f} s, {len(listing.to_text()):,} bytes |")
    percentiles = ", ".join(f"{value:.0f}" for value in np.percentile(sizes, (0, 1, 50, 99, 100)))
    print(f"| files in a shard: smallest, 1%, median, 99%, largest | {percentiles} |")


if __name__ == "__main__":
    main()
