"""Images with ground truth for scoring the embedded models: generated scenes, and photographs that a user provides.

Axes: H, W image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from diffseg.images.decode import decode_image
from diffseg.segmentation import IGNORE
from diffseg.tiny.scenes.captioned import generate_captioned
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS, VALIDATION_SEEDS, generate_scene

__all__ = ["SEEDS", "Sample", "SampleChoice", "captioned_samples", "photograph_samples", "sample_sets", "scene_samples"]

Half = Literal["development", "held-out", "all"]
"""Half of a set of photographs sorted by name: the even-numbered ones, the odd-numbered ones, or both."""
SEEDS = {"validation": VALIDATION_SEEDS, "held-out": HELD_OUT_SEEDS}
"""Seeds of the scenes, by the name of the set."""
MASKS = {"coco": "masks27", "voc": "masks"}
"""Folder of the masks, by the name of the set of photographs."""
VOID = 255
"""Value of pixels without ground truth in the masks of photographs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """An image with ground truth.

    Attributes:
        name: Name of the image in its set.
        key: Digest of the image and its ground truth.
        load: Returns the image, uint8 [H, W, 3], and its ground truth, uint16 [H, W], with `IGNORE` for pixels without
            ground truth.
    """

    name: str
    key: str
    load: Callable[[], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class SampleChoice:
    """The images on which methods are scored.

    Attributes:
        images: Number of generated scenes.
        captioned: Number of captioned scenes, whose classes are the vocabulary of the text model.
        scenes: Use held-out scenes for results to report, and validation scenes for decisions.
        size: Side of the scenes in pixels.
        photographs: Folder with coco/images and coco/masks27, or voc/images and voc/masks, or both. Masks are PNG files
            in which 255 means that there is no ground truth.
        half: Half of each set of photographs, sorted by name: development is the even-numbered ones, held-out the
            odd-numbered ones.
        per_set: Most photographs of each set; 0 takes all of them.
    """

    images: int = 60
    captioned: int = 0
    scenes: Literal["validation", "held-out"] = "held-out"
    size: int = 256
    photographs: Path | None = None
    half: Half = "development"
    per_set: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "captioned"):
            if not 0 <= (count := getattr(self, name)) <= len(HELD_OUT_SEEDS):
                raise ValueError(f"{name}={count}: expected a number from 0 to {len(HELD_OUT_SEEDS)}")
        if self.photographs is not None and not self.photographs.is_dir():
            raise ValueError(f"photographs={self.photographs}: no such folder")


def sample_sets(choice: SampleChoice) -> Mapping[str, Sequence[Sample]]:
    """Return the chosen sets that are not empty, by a name that describes the set and the number of its images."""
    sets = {f"{choice.scenes} scenes": scene_samples(SEEDS[choice.scenes][: choice.images], choice.size)}
    captioned = SEEDS[choice.scenes][: choice.captioned]
    sets[f"{choice.scenes} captioned scenes"] = captioned_samples(captioned, choice.size)
    if choice.photographs is not None:
        half = "" if choice.half == "all" else f"{choice.half} half of "
        for name, label in (("coco", "coco, 27 supercategories"), ("voc", "voc, 20 classes and background")):
            samples = photograph_samples(choice.photographs, name, choice.half)
            sets[f"{half}{label}"] = samples[: choice.per_set or None]
    return {f"{name}: {len(samples)} images": samples for name, samples in sets.items() if samples}


def scene_samples(seeds: Sequence[int], size: int) -> list[Sample]:
    """Generate the scenes of the given seeds."""
    scenes = (generate_scene(seed, size) for seed in seeds)
    return [_generated_sample(seed, scene.image, scene.labels) for seed, scene in zip(seeds, scenes, strict=True)]


def captioned_samples(seeds: Sequence[int], size: int) -> list[Sample]:
    """Generate the captioned scenes of the given seeds; the ground truth is the class of each pixel."""
    scenes = (generate_captioned(seed, size) for seed in seeds)
    return [
        _generated_sample(seed, scene.image, scene.classes.astype(np.uint16))
        for seed, scene in zip(seeds, scenes, strict=True)
    ]


def _generated_sample(seed: int, image: np.ndarray, ground_truth: np.ndarray) -> Sample:
    key = hashlib.sha256(image.tobytes() + ground_truth.tobytes()).hexdigest()
    return Sample(name=str(seed), key=key[:16], load=lambda: (image, ground_truth))


def photograph_samples(folder: Path, name: str, half: Half) -> list[Sample]:
    """Return a half of a set of photographs.

    Args:
        folder: Folder of all sets.
        name: Name of the set, a key of `MASKS`.
        half: Half to return.

    Raises:
        ValueError: An image has no mask. `Sample.load` raises it if the sizes of image and mask differ.
    """
    images = sorted(path for path in (folder / name / "images").glob("*") if path.is_file())
    return [_photograph_sample(path, folder / name / MASKS[name] / f"{path.stem}.png") for path in _half(images, half)]


def _half(paths: Sequence[Path], half: Half) -> Sequence[Path]:
    return {"development": paths[::2], "held-out": paths[1::2], "all": paths}[half]


def _photograph_sample(image: Path, mask: Path) -> Sample:
    """Return the sample of a photograph and its mask, whose pixels are read when the sample is loaded."""
    if not mask.is_file():
        raise ValueError(f"{image}: the image has no mask, expected {mask}")

    def load() -> tuple[np.ndarray, np.ndarray]:
        pixels = decode_image(image)
        with Image.open(mask) as opened:
            ids = np.asarray(opened).astype(np.uint16)
        if ids.shape != pixels.shape[:2]:
            raise ValueError(f"{mask}: the mask has shape {ids.shape}; expected {pixels.shape[:2]}, as the image has")
        return pixels, np.where(ids == VOID, np.uint16(IGNORE), ids)

    content = hashlib.sha256(image.read_bytes() + mask.read_bytes()).hexdigest()
    return Sample(name=image.stem, key=content[:16], load=load)
