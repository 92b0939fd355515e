"""Helpers for models in stores: upload a checkpoint, find it from a node, and damage a copy."""

from __future__ import annotations

from pathlib import Path

from pipeline.settings import LabelSettings
from pipeline.storage import Storage
from pipeline.weights import Weights, find_weights

UNET = "unet/diffusion_pytorch_model.safetensors"


def upload(folder: Path, store: Storage) -> None:
    """Copy all files of a local folder to a store."""
    for path in folder.rglob("*"):
        if path.is_file():
            store.write_file(path.relative_to(folder).as_posix(), path)


def find(model: str, *, retry_timeout: float = 300.0, **settings: str) -> Weights:
    """Find a model on this node, as a worker does."""
    return find_weights(LabelSettings(model=model, **settings), Storage(url=".", retry_timeout=retry_timeout))


def files(folder: Path) -> set[str]:
    """Return the paths of all files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
