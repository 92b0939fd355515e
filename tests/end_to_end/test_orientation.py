"""A source image and its label map show the same pixels, whatever the EXIF orientation and wherever they go."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import BOTH, label
from webdataset import filters, tariterators

import jobs.export
import jobs.report
from diffseg.images.decode import decode_image
from pipeline.training.dataset import LabelDataset
from pipeline.training.settings import DatasetSettings

ORIENTATION_TAG = 0x0112
UPRIGHT = np.zeros((120, 160, 3), np.uint8)
UPRIGHT[:60, :80], UPRIGHT[:60, 80:], UPRIGHT[60:, :80], UPRIGHT[60:, 80:] = (200, 0, 0), (0, 200, 0), (0, 0, 200), 90


def stored(orientation: int) -> np.ndarray:
    """Return the pixels that must be stored so that a viewer which applies this EXIF orientation shows UPRIGHT."""
    for method in range(7):
        turned = Image.fromarray(UPRIGHT).transpose(Image.Transpose(method))
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = orientation
        turned.save(buffer, "PNG", exif=exif)
        if np.array_equal(decode_image(buffer.getvalue()), UPRIGHT):
            return np.asarray(turned)
    return UPRIGHT


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same upright picture in all orientations, as JPEG, and in other formats."""
    folder = tmp_path_factory.mktemp("orientations")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = orientation
        Image.fromarray(stored(orientation)).save(folder / f"o{orientation}.jpg", exif=exif, quality=95)
    Image.fromarray(UPRIGHT).save(folder / "png.png")
    Image.fromarray(UPRIGHT).save(folder / "tiff.tif")
    Image.fromarray(UPRIGHT).save(folder / "bmp.bmp")
    Image.fromarray(UPRIGHT).convert("P").save(folder / "palette.gif")
    return folder


KEYS = [f"o{orientation}.jpg" for orientation in range(1, 9)] + ["png.png", "tiff.tif", "bmp.bmp", "palette.gif"]


@pytest.fixture(scope="module")
def out(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled-orientations")
    assert label(source, folder, "--no-ray", "--include-image", *BOTH) == 0
    return folder


def assert_upright(pixels: np.ndarray) -> None:
    """Check an image without applying its EXIF orientation. JPEG changes values a little."""
    image = Image.fromarray(pixels).resize((160, 120))
    assert np.abs(np.asarray(image).astype(int) - UPRIGHT).mean() < 12


def test_the_eight_orientations_are_stored_differently() -> None:
    assert len({stored(orientation).tobytes() for orientation in range(1, 9)}) == 8


def test_webdataset(out: Path) -> None:
    seen = 0
    for path in sorted((out / "webdataset").glob("*.tar")):
        with path.open("rb") as file:
            members = tariterators.tar_file_expander([{"url": str(path), "stream": file}])
            for image, mask in filters.to_tuple("jpg", "png")(tariterators.group_by_keys(members)):
                with Image.open(io.BytesIO(image)) as photo, Image.open(io.BytesIO(mask)) as labels:
                    assert photo.format == "JPEG"
                    assert photo.size == labels.size == (160, 120)
                    assert_upright(np.asarray(photo.convert("RGB")))
                seen += 1
    assert seen == len(KEYS)


@pytest.mark.parametrize("target", ["voc", "coco-panoptic", "huggingface"])
def test_exports(target: str, out: Path, tmp_path: Path) -> None:
    flags = {"coco-panoptic": ["--copy-images"], "voc": ["--without-names"]}.get(target, [])
    assert jobs.export.main([str(out), str(tmp_path), "--to", target, "--processes", "1", *flags]) == 0
    pictures = []
    for path in tmp_path.rglob("*"):
        if path.suffix == ".jpg" or (path.suffix == ".png" and "mages" in str(path.relative_to(tmp_path))):
            pictures.append(path.read_bytes())
        elif path.suffix == ".parquet":
            import pyarrow.parquet as pq

            pictures += [row["bytes"] for row in pq.read_table(path)["image"].to_pylist()]
    assert len(pictures) == len(KEYS)
    for data in pictures:
        with Image.open(io.BytesIO(data)) as photo:
            assert photo.size == (160, 120)
            assert_upright(np.asarray(photo.convert("RGB")))


def test_report(out: Path) -> None:
    assert jobs.report.main([str(out), "--processes", "1"]) == 0
    pictures = [
        tile["photograph"]
        for path in (out / "report" / "data").rglob("tiles-*.js")
        for tile in json.loads(re.search(r"\[.*\]", path.read_text(), re.DOTALL)[0])  # type: ignore[index]
    ]
    assert len(pictures) == len(KEYS)
    for text in pictures:
        with Image.open(io.BytesIO(base64.b64decode(text.rpartition(",")[2]))) as photo:
            assert_upright(np.asarray(photo.convert("RGB")))


def test_training(out: Path) -> None:
    dataset = LabelDataset(str(out), DatasetSettings(size=120, crop=1.0, flip=False), rank=0, world_size=1)
    samples = {sample["key"]: sample for sample in dataset}
    assert sorted(samples) == sorted(KEYS)
    for sample in samples.values():
        image = sample["image"].permute(1, 2, 0).numpy()
        assert image[:40].mean(axis=(0, 1))[2] < 30, "the upper half has no blue"
        assert image[-40:].mean(axis=(0, 1)).argmax() == 2, "the lower half is blue and grey"
