"""Runs to look at, whose rows are given: hostile ones, named ones, and very many."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from pipeline.output.commit import Commit, write_commit
from pipeline.output.manifest import Manifest, versions, write_manifest
from pipeline.output.rows import Row, encode_mask
from pipeline.output.writer import LabelShardWriter
from pipeline.settings import LabelSettings
from pipeline.storage import Storage

FINGERPRINT = "0123456789abcdef"
START = 1.7e9
SECONDS_A_SHARD = 30.0


def labelled(key: str, labels: np.ndarray, names: Mapping[int, str] | None = None, confidence: float = 0.5) -> Row:
    """A row of uint16 [H, W] labels, all below 255; its segments' names by label."""
    return labelled_png(key, encode_mask(labels), labels, names, confidence)


def labelled_png(
    key: str, mask: bytes, labels: np.ndarray, names: Mapping[int, str] | None = None, confidence: float = 0.5
) -> Row:
    """As `labelled`, where many rows have the same mask and it need not be encoded again."""
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
    about = {"n_segments": len(segments), "segments": segments, "confidence": confidence, "meta": "{}"}
    return Row(key=key, shard="", index=0, status="ok", mask=mask, **size, **about)


def failed(key: str, status: str, error: str) -> Row:
    """A row without labels."""
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
    """OUT with these rows in their order, over image files of SRC, and shards that failed for these reasons."""
    out, rows, number = Storage(url=url, options=options), iter(rows), 0
    while group := list(islice(rows, per_shard)):
        _write_shard(out, number, group)
        number += 1
    for why in failures:
        shard = f"images-{number:06d}"
        write_commit(out, Commit(shard=shard, state="failed", fingerprint=FINGERPRINT, attempt=3, error=why))
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


def _write_shard(out: Storage, number: int, rows: list[Row]) -> None:
    shard = f"images-{number:06d}"
    with LabelShardWriter(shard, formats=("parquet",), metadata={}) as writer:
        for index, row in enumerate(rows):
            writer.add(dataclasses.replace(row, shard=shard, index=index))
        files = writer.publish(out)
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.status] = counts.get(row.status, 0) + 1
    started = START + number * SECONDS_A_SHARD
    record = Commit(
        shard=shard,
        state="done",
        fingerprint=FINGERPRINT,
        attempt=1,
        rows=len(rows),
        counts=counts,
        files=files,
        seconds={"unet": 20.0, "merge": 4.0, "decode": 1.5, "total": SECONDS_A_SHARD},
        started=started,
        finished=started + SECONDS_A_SHARD,
    )
    write_commit(out, record)
