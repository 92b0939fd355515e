"""Shards by the thousand that are broken, lie, or attack; the same seed gives the same ones."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from itertools import islice

import hostile_parquet
import hostile_tars
from hostile_images import Bad, bad_images, photograph
from hostile_shard import OK, Due, HostileShard

_PER_SHARD = 20
_IMAGES, _TARS, _PARQUETS = 0.6, 0.15, 0.15  # shares of the cases; what is left are fixed ones


def folder_of(rng: random.Random, bad: list[Bad]) -> HostileShard:
    """Bad images as files between good ones, with names that a file system allows."""
    files, due = {}, []
    odd = ["%2e%2e", "..x", " ", "-rf", "line\nbreak", "\udcff", "é漢", "$(touch x)", "\x1b[31m", "\\..\\", "a" * 240]
    for number, each in enumerate(bad):
        name = f"{number:03d}{odd[number] if number < len(odd) else ''}"
        for kind, statuses, data in (("g", OK, photograph(rng)), ("b", each.statuses, each.data)):
            path = f"{name}{kind}.{rng.choice(['jpg', 'png', 'webp'])}"
            files[os.fsencode(path)] = data
            key = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            due.append(Due(key, statuses, each.kind if kind == "b" else ""))
    due.sort(key=lambda row: str(row.key).replace("\\xff", "\udcff"))
    return HostileShard("image files", "", b"", due, files=files)


def hostile_shards(seed: int, cases: int, outside: str, *, heavy: bool = True) -> Iterator[HostileShard]:
    """Shards with about ``cases`` hostile things in all, in no order.

    outside: a path that nothing may create; links, keys and pickles try to. heavy: with those of many megabytes.
    """
    rng = random.Random(seed)
    bad = bad_images(rng, outside, int(cases * _IMAGES))
    makers = [hostile_tars.sample_tar, hostile_parquet.sample_parquet, folder_of]
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
    # A few of each in turn, so that a short run has some of every kind, and only one is in memory.
    while lazy:
        for each in list(lazy):
            found = list(islice(each, 1))
            yield from found
            if not found:
                lazy.remove(each)
