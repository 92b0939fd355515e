"""Images with truths that the embedded model is scored on: generated scenes, and photographs where a user has some."""

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

__all__ = ["SEEDS", "Choice", "Sample", "captioned_samples", "chosen", "photographs", "scene_samples"]

Half = Literal["development", "held-out", "all"]
SEEDS = {"validation": VALIDATION_SEEDS, "held-out": HELD_OUT_SEEDS}
MASKS = {"coco": "masks27", "voc": "masks"}
VOID = 255
"""Id of pixels without a truth in the masks of photographs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """name: of the image in its set. key: another one for other pixels.

    load: uint8 [H, W, 3] and its truth, uint16 [H, W], `IGNORE` where there is none.
    """

    name: str
    key: str
    load: Callable[[], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """On what to score.

    Attributes:
        images: number of generated scenes.
        captioned: number of scenes of the closed vocabulary of the model that reads text.
        scenes: held-out ones, for figures to report, or validation, for whatever is still to be decided.
        size: side of the scenes in pixels.
        photographs: a folder with coco/images, coco/masks27, voc/images and voc/masks (PNG, 255 = no truth), or a part.
        half: of each set of photographs, sorted by name: development is the even ones, held-out the odd ones.
    """

    images: int = 60
    captioned: int = 0
    scenes: Literal["validation", "held-out"] = "held-out"
    size: int = 256
    photographs: Path | None = None
    half: Half = "development"

    def __post_init__(self) -> None:
        for name in ("images", "captioned"):
            if not 0 <= (count := getattr(self, name)) <= len(HELD_OUT_SEEDS):
                raise ValueError(f"{name}={count}: expected 0 to {len(HELD_OUT_SEEDS)}")
        if self.photographs is not None and not self.photographs.is_dir():
            raise ValueError(f"photographs={self.photographs}: no such folder")


def chosen(choice: Choice) -> Mapping[str, Sequence[Sample]]:
    """The sets to score on, by a name that says what and how many; without those that are empty."""
    sets = {f"{choice.scenes} scenes": scene_samples(SEEDS[choice.scenes][: choice.images], choice.size)}
    captioned = SEEDS[choice.scenes][: choice.captioned]
    sets[f"{choice.scenes} captioned scenes"] = captioned_samples(captioned, choice.size)
    if choice.photographs is not None:
        half = "" if choice.half == "all" else f"{choice.half} half of "
        for name, label in (("coco", "coco, 27 supercategories"), ("voc", "voc, 20 classes and background")):
            sets[f"{half}{label}"] = photographs(choice.photographs, name, choice.half)
    return {f"{name}: {len(samples)} images": samples for name, samples in sets.items() if samples}


def scene_samples(seeds: Sequence[int], size: int) -> list[Sample]:
    """Generated scenes, made now."""
    scenes = (generate_scene(seed, size) for seed in seeds)
    return [_made(seed, scene.image, scene.labels) for seed, scene in zip(seeds, scenes, strict=True)]


def captioned_samples(seeds: Sequence[int], size: int) -> list[Sample]:
    """Captioned scenes, made now; the truth is the class of every pixel."""
    scenes = (generate_captioned(seed, size) for seed in seeds)
    return [
        _made(seed, scene.image, scene.classes.astype(np.uint16)) for seed, scene in zip(seeds, scenes, strict=True)
    ]


def _made(seed: int, image: np.ndarray, truth: np.ndarray) -> Sample:
    key = hashlib.sha256(image.tobytes() + truth.tobytes()).hexdigest()
    return Sample(name=str(seed), key=key[:16], load=lambda: (image, truth))


def photographs(folder: Path, name: str, half: Half) -> list[Sample]:
    """The half of a set of photographs. Raises ValueError where an image has no mask; loading, where sizes differ."""
    images = sorted(path for path in (folder / name / "images").glob("*") if path.is_file())
    return [_photograph(path, folder / name / MASKS[name] / f"{path.stem}.png") for path in _half(images, half)]


def _half(paths: Sequence[Path], half: Half) -> Sequence[Path]:
    return {"development": paths[::2], "held-out": paths[1::2], "all": paths}[half]


def _photograph(image: Path, mask: Path) -> Sample:
    if not mask.is_file():
        raise ValueError(f"{image}: has no mask; looked for {mask}")

    def load() -> tuple[np.ndarray, np.ndarray]:
        pixels = decode_image(image)
        with Image.open(mask) as opened:
            ids = np.asarray(opened).astype(np.uint16)
        if ids.shape != pixels.shape[:2]:
            raise ValueError(f"{mask}: has shape {ids.shape}; expected {pixels.shape[:2]}, as the image")
        return pixels, np.where(ids == VOID, np.uint16(IGNORE), ids)

    content = hashlib.sha256(image.read_bytes() + mask.read_bytes()).hexdigest()
    return Sample(name=image.stem, key=content[:16], load=load)
