"""`diffseg filter` of a run on S3 with images on S3 writes the bytes that it writes for a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from labelled_runs import write_png, write_run
from object_store import LABELS, ObjectStore

import jobs.filter
from pipeline.training.dataset import DatasetSettings, LabelDataset

SMALL = ("--no-ray", "--size", "32", "--width", "8", "--steps", "2", "--folds", "2", "--batch-size", "2")


def test_a_run_on_s3_is_filtered(object_store: ObjectStore, tmp_path: Path) -> None:
    halves = np.repeat(np.arange(2, dtype=np.uint16), 16)[None].repeat(32, 0)
    keys = [f"{number}.png" for number in range(12)]
    for key in keys:
        write_png(tmp_path / "run" / "images" / key, np.full((32, 32, 3), int(key[:-4]) * 20, np.uint8))
    write_run(tmp_path / "run" / "out", dict.fromkeys(keys, halves), per_shard=6)
    object_store.upload(tmp_path / "run", LABELS, "filter")
    options = object_store.options()
    out, images = f"s3://{LABELS}/filter/out", f"s3://{LABELS}/filter/images"
    words = [out, "--images", images, "--storage-options", json.dumps(options)]
    assert jobs.filter.main([*words, *SMALL]) == 0
    local = tmp_path / "run" / "out"
    assert jobs.filter.main([str(local), "--images", str(tmp_path / "run" / "images"), *SMALL]) == 0
    object_store.download(LABELS, "filter/out/filter", tmp_path / "downloaded")
    written = {path.name: path.read_bytes() for path in (local / "filter").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "downloaded").iterdir()} == written
    kept = LabelDataset(out, DatasetSettings(size=32), images=images, options=options, keep=True)
    assert len(kept) == 9, "the best 70 % of 12 rows, rounded up"
