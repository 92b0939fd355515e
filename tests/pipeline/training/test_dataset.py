"""Training samples of a run: every row once per epoch, image and label map augmented together, start anywhere."""

from __future__ import annotations

import gc
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import label, rows_of
from torch.utils.data import DataLoader

from pipeline.output.rows import decode_mask
from pipeline.output.selection import RowSelection, split_of
from pipeline.storage import SourceError
from pipeline.training.dataset import DatasetSettings, LabelDataset, RowFilter, TrainingSample

SIDE = 64


def keys_of(dataset: LabelDataset, *, workers: int = 0, batch_size: int = 2) -> list[str]:
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers)
    return [key for batch in loader for key in batch["key"]]


def are_equal(first: TrainingSample, second: TrainingSample) -> bool:
    tensors = torch.equal(first["image"], second["image"]) and torch.equal(first["mask"], second["mask"])
    return first["key"] == second["key"] and tensors


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (3, 0)])
def test_every_row_is_read_once_per_epoch(ranks: int, workers: int, labelled: Path) -> None:
    expected = {row["key"] for row in rows_of(labelled)}
    epochs = []
    for epoch in range(2):
        seen: Counter[str] = Counter()
        for rank in range(ranks):
            dataset = LabelDataset(
                str(labelled), DatasetSettings(size=SIDE, shuffle_buffer=5), rank=rank, world_size=ranks
            )
            dataset.start_at(epoch)
            keys = keys_of(dataset, workers=workers)
            assert len(keys) == len(dataset) == len(expected) // ranks
            seen.update(keys)
        assert set(seen) <= expected
        assert max(seen.values()) == 1
        epochs.append(list(seen))
    assert epochs[0] != epochs[1], "the order never changes"


def test_reading_starts_in_the_middle_of_an_epoch(labelled: Path) -> None:
    def batches(after: int) -> list[list[str]]:
        dataset = LabelDataset(str(labelled), DatasetSettings(size=SIDE, shuffle_buffer=6))
        dataset.start_at(1, batches=after, batch_size=3)
        return [batch["key"] for batch in DataLoader(dataset, batch_size=3, num_workers=2)]

    uninterrupted = batches(0)
    for after in (2, 3):
        assert batches(after) == uninterrupted[after:]


