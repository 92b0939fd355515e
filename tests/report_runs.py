"""Runs with given rows, for tests of the report page."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from labelled_runs import shards_of_keys

from pipeline.output.commit import Commit, tag_of, write_commit
from pipeline.output.manifest import Manifest, versions, write_manifest
from pipeline.output.rows import Row, encode_mask
from pipeline.output.writer import LabelShardWriter
from pipeline.settings import LabelSettings
from pipeline.storage import Storage

FINGERPRINT = "0123456789abcdef"
START = 1.7e9
SECONDS_PER_SHARD = 30.0


def labelled(key: str, labels: np.ndarray, names: Mapping[int, str] | None = None, confidence: float = 0.5) -> Row:
    """Return a row with these labels.

    Args:
        key: Key of the sample.
        labels: uint16 [H, W], below 255 or equal to 65535.
        names: Names of segments by label.
        confidence: Confidence of the image and of its segments, 0 to 1.
    """
    return labelled_png(key, encode_mask(labels), labels, names, confidence)


def labelled_png(
    key: str, mask: bytes, labels: np.ndarray, names: Mapping[int, str] | None = None, confidence: float = 0.5
) -> Row:
    """Return a row as `labelled` does, with an encoded mask that many rows can share."""
    counts = np.bincount(labels[labels < 255].ravel())
    segments = tuple(
        {
            "id": label,
            "area": int(area),
            "bbox": [0, 0, labels.shape[1], labels.shape[0]],
            "confidence": confidence,
            "name": (names or {}).get(label),
            "name_score": 0.9 if names and label in names else None,
        }
        for label, area in enumerate(counts.tolist())
        if area
    )
    size = {"height": labels.shape[0], "width": labels.shape[1]}
    contents = {"n_segments": len(segments), "segments": segments, "confidence": confidence, "meta": "{}"}
    return Row(key=key, shard="", index=0, status="ok", mask=mask, **size, **contents)


def failed(key: str, status: str, error: str) -> Row:
    """Return a row without labels."""
    return Row(key=key, shard="", index=0, status=status, error=error)


def write_rows(
    url: str,
    rows: Iterable[Row],
    *,
    per_shard: int,
    source: str,
    options: Mapping[str, Any] | None = None,
    failures: Sequence[str] = (),
) -> Storage:
    """Write OUT with these rows in their order, and with one failed shard for each reason in `failures`.

    Args:
        url: OUT.
        rows: The rows. If SRC exists, those with the status ok are sorted by key and the others come last.
        per_shard: The number of rows in a label shard; the mean number if SRC exists.
        source: SRC, a folder of the image files of the rows with the status ok, or "gone".
        options: fsspec storage options.
        failures: Reasons of failed shards.
    """
    out, number = Storage(url=url, options=options), 0
    for shard, group in _groups(rows, per_shard, source):
        _write_shard(out, shard, number, group)
        number += 1
    for reason in failures:
        shard = f"failed-{number:06d}"
        write_commit(out, Commit(shard=shard, state="failed", fingerprint=FINGERPRINT, attempt=3, error=reason))
        number += 1
    manifest = Manifest(
        source=source,
        settings=LabelSettings(samples_per_shard=per_shard).plain(),
        model_sha256="0" * 64,
        resolved={"tau": [0.4, 0.4, 0.4]},
        environment={"device": "cpu", "versions": versions()},
        fingerprint=FINGERPRINT,
        shards=number,
    )
    write_manifest(out, manifest)
    return out


def _groups(rows: Iterable[Row], per_shard: int, source: str) -> Iterator[tuple[str, list[Row]]]:
    """Yield the name and the rows of each shard; if SRC exists, its shards."""
    rows = iter(rows)
    if source == "gone":
        for number in itertools.count():
            group = list(itertools.islice(rows, per_shard))
            if not group:
                return
            yield f"images-{number:06d}", group
    by_key = {row.key: row for row in rows}
    others = [row for row in by_key.values() if row.status != "ok"]
    shards = shards_of_keys([key for key, row in by_key.items() if row.status == "ok"], per_shard)
    for number, (shard, keys) in enumerate(shards.items(), start=1):
        yield shard, [by_key[key] for key in keys] + (others if number == len(shards) else [])


def _write_shard(out: Storage, shard: str, number: int, rows: list[Row]) -> None:
    with LabelShardWriter(shard, formats=("parquet",), metadata={"tag": tag_of(FINGERPRINT, "")}) as writer:
        for index, row in enumerate(rows):
            writer.add(dataclasses.replace(row, shard=shard, index=index))
        files = writer.publish(out)
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.status] = counts.get(row.status, 0) + 1
    started = START + number * SECONDS_PER_SHARD
    record = Commit(
        shard=shard,
        state="done",
        fingerprint=FINGERPRINT,
        attempt=1,
        rows=len(rows),
        counts=counts,
        files=files,
        seconds={"unet": 20.0, "merge": 4.0, "decode": 1.5, "total": SECONDS_PER_SHARD},
        started=started,
        finished=started + SECONDS_PER_SHARD,
    )
    write_commit(out, record)
