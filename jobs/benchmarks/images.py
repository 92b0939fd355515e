"""The images of the measurements: those of a folder, or generated scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from diffseg.images.decode import decode_image
from diffseg.tiny.scenes.scenes import generate_scene

SCENES, SCENE_SIZE = 48, (480, 640)
"""Number of generated scenes, and their height and width in pixels, as of a photograph."""
IMAGES = 8
"""Maximum number of images in parts whole, settings and names."""


def image_files(folder: Path) -> list[Path]:
    """Return the JPEG and PNG files below a folder, sorted. Raises ValueError if there are none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise ValueError(f"{folder}: expected JPEG or PNG files below it, found none")
    return files


def write_scenes(folder: Path, scenes: int = SCENES, size: tuple[int, int] = SCENE_SIZE) -> Path:
    """Write generated scenes as JPEG files, by default of the size of a photograph, and return the folder."""
    height, width = size
    for seed in range(scenes):
        scene = Image.fromarray(generate_scene(seed, max(size)).image)
        scene.crop((0, 0, width, height)).save(folder / f"{seed:03}.jpg", quality=90)
    return folder


def read_images(folder: Path) -> list[np.ndarray]:
    """Return the first images of a folder, uint8 [H, W, 3] each."""
    return [decode_image(path) for path in image_files(folder)[:IMAGES]]
