"""Small networks of transformers, and trainings that are interrupted and continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.output.selection import RowSelection
from pipeline.storage import Storage
from pipeline.training.dataset import LabelDataset
from pipeline.training.loop import train
from pipeline.training.settings import TrainRunSettings, TrainSettings

SEGFORMER: dict[str, Any] = {
    "model_type": "segformer",
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}
VIT: dict[str, Any] = {
    "model_type": "vit",
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
"""config.json of small networks."""


class _Interrupted(Exception):
    pass


def whole_and_continued(
    out: Path, settings: TrainSettings, folder: Path, *, interrupted_after: int
) -> tuple[Storage, Storage]:
    """Train twice on OUT, the second time with an interruption, and save a checkpoint after each step.

    Args:
        out: OUT of the run that is trained on.
        settings: The settings of both trainings.
        folder: Folder of both MODELs.
        interrupted_after: The step after which the second training is interrupted, before its last one.

    Returns:
        MODEL of the training without an interruption, and MODEL of the other one after it has continued to its end.
    """
    run = TrainRunSettings(no_ray=True, save_every=1)
    whole, continued = (Storage(url=str(folder / name)) for name in ("whole", "continued"))

    def train_in(model: Storage, **options: Any) -> None:
        train(settings, run, LabelDataset(str(out), settings.dataset(RowSelection())), model, **options)

    def interrupt(record: Any) -> None:
        if record["step"] == interrupted_after:
            raise _Interrupted

    train_in(whole)
    with pytest.raises(_Interrupted):
        train_in(continued, on_record=interrupt)
    assert not continued.exists("model.safetensors")
    train_in(continued)
    return whole, continued