@pytest.mark.parametrize(("ranks", "workers", "batch_size"), [(2, 0, 4), (4, 0, 2), (3, 2, 2)])
def test_ranks_that_share_batches_read_those_of_one_rank(
    ranks: int, workers: int, batch_size: int, labelled: Path
) -> None:
    """The last of the batches of 20 rows is smaller, and all ranks get equally many of its rows."""

    def batches(rank: int, world_size: int, size: int) -> list[list[str]]:
        settings = DatasetSettings(size=SIDE, shuffle_buffer=6)
        dataset = LabelDataset(str(labelled), settings, rank=rank, world_size=world_size, share_batches=True)
        dataset.start_at(2, batches=1, batch_size=size)
        return [batch["key"] for batch in DataLoader(dataset, batch_size=size, num_workers=workers)]

    whole = batches(0, 1, ranks * batch_size)
    parts = [batches(rank, ranks, batch_size) for rank in range(ranks)]
    together = [[key for part in step for key in part] for step in zip(*parts, strict=True)]
    for step, expected in zip(together, whole, strict=True):
        assert step == expected[: len(expected) // ranks * ranks]


def test_the_seed_determines_the_samples(labelled: Path) -> None:
    first, again, other = (
        list(LabelDataset(str(labelled), DatasetSettings(size=SIDE, seed=seed))) for seed in (3, 3, 4)
    )
    assert all(map(are_equal, first, again))
    assert not all(map(are_equal, first, other))


def test_without_augmentation_a_sample_is_the_centre_of_image_and_label_map(labelled: Path, scene_folder: Path) -> None:
    masks = {row["key"]: decode_mask(row["mask"]) for row in rows_of(labelled)}
    for sample in LabelDataset(str(labelled), DatasetSettings(size=96, crop=1, flip=False)):
        assert sample["image"].shape == (3, 96, 96)
        assert sample["image"].dtype == torch.uint8
        assert torch.equal(sample["mask"], torch.from_numpy(masks[sample["key"]].astype(np.int64)))
        path = next(scene_folder.glob(f"{sample['key']}.*"))
        with Image.open(path) as image:
            assert np.array_equal(sample["image"].permute(1, 2, 0), np.asarray(image.convert("RGB")))


def test_image_and_label_map_are_cropped_and_flipped_together(tmp_path: Path) -> None:
    """The left half of the image is dark and the right half light; the labels must agree with that in every crop."""
    images = tmp_path / "in"
    images.mkdir()
    picture = np.zeros((120, 160, 3), np.uint8)
    picture[:, 80:] = 255
    for number in range(12):
        Image.fromarray(picture).save(images / f"{number:02d}.png")
    assert label(images, tmp_path / "out", "--no-ray", "--method", "diffseg,par") == 0
    dataset = LabelDataset(str(tmp_path / "out"), DatasetSettings(size=SIDE, crop=0.4))
    (light,) = {int(decode_mask(row["mask"])[60, 120]) for row in rows_of(tmp_path / "out")}
    sides = set()
    for sample in dataset:
        bright = sample["image"][0] > 127
        agree = ((sample["mask"] == light) == bright).float().mean()
        assert agree > 0.9
        if bright.any() and not bright.all():
            sides.add(bool(bright[0, 0]))
    assert sides == {True, False}, "no sample was mirrored"


def test_rows_and_segments_can_be_filtered(labelled: Path) -> None:
    rows = rows_of(labelled)
    confidences = sorted(row["confidence"] for row in rows)
    bound = (confidences[9] + confidences[10]) / 2
    chosen = LabelDataset(str(labelled), DatasetSettings(size=SIDE, rows=RowFilter(confidence=bound)))
    assert set(keys_of(chosen)) == {row["key"] for row in rows if row["confidence"] >= bound}
    most = sorted(row["n_segments"] for row in rows)[10]
    few = LabelDataset(str(labelled), DatasetSettings(size=SIDE, rows=RowFilter(segments=(1, most))))
    assert set(keys_of(few)) == {row["key"] for row in rows if row["n_segments"] <= most}
    selection = RowSelection(where=f"n_segments <= {most}", split=(0.4, 1.0))
    selected = LabelDataset(str(labelled), DatasetSettings(size=SIDE, rows=RowFilter(selection=selection)))
    assert set(keys_of(selected)) == {key for key in keys_of(few) if split_of(key) >= 0.4} != set(keys_of(few))
    settings = DatasetSettings(size=96, crop=1, flip=False, rows=RowFilter(segment_confidence=0.5))
    confident = LabelDataset(str(labelled), settings)
    uncertain = {row["key"]: [s["id"] for s in row["segments"] if s["confidence"] < 0.5] for row in rows}
    masks = {row["key"]: decode_mask(row["mask"]) for row in rows}
    ignored = 0
    for sample in confident:
        expected = np.isin(masks[sample["key"]], uncertain[sample["key"]])
        assert np.array_equal(sample["mask"] == -100, expected)
        ignored += int(expected.sum())
    assert ignored
    with pytest.raises(SourceError, match="no row is left"):
        LabelDataset(str(labelled), DatasetSettings(rows=RowFilter(confidence=1.1)))


def test_images_other_than_those_of_the_run_are_refused(labelled: Path, scene_tars: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(scene_tars, moved)
    assert len(keys_of(LabelDataset(str(labelled), DatasetSettings(size=SIDE), images=str(moved)))) == 20
    tars = sorted(moved.glob("*.tar"))
    tars[0].write_bytes(tars[1].read_bytes())
    with pytest.raises(SourceError, match=r"was '.*' when it was labelled and is now"):
        keys_of(LabelDataset(str(labelled), DatasetSettings(size=SIDE), images=str(moved)))
    tars[0].unlink()
    with pytest.raises(SourceError, match=r"images="):
        LabelDataset(str(labelled), DatasetSettings(size=SIDE), images=str(moved))
    with pytest.raises(SourceError, match=r"run\.json"):
        LabelDataset(str(tmp_path))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_and_ray_data_read_the_same_labels(labelled: Path, local_ray: None) -> None:
    import ray
    import webdataset

    expected = {row["key"]: row["n_segments"] for row in rows_of(labelled)}
    tars = sorted(str(path) for path in (labelled / "webdataset").glob("*.tar"))
    samples = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("pil").to_tuple("png", "json")
    assert {row["key"]: len(np.unique(np.asarray(mask))) for mask, row in samples} == expected
    rows = ray.data.read_parquet(str(labelled / "labels")).take_all()
    assert {row["key"]: row["n_segments"] for row in rows} == expected
    gc.collect()  # webdataset leaves closing its last file to the garbage collector
