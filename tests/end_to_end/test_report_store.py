"""A run on S3 gets a report page, is exported, and is read for training from there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from labelled_runs import shards_of_keys
from object_store import LABELS, PHOTOGRAPHS, ObjectStore
from PIL import Image
from report_runs import labelled, write_rows

import jobs.export
import jobs.report
from pipeline.training.dataset import DatasetSettings, LabelDataset

STRIPES = np.repeat(np.arange(3, dtype=np.uint16), 20)[None].repeat(40, 0)  # 40 x 60 pixels


def test_a_run_on_s3_is_reported_exported_and_read(object_store: ObjectStore, tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(np.full((40, 60, 3), 50 * number, np.uint8)).save(tmp_path / f"{number}.png")
    object_store.upload(tmp_path, PHOTOGRAPHS, "looked-at")
    options = object_store.options()
    source, out = f"s3://{PHOTOGRAPHS}/looked-at", f"s3://{LABELS}/looked-at/out"
    rows = [labelled(f"{number}.png", STRIPES) for number in range(4)]
    write_rows(out, rows, per_shard=2, source=source, options=options)
    flags = ["--storage-options", json.dumps(options), "--processes", "1"]

    assert jobs.report.main([out, *flags]) == 0
    found = object_store.keys(LABELS, "looked-at/out/report/")
    assert sum("/tiles-" in key for key in found) == len(shards_of_keys([row.key for row in rows], 2))
    kinds = {name: object_store.content_type(LABELS, key) for key in found for name in [key.rpartition("/")[2]]}
    assert kinds["index.html"] == "text/html"  # a browser would download any other type
    assert "javascript" in kinds["run.js"]
    assert kinds["page.css"] == "text/css"

    dest = f"s3://{LABELS}/looked-at/coco"
    assert jobs.export.main([out, dest, "--to", "coco-instances", "--copy-images", *flags]) == 0
    object_store.download(LABELS, "looked-at/coco", tmp_path / "coco")
    document = json.loads((tmp_path / "coco/annotations/instances_train.json").read_bytes())
    assert len(document["annotations"]) == 12
    assert (tmp_path / "coco/images/train/3.png").read_bytes() == (tmp_path / "3.png").read_bytes()

    settings = DatasetSettings(size=40, crop=1, flip=False)
    samples = {s["key"]: s for s in LabelDataset(out, settings, options=options)}
    assert samples.keys() == {f"{number}.png" for number in range(4)}
    assert all(int(sample["image"][0, 0, 0]) == 50 * int(key[0]) for key, sample in samples.items())
