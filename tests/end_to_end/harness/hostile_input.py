"""Thousands of hostile shards from a seed: broken ones, and ones with false declarations or attacks."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from itertools import islice

import hostile_parquet
import hostile_tars
from hostile_images import Bad, bad_images, photograph
from hostile_shard import OK, ExpectedRow, HostileShard

_PER_SHARD = 20
_IMAGES, _TARS, _PARQUETS = 0.6, 0.15, 0.15  # fractions of the cases; the rest are handmade


def image_folder(rng: random.Random, bad: list[Bad]) -> HostileShard:
    """Put bad images as files between good ones, with odd names that a file system allows."""
    files, expected = {}, []
    odd = ["%2e%2e", "..x", " ", "-rf", "line\nbreak", "\udcff", "é漢", "$(touch x)", "\x1b[31m", "\\..\\", "a" * 240]
    for number, case in enumerate(bad):
        name = f"{number:03d}{odd[number] if number < len(odd) else ''}"
        for kind, statuses, data in (("g", OK, photograph(rng)), ("b", case.statuses, case.data)):
            path = f"{name}{kind}.{rng.choice(['jpg', 'png', 'webp'])}"
            files[os.fsencode(path)] = data
            key = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            expected.append(ExpectedRow(key, statuses, case.kind if kind == "b" else ""))
    expected.sort(key=lambda row: str(row.key).replace("\\xff", "\udcff"))
    return HostileShard("image files", "", b"", expected, files=files)


def hostile_shards(seed: int, cases: int, outside: str, *, heavy: bool = True) -> Iterator[HostileShard]:
    """Yield shards with about ``cases`` hostile cases in all.

    Args:
        seed: Seed of the cases.
        cases: Number of cases, about.
        outside: A path that nothing may create, although links, keys and pickles try to.
        heavy: Include cases of many megabytes.
    """
    rng = random.Random(seed)
    bad = bad_images(rng, outside, int(cases * _IMAGES))
    makers = [hostile_tars.sample_tar, hostile_parquet.sample_parquet, image_folder]
    shards = [
        makers[place // _PER_SHARD % len(makers)](rng, bad[place : place + _PER_SHARD])
        for place in range(0, len(bad), _PER_SHARD)
    ]
    lazy = [
        hostile_tars.odd_tars(rng),
        hostile_tars.broken_headers(rng),
        iter([hostile_tars.strange_members(rng, outside)]),
        hostile_parquet.strange_rows(rng, outside),
        hostile_parquet.wrong_tables(rng),
        *([hostile_parquet.bombs(rng), hostile_tars.bombs(rng)] if heavy else []),
        hostile_tars.damaged_tars(rng, int(cases * _TARS)),
        hostile_parquet.damaged_parquet(rng, int(cases * _PARQUETS)),
    ]
    yield from shards
    # One of each kind in turn, so a short run has some of every kind, and only one shard is in memory.
    while lazy:
        for source in list(lazy):
            shards = list(islice(source, 1))
            yield from shards
            if not shards:
                lazy.remove(source)
