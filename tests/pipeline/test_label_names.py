"""Names of segments, from the fields of samples to the rows."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from diffseg import Segmenter
from diffseg.settings import settings_of
from pipeline.errors import RunRefused
from pipeline.executor.driver import RunSummary, label_run
from pipeline.label import label_shard
from pipeline.readers.find import find_shards
from pipeline.readers.names import NameReader, NameSettings
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import Storage

NAMES = ("sky", "grass", "red ball")


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.set_num_threads(1)
    return Segmenter.from_pretrained("tiny-text", resolution=64, naming=True, batch_size=2)


def png(seed: int) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.kron(blocks, np.ones((16, 16, 1), dtype=np.uint8))).save(buffer, "PNG")
    return buffer.getvalue()


def label(source: Path, out: Path, segmenter: Segmenter, **naming: Any) -> list[dict[str, Any]]:
    settings = LabelSettings(naming=NameSettings(**naming))
    storage = Storage(url=str(out))
    (shard,) = find_shards(str(source))
    label_shard(
        shard,
        segmenter=segmenter,
        settings=settings,
        metadata={"fingerprint": "f"},
        source=storage,
        out=storage,
        names=NameReader(settings.naming),
    )
    (path,) = (out / "labels").iterdir()
    return pq.read_table(path).to_pylist()


def names_of(row: dict[str, Any]) -> set[tuple[str, int]]:
    return {(segment["name"], segment["class_id"]) for segment in row["segments"]}


def test_an_image_gets_only_the_names_in_its_labels_column(tmp_path: Path, segmenter: Segmenter) -> None:
    labels = [["sky"], ["red ball", "grass"], [], ["car"], [2]]
    table = pa.table(
        {"image": [png(i) for i in range(5)], "labels": [json.dumps(names) for names in labels], "id": [*"abcde"]}
    )
    lists = table.set_column(1, "labels", pa.array([[str(label) for label in row] for row in labels]))
    pq.write_table(lists, tmp_path / "images.parquet")
    rows = label(tmp_path / "images.parquet", tmp_path / "out", segmenter, names=NAMES, labels_field="labels")
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "bad_names", "ok"]
    assert names_of(rows[0]) == {("sky", 1)}
    assert names_of(rows[1]) <= {("grass", 2), ("red ball", 3)}
    assert names_of(rows[2]) == {("background", 0)}
    assert names_of(rows[4]) == {("red ball", 3)}
    assert "field 'labels'" in rows[3]["error"]
    assert "'car'" in rows[3]["error"] or '"car"' in rows[3]["error"]
    assert all(0 <= segment["name_score"] <= 1 for row in rows for segment in row["segments"] or ())


def test_an_image_gets_only_the_names_in_its_caption(tmp_path: Path, segmenter: Segmenter) -> None:
    pytest.importorskip("textblob")
    captions = ["a red ball on the grass", "the skies", "nothing of that"]
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for index, caption in enumerate(captions):
            for name, data in ((f"{index}.png", png(index)), (f"{index}.txt", caption.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    with_names = label(tmp_path / "shard.tar", tmp_path / "given", segmenter, names=NAMES, caption_field="txt")
    assert names_of(with_names[0]) <= {("grass", 2), ("red ball", 3)}
    assert names_of(with_names[1]) == {("sky", 1)}
    assert names_of(with_names[2]) == {("background", 0)}
    assert [json.loads(row["meta"]) for row in with_names] == [{"txt": caption} for caption in captions]
    without_names = label(tmp_path / "shard.tar", tmp_path / "nouns", segmenter, caption_field="txt")
    assert names_of(without_names[0]) <= {("red ball", None), ("ball", None), ("grass", None)}
    options = {"names": NAMES, "caption_field": "txt", "caption_parser": "nouns", "name_words": {"sky": ("nothing",)}}
    by_nouns = label(tmp_path / "shard.tar", tmp_path / "by_nouns", segmenter, **options)
    assert names_of(by_nouns[2]) == {("sky", 1)}
    assert json.loads(by_nouns[0]["meta"]) == {"__dropped_words__": [], "txt": captions[0]}
    sky_only = options | {"names": ("sky",), "name_words": {}}
    dropped = label(tmp_path / "shard.tar", tmp_path / "dropped", segmenter, **sky_only)
    words = [json.loads(row["meta"])["__dropped_words__"] for row in dropped]
    assert words == [["ball", "grass"], [], ["nothing"]]


@pytest.mark.usefixtures("node_cache")
def test_a_resumed_run_with_names_beside_the_pass_writes_the_same_bytes(tmp_path: Path) -> None:
    """A worker that meets other names before, or none, must compute the same keys."""
    labels = [["sky"], ["red ball", "grass"], ["grass", "sky"], ["red ball"]]
    table = pa.table({"image": [png(i) for i in range(4)], "labels": labels, "id": [*"abcd"]})
    for shard in range(2):
        pq.write_table(table.slice(2 * shard, 2), tmp_path / f"{shard}.parquet")
    method = settings_of(resolution=64, anchors_per_side=4, prompt="empty", background_words=("wall",))
    naming = NameSettings(names=NAMES, labels_field="labels")

    def run(**changes: Any) -> RunSummary:
        settings = LabelSettings(model="tiny-text", naming=naming, method=method.with_values(**changes))
        source, worker = f"{tmp_path}/*.parquet", WorkerSettings(device="cpu")
        return label_run(source, str(tmp_path / "out"), settings=settings, worker=worker, run=RunSettings(no_ray=True))

    assert dict(run().counts) == {"ok": 4}
    files = {path: path.read_bytes() for path in (tmp_path / "out" / "labels").glob("*.parquet")}
    (commit,) = (tmp_path / "out" / "commits").glob("1.*.json")
    commit.unlink()  # as if the run had been killed before the second shard was committed
    second = next(path for path in files if pq.read_table(path)["key"][0].as_py() == "c")
    second.unlink()
    assert run().done_before == 1
    assert {path: path.read_bytes() for path in (tmp_path / "out" / "labels").glob("*.parquet")} == files
    metadata = pq.read_schema(second).metadata
    assert b"empty prompt" in b"".join(metadata.values())
    with pytest.raises(RunRefused, match=r"prompt: 'empty' in OUT, None now"):
        run(prompt="names", background_words=())


def test_segments_with_a_low_score_are_background_or_ignored(tmp_path: Path) -> None:
    Image.open(io.BytesIO(png(0))).save(tmp_path / "image.png")
    strict = Segmenter.from_pretrained("tiny-text", resolution=64, naming=True, background_below=0.5, ignore_below=1.0)
    rows = label(tmp_path / "image.png", tmp_path / "out", strict, names=NAMES)
    classes = {segment["class_id"]: segment for segment in rows[0]["segments"]}
    assert set(classes) <= {-1, 0}
    assert all(segment["name"] == {-1: None, 0: "background"}[class_id] for class_id, segment in classes.items())


def test_contradictory_settings_are_refused() -> None:
    names = NameSettings(names=("sky",))
    with pytest.raises(ValueError, match="method diffseg,cross names segments: give names"):
        LabelSettings(method=settings_of(method="diffseg,cross"))
    with pytest.raises(ValueError, match="method diffseg,par names no segments, but names are given: add cross"):
        LabelSettings(method=settings_of(method="diffseg,par"), naming=names)
    assert LabelSettings(method=settings_of(method="cross,par"), naming=names).naming
