"""Estimates of a run: what is counted, what is extrapolated, and the arithmetic."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import estimate
from pipeline.estimate import Quantity, Speed, Survey, given_speed, measure_speed, survey_source
from pipeline.readers import tar_source
from pipeline.readers.samples import Sample
from pipeline.settings import LabelSettings, WorkerSettings
from pipeline.storage import Storage

STORE = Storage(url=".")


def png(seed: int, side: int = 64) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, images: int) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(images):
            data = png(number)
            member = tarfile.TarInfo(f"{number:04d}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_image_files_are_counted(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    survey = survey_source(str(tmp_path), STORE, LabelSettings(samples_per_shard=100), samples=2)
    assert (survey.kind, survey.shards, survey.images) == ("images", 1, Quantity(value=5, basis="counted"))
    assert survey.bytes.value == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert [sample.key for sample in survey.samples] == ["0.png", "1.png"]


def test_images_of_a_few_tars_are_counted(tmp_path: Path) -> None:
    for name, images in (("a", 3), ("b", 5)):
        write_tar(tmp_path / f"{name}.tar", images)
    survey = survey_source(str(tmp_path), STORE, LabelSettings(), samples=4)
    assert (survey.shards, survey.images) == (2, Quantity(value=8, basis="counted"))
    assert len(survey.samples) == 4


def test_images_of_many_large_tars_are_extrapolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        write_tar(tmp_path / f"{number}.tar", 40)
    monkeypatch.setattr(estimate, "SAMPLES_PER_TAR", 30)
    monkeypatch.setattr(estimate, "BYTES_PER_TAR", 2**16)
    monkeypatch.setattr(tar_source, "BUFFER_BYTES", 2**12)  # the position in a file may be this far ahead
    survey = survey_source(str(tmp_path), STORE, LabelSettings(), samples=3)
    assert survey.images.basis == "extrapolated from 3 shards"
    assert survey.images.value == pytest.approx(240, rel=0.2)
    assert survey.bytes.basis == "listed"


def test_rows_of_parquet_files_come_from_their_footers(tmp_path: Path) -> None:
    for number in range(2):
        pq.write_table(pa.table({"image": [png(i) for i in range(7)]}), tmp_path / f"{number}.parquet")
    survey = survey_source(str(tmp_path), STORE, LabelSettings(), samples=3)
    assert survey.images == Quantity(value=14, basis="counted")


def test_the_arithmetic_of_an_estimate() -> None:
    survey = Survey(
        kind="tar",
        shards=10,
        files=10,
        bytes=Quantity(value=160 * estimate.BLOCK_BYTES, basis="listed"),
        images=Quantity(value=7200, basis="counted"),
        samples=(),
    )
    speed = Speed(
        images_per_second=Quantity(value=2.0, basis="given"), out_bytes=Quantity(value=1000, basis="measured")
    )
    numbers = {name: q.value for name, q in estimate.estimate(survey, speed, workers=4, price=0.5).items()}
    assert numbers == {
        "shards": 10,
        "images": 7200,
        "source_bytes": 160 * estimate.BLOCK_BYTES,
        "requests": 2 + 10 * estimate.REQUESTS_PER_SHARD + 160,
        "out_bytes": 7200 * 1000 + 10 * estimate.RECORD_BYTES,
        "images_per_second": 2.0,
        "worker_hours": 1.0,
        "seconds": 900,
        "cost": 0.5,
    }
    unknown = estimate.estimate(survey, given_speed(None), workers=4, price=0.5)
    assert [unknown[name].value for name in ("worker_hours", "seconds", "cost")] == [None] * 3
    few = estimate.estimate(survey, speed, workers=100, price=None)
    assert (few["seconds"].value, few["cost"].value) == (360, None)  # ten shards keep ten workers busy


def test_the_speed_is_measured_by_labelling(tmp_path: Path) -> None:
    samples = [Sample(index=i, key=str(i), image=png(i)) for i in range(2)]
    empty = Quantity(value=0, basis="")
    survey = Survey(kind="images", shards=1, files=2, bytes=empty, images=empty, samples=samples)
    speed = measure_speed(survey, LabelSettings(model="tiny"), WorkerSettings(device="cpu"), None)
    assert speed.images_per_second.basis == "measured on 2 images here"
    assert 0.01 < (speed.images_per_second.value or 0) < 1000
    assert 500 < (speed.out_bytes.value or 0) < 100_000
