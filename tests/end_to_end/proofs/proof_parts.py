"""Steps that several proofs share: trainings, captioned scenes as runs and tars, and cells of tables."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from labelled_runs import write_run

import jobs.train
from diffseg.tiny.scenes.captioned import CaptionedScene, visible_classes
from diffseg.tiny.scenes.vocabulary import NOUNS


def flags_of(settings: Mapping[str, object]) -> list[str]:
    """Return settings by the names of their flags as words of a command line."""
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def train(out: Path, model: Path, settings: Mapping[str, object], *flags: str) -> None:
    """Train a network on OUT without Ray, or continue; the command must succeed."""
    assert jobs.train.main([str(out), str(model), *flags_of(settings), "--no-ray", *flags]) == 0


def write_truth(out: Path, scenes: Mapping[str, CaptionedScene], images: Path, per_shard: int) -> None:
    """Write OUT of a run whose segments are the true regions of scenes, with their nouns.

    Args:
        out: OUT.
        scenes: The scenes by the names of their images.
        images: Folder of the images.
        per_shard: Rows of a label shard.
    """
    names = {name: [NOUNS[c] for c in np.unique(scene.classes)] for name, scene in scenes.items()}
    labels: dict[str, np.ndarray | None] = {name: scene.labels for name, scene in scenes.items()}
    write_run(out, labels, source=images, per_shard=per_shard, names=names, vocabulary=NOUNS)


def write_tar(path: Path, scenes: Mapping[str, CaptionedScene], images: Path) -> None:
    """Write the images of scenes with the nouns that they show, as a field `labels`, unless the tar exists."""
    if path.exists():  # a tar that is written again would be labelled again
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".writing")
    with tarfile.open(aside, "w") as tar:
        for name, scene in scenes.items():
            nouns = [NOUNS[c] for c in visible_classes(scene.classes)]
            files = {name: (images / name).read_bytes()}
            files[Path(name).stem + ".json"] = json.dumps({"labels": nouns}).encode()
            for member, data in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    aside.rename(path)


def mean_and_values(values: Sequence[float], *, with_deviation: bool = False) -> str:
    """Return a cell of a table: the mean and each value; a single value alone; nothing without values.

    Args:
        values: The values, such as one for each seed.
        with_deviation: Whether the standard deviation follows the mean.
    """
    each = " ".join(f"{value:.3f}" for value in values)
    if len(values) < 2:
        return each
    deviation = f" ± {np.std(values, ddof=1):.3f}" if with_deviation else ""
    return f"{np.mean(values):.3f}{deviation}: {each}"
