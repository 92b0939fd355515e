"""The speed of LabelDataset beside plain webdataset on the same files, with the same augmentation, in turns.

python tests/end_to_end/proofs/read_speed.py --images 256 --turns 5
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

from diffseg.tiny.scenes.scenes import generate_scene
from pipeline.label import label_shard
from pipeline.networks.unet import SegmentationNetwork
from pipeline.output.manifest import Manifest, write_manifest
from pipeline.readers.find import find_shards
from pipeline.readers.pack import pack_images
from pipeline.settings import LabelSettings
from pipeline.storage import Storage
from pipeline.training.dataset import DatasetSettings, LabelDataset
from pipeline.training.predict import NetworkSegmenter

SIZE = 256
LEAST_CROP = 0.5


def make_run(folder: Path, count: int) -> Storage:
    """Make OUT of a run over JPEGs of 640 x 480 in tars, with label maps of an untrained network, in both formats."""
    (folder / "images").mkdir()
    for number in range(count):
        scene = Image.fromarray(generate_scene(number % 16, 256).image).resize((640, 640)).crop((0, 0, 640, 480))
        scene.rotate(number).save(folder / "images" / f"{number:05d}.jpg", quality=90)
    pack_images(str(folder / "images"), str(folder / "shards"), samples_per_shard=64)
    out = Storage(url=str(folder / "out"))
    settings = LabelSettings(format="parquet,webdataset", include_image=True)
    manifest = Manifest(
        source=str(folder / "shards"),
        settings=settings.plain(),
        model_sha256="",
        resolved={},
        environment={},
        fingerprint="0" * 16,
    )
    write_manifest(out, manifest)
    torch.manual_seed(0)
    network = SegmentationNetwork(width=8, dimensions=16).eval()
    segmenter: Any = NetworkSegmenter(network, {"size": 64, "target": "segments"})
    for shard in find_shards(str(folder / "shards"), out):
        metadata = {"fingerprint": manifest.fingerprint}
        label_shard(shard, segmenter=segmenter, settings=settings, metadata=metadata, out=out, source=out)
    return out


def plain(tars: list[str]) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Read images and label maps as a training script without LabelDataset would."""
    rng = np.random.default_rng(0)

    def augment(sample: tuple[Image.Image, Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = sample
        side = min(image.size) * rng.uniform(LEAST_CROP, 1)
        left, top = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
        box, size = (left, top, left + side, top + side), (SIZE, SIZE)
        pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0))
        labels = np.asarray(mask.resize(size, Image.Resampling.NEAREST, box=box)).astype(np.int64)
        if rng.random() < 0.5:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), torch.from_numpy(labels.copy())

    # Samples are shuffled before they are decoded, as LabelDataset does, because they are small then.
    samples = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).shuffle(1000)
    return samples.decode("pil").to_tuple("jpg", "png").map(augment)


def seconds_of(read: Callable[[], Iterable[Any]], count: int) -> float:
    started = time.process_time()  # not wall time, so other work on the machine does not count
    assert sum(1 for _ in read()) == count
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=256, help="number of images")
    parser.add_argument("--turns", type=int, default=5, help="how often each reader reads them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        out = make_run(Path(folder), options.images)
        tars = sorted(str(path) for path in Path(folder, "out", "webdataset").glob("*.tar"))
        readers = {
            "webdataset": lambda: plain(tars),
            "LabelDataset": lambda: LabelDataset(out.url, DatasetSettings(size=SIZE)),
        }
        turns = [
            {name: seconds_of(read, options.images) for name, read in readers.items()} for _ in range(options.turns)
        ]
    for name in readers:
        seconds = statistics.median(turn[name] for turn in turns) / options.images
        print(f"{name}: {1000 * seconds:.1f} ms of CPU per image, {1 / seconds:.0f} images per second")
    ratios = sorted(turn["LabelDataset"] / turn["webdataset"] for turn in turns)
    print(f"LabelDataset / webdataset: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
