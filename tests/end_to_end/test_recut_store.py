"""A run with levels on S3 is cut again into a run on S3, with the bytes of a run in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from labelled_runs import write_run
from object_store import LABELS, ObjectStore

import jobs.recut

STRIPES = np.repeat(np.arange(3, dtype=np.uint16), 20)[None].repeat(40, 0)  # 40 x 60 pixels


def test_a_run_on_s3_is_cut_again(object_store: ObjectStore, tmp_path: Path) -> None:
    write_run(tmp_path / "out", dict.fromkeys(("a.png", "b.png", "c.png"), STRIPES), levels=True)
    object_store.upload(tmp_path / "out", LABELS, "levels/out")
    flags = ["--segments", "2", "--no-ray"]
    options = json.dumps(object_store.options())
    stores = [f"s3://{LABELS}/levels/out", f"s3://{LABELS}/levels/new", "--storage-options", options]
    assert jobs.recut.main([*stores, *flags]) == 0
    assert jobs.recut.main([str(tmp_path / "out"), str(tmp_path / "new"), *flags]) == 0
    object_store.download(LABELS, "levels/new", tmp_path / "downloaded")
    local = {path.name: path.read_bytes() for path in (tmp_path / "new/labels").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "downloaded/labels").iterdir()} == local
    assert len(list((tmp_path / "downloaded/commits").iterdir())) == len(local)
