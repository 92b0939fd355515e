"""A shard of requests becomes a committed label shard with images: its rows, its batches and its bytes."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from generation_doubles import SIDE, NoiseGenerator
from PIL import Image

from pipeline.errors import ModelFailed
from pipeline.generation.requests import Entry, shards_of_entries
from pipeline.generation.settings import GenerateSettings
from pipeline.generation.shard import generate_shard
from pipeline.output.rows import decode_mask
from pipeline.readers.names import NameSettings
from pipeline.readers.samples import Shard
from pipeline.storage import Storage

ENTRIES = [
    Entry(key="dogs", prompt="a dog", classes=("dog",), count=2),
    Entry(key="empty", prompt="", status="bad_prompt", error="line 2: the prompt is empty"),
    Entry(key="pair", prompt="a dog and a cat", classes=("dog", "cat"), count=2),
    Entry(key="overflow", prompt="an overflow of dogs", classes=("dog",)),
]


def settings(**changes: Any) -> GenerateSettings:
    return GenerateSettings(naming=NameSettings(names=("cat", "dog")), seed=7, **changes)


def shard() -> Shard:
    (only,) = shards_of_entries(ENTRIES, 64)
    return only


def write(out: Path, generator: NoiseGenerator | None = None, **changes: Any) -> dict[str, int]:
    commit = generate_shard(
        shard(),
        generator=generator or NoiseGenerator(),
        settings=settings(**changes),
        metadata={"fingerprint": "f"},
        out=Storage(url=str(out)),
    )
    return dict(commit.counts)


def rows_of(out: Path) -> list[dict[str, Any]]:
    (path,) = (out / "labels").iterdir()
    return pq.read_table(path).to_pylist()


def test_a_row_holds_the_image_its_label_map_and_how_it_was_made(tmp_path: Path) -> None:
    assert write(tmp_path) == {"ok": 4, "bad_prompt": 1, "nonfinite": 1}
    rows = rows_of(tmp_path)
    assert [row["key"] for row in rows] == [
        *("dogs-0000", "dogs-0001", "empty-0000", "pair-0000", "pair-0001", "overflow-0000")
    ]
    row = rows[4]
    assert (row["prompt"], row["classes"], row["steps"], row["guidance"]) == (
        "a dog and a cat",
        ["dog", "cat"],
        25,
        7.5,
    )
    assert row["threshold"] == pytest.approx([0.4, 0.4])
    assert row["agree_iou"] == [0.75, 0.75]
    assert json.loads(row["meta"]) == {"prompt": "a dog and a cat"}
    assert [segment["class_id"] for segment in row["segments"]] == [0, 2, 1]
    labels = decode_mask(row["mask"])
    assert labels.shape == (row["height"], row["width"]) == (SIDE, SIDE)
    expected = np.random.default_rng(row["generation_seed"]).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(row["image"]))), expected)
    assert len({each["generation_seed"] for each in rows}) == 6


def test_a_request_without_an_image_has_a_row_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path)
    empty, overflow = (row for row in rows_of(tmp_path) if row["status"] != "ok")
    assert (empty["status"], empty["error"]) == ("bad_prompt", "line 2: the prompt is empty")
    assert (overflow["status"], overflow["prompt"]) == ("nonfinite", "an overflow of dogs")
    for row in (empty, overflow):
        assert (row["image"], row["mask"], row["threshold"], row["agree_iou"]) == (None, None, [], [])


def test_batches_skip_what_cannot_be_generated_and_do_not_change_the_bytes(tmp_path: Path) -> None:
    generator = NoiseGenerator(batch_size=2)
    write(tmp_path / "two", generator)
    assert [[each.prompt for each in batch] for batch in generator.batches] == [
        ["a dog", "a dog"], ["a dog and a cat", "a dog and a cat"], ["an overflow of dogs"],
    ]  # fmt: skip
    write(tmp_path / "one")
    name = "labels/generated-000000.parquet"
    assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.parametrize(("image_format", "kind"), [("png", "PNG"), ("webp", "WEBP"), ("jpeg", "JPEG")])
def test_images_are_stored_without_loss_unless_jpeg_is_chosen(tmp_path: Path, image_format: str, kind: str) -> None:
    write(tmp_path / "png")
    write(tmp_path / "out", image_format=image_format)
    for first, second in zip(rows_of(tmp_path / "png"), rows_of(tmp_path / "out"), strict=True):
        if first["image"] is None:
            continue
        image, stored = (Image.open(io.BytesIO(row["image"])) for row in (first, second))
        assert stored.format == kind
        is_equal = np.array_equal(np.asarray(image), np.asarray(stored.convert("RGB")))
        assert is_equal == (kind != "JPEG")


def test_the_tar_of_a_shard_holds_the_images_beside_their_masks(tmp_path: Path) -> None:
    write(tmp_path, format="parquet,webdataset", image_format="jpeg")
    with tarfile.open(tmp_path / "webdataset" / "generated-000000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    row = rows_of(tmp_path)[0]
    assert members["dogs-0000.jpg"] == row["image"]
    assert members["dogs-0000.png"] == row["mask"]
    assert b"image" not in members["dogs-0000.json"]
    assert {name.partition(".")[2] for name in members if name.startswith("empty")} == {"json"}


def test_an_error_of_the_model_is_not_that_of_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the weights are broken")

    monkeypatch.setattr(NoiseGenerator, "generate", fail)
    with pytest.raises(ModelFailed, match="the weights are broken"):
        write(tmp_path)
    assert not (tmp_path / "commits").exists()
