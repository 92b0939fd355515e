"""Spliced training samples: tiles of several images, each with its own label map, the same after a resumption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from labelled_runs import write_png, write_run
from trainings import whole_and_continued

from diffseg import IGNORE
from diffseg.segmentation import BACKGROUND
from pipeline.training.dataset import DatasetSettings, LabelDataset, TrainingSample
from pipeline.training.settings import TrainSettings

IMAGES, SIDE = 6, 48
EXACT = {"crop": 1.0, "shuffle_buffer": 3}
"""Crops that are the largest possible, so that every tile shows most of its image."""


@pytest.fixture(scope="module")
def checkers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return OUT of a run over checkerboards: red shows the image, green the class of a cell, blue ignored pixels."""
    folder = tmp_path_factory.mktemp("checkers")
    labels: dict[str, np.ndarray | None] = {}
    rows, columns = np.indices((SIDE, SIDE)) // 12
    for number in range(IMAGES):
        mask = ((rows + columns + number) % 2).astype(np.uint16)
        mask[18:30, 18:30] = IGNORE
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        image[..., 0], image[..., 1], image[..., 2] = 40 * number, 255 * (mask == 1), 255 * (mask == IGNORE)
        write_png(folder / "images" / f"{number}.png", image)
        labels[f"{number}.png"] = mask
    names = {key: [BACKGROUND, "cell"] for key in labels}
    write_run(folder / "out", labels, source=folder / "images", names=names, vocabulary=("cell",))
    return folder / "out"


def samples(out: Path, **settings: object) -> list[TrainingSample]:
    return list(LabelDataset(str(out), DatasetSettings(size=SIDE, **{**EXACT, **settings})))


def images_in(sample: TrainingSample) -> set[int]:
    return set((sample["image"][0] // 40).unique().tolist())


def test_every_tile_has_the_label_map_of_its_own_image(checkers: Path) -> None:
    tiles: set[int] = set()
    for sample in samples(checkers, target="classes", splice=3, splice_share=1.0):
        green, blue = sample["image"][1], sample["image"][2]
        for channel, value in ((green, 1), (blue, -100)):
            assert (channel > 240).any()
            assert (sample["mask"][channel > 240] == value).all()
            assert not (sample["mask"][channel < 15] == value).any()
        assert set(sample["mask"].unique().tolist()) == {-100, 0, 1}
        tiles.add(len(images_in(sample)))
    assert max(tiles) > 2, "no sample has more than two images"


def test_segments_of_different_tiles_have_different_ids(checkers: Path) -> None:
    for sample in samples(checkers, splice=2, splice_share=1.0, flip=False):
        left = {int(value) for value in sample["mask"].unique()} - {-100}
        assert len(left) >= 2 * len(images_in(sample))
        for value in left:
            assert len((sample["image"][0][sample["mask"] == value] // 40).unique()) == 1


def test_the_share_of_spliced_samples_is_given_and_each_row_still_begins_one_sample(checkers: Path) -> None:
    for share, expected in ((0.0, {1}), (1.0, {2, 3, 4})):
        chosen = samples(checkers, splice=2, splice_share=share)
        assert sorted(sample["key"] for sample in chosen) == [f"{number}.png" for number in range(IMAGES)]
        assert {len(images_in(sample)) for sample in chosen} <= expected
    without = samples(checkers)
    for sample, other in zip(samples(checkers, splice=2, splice_share=0.0), without, strict=True):
        assert torch.equal(sample["image"], other["image"])
    for wrong in ({"splice": 0}, {"splice": SIDE + 1}, {"splice_share": 1.5}):
        with pytest.raises(ValueError, match="expected 1 to"):
            DatasetSettings(size=SIDE, **wrong)


def test_a_reader_that_starts_within_an_epoch_splices_the_same_samples(checkers: Path) -> None:
    settings = DatasetSettings(size=SIDE, splice=3, crop=0.5, shuffle_buffer=3)
    dataset = LabelDataset(str(checkers), settings)
    dataset.start_at(2)
    whole = list(dataset)
    dataset.start_at(2, batches=2, batch_size=2)
    for sample, again in zip(whole[4:], dataset, strict=True):
        assert torch.equal(sample["image"], again["image"])
        assert torch.equal(sample["mask"], again["mask"])


def test_a_training_with_splices_that_is_stopped_ends_with_the_same_network(checkers: Path, tmp_path: Path) -> None:
    settings = TrainSettings(steps=8, batch_size=2, size=32, width=8, target="classes", splice=2)
    whole, continued = whole_and_continued(checkers, settings, tmp_path, interrupted_after=5)
    assert whole.read_bytes("model.safetensors") == continued.read_bytes("model.safetensors")
