"""`label_shard` in this process, on the embedded model at 64 px."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from diffseg import Segmentation, Segmenter
from diffseg.images.canvas import ModelInput
from diffseg.images.decode import decode_image
from diffseg.model.backbone import Step, no_step
from diffseg.pending import Launched
from pipeline.label import Outcome, decode_ahead, encode_ahead, label_samples, label_shard
from pipeline.output.commit import read_commits
from pipeline.output.rows import decode_mask, failed_row
from pipeline.output.verify import verify_commit
from pipeline.readers.find import find_shards
from pipeline.readers.samples import Sample
from pipeline.settings import LabelSettings
from pipeline.storage import Storage
from pipeline.timing import StepTimer


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.set_num_threads(1)
    return Segmenter.from_pretrained("tiny", resolution=64)


def label(source: Path, out: Path, segmenter: Segmenter, **options: object) -> dict[str, dict]:
    storage = Storage(url=str(out))
    for shard in find_shards(str(source)):
        label_shard(
            shard,
            segmenter=segmenter,
            settings=LabelSettings(**options),  # type: ignore[arg-type]
            metadata={"fingerprint": "f"},
            source=storage,
            out=storage,
        )
    rows = [row for path in sorted((out / "labels").iterdir()) for row in pq.read_table(path).to_pylist()]
    return {row["key"]: row for row in rows}


def test_rows_are_what_the_segmenter_gives(scene_folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    rows = label(scene_folder, tmp_path, segmenter)
    paths = sorted(path for path in scene_folder.rglob("*") if path.is_file())
    assert list(rows) == [path.relative_to(scene_folder).as_posix() for path in paths]
    for path, row in zip(paths, rows.values(), strict=True):
        expected = segmenter(path)
        assert np.array_equal(decode_mask(row["mask"]), expected.labels)
        assert [s["area"] for s in row["segments"]] == [s.area for s in expected.segments]
        assert row["confidence"] == pytest.approx(expected.confidence)


def test_the_commit_describes_the_files(scene_folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    label(scene_folder, tmp_path, segmenter, format="parquet,webdataset")
    out = Storage(url=str(tmp_path))
    (commit,) = read_commits(out).values()
    assert (commit.state, commit.rows, commit.counts, commit.attempt) == ("done", 20, {"ok": 20}, 1)
    assert set(commit.files) == {"labels/images-000000.parquet", "webdataset/images-000000.tar"}
    assert verify_commit(out, commit) == []
    steps = {
        "read",
        "decode",
        "resize",
        "encode",
        "unet",
        "aggregate",
        "merge",
        "refine",
        "decide",
        "results",
        "write",
        "total",
    }
    assert set(commit.seconds) == steps


def test_batches_give_the_same_bytes_again_and_the_same_masks(
    scene_folder: Path, tmp_path: Path, segmenter: Segmenter
) -> None:
    fours = Segmenter(segmenter.backbone, segmenter.settings, batch_size=4)
    one = label(scene_folder, tmp_path / "1", segmenter)
    four = label(scene_folder, tmp_path / "4", fours)
    label(scene_folder, tmp_path / "4b", fours)
    name = "labels/images-000000.parquet"
    assert (tmp_path / "4" / name).read_bytes() == (tmp_path / "4b" / name).read_bytes()
    agree = [np.mean(decode_mask(one[k]["mask"]) == decode_mask(four[k]["mask"])) for k in one]
    assert min(agree) > 0.99  # law 2: batch size may change the last bits of a float, and so a pixel


def test_a_place_in_the_batch_changes_nothing(scene_folder: Path, segmenter: Segmenter) -> None:
    fours = Segmenter(segmenter.backbone, segmenter.settings, batch_size=4)
    images = [decode_image(path) for path in sorted((scene_folder / "a").iterdir())[:4]]
    forward = [result.labels for result in fours(images)]
    backward = [result.labels for result in fours(images[::-1])]
    alone = [fours(image).labels for image in images]
    for i in range(4):
        assert np.array_equal(forward[i], backward[3 - i])
        assert np.array_equal(forward[i], alone[i])


def test_an_overflow_costs_its_own_row(scene_folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    class Overflowing(Segmenter):
        def launch(self, canvases: Sequence[ModelInput], step: Step = no_step) -> Launched:
            launched = super().launch(canvases, step)
            finite = torch.tensor([index != 1 for index in range(len(canvases))])
            return dataclasses.replace(launched, finite=finite)

    rows = label(scene_folder, tmp_path, Overflowing(segmenter.backbone, segmenter.settings, batch_size=4))
    assert [row["status"] for row in rows.values()] == ["ok", "nonfinite", "ok", "ok"] * 5
    assert all(row["height"] == 96 and row["mask"] is None for row in rows.values() if row["status"] == "nonfinite")


def test_meta_is_carried_through(scene_folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        image = next((scene_folder / "a").iterdir()).read_bytes()
        for name, data in (("k.png", image), ("k.json", b'{"a": 1}'), ("k.txt", b"caption")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    rows = label(tmp_path / "0.tar", tmp_path / "out", segmenter)
    assert rows["k"]["meta"] == '{"json": {"a": 1}, "txt": "caption"}'


def test_decoding_stays_a_bounded_number_of_samples_ahead(scene_folder: Path, segmenter: Segmenter) -> None:
    data = next((scene_folder / "a").iterdir()).read_bytes()
    drawn = 0

    def samples() -> Iterator[Sample]:
        nonlocal drawn
        for index in range(50):
            drawn += 1
            yield Sample(index=index, key=str(index), image=data)

    seen = 0
    for sample, canvas, row in decode_ahead(samples(), "s", 2**20, segmenter.prepare, StepTimer(), ahead=3):
        assert (sample.index, row) == (seen, None)
        assert canvas is not None
        assert drawn <= seen + 4
        seen += 1
    assert seen == 50


def test_bad_images_wait_for_no_batch_and_keep_no_bytes(segmenter: Segmenter) -> None:
    """Or a shard of large broken files would be in memory whole."""
    bad = [Sample(index=i, key=str(i), image=b"no image" * 1000) for i in range(5)]
    taken: list[int] = []

    def watched() -> Iterator[Sample]:
        for sample in bad:
            taken.append(sample.index)
            yield sample

    step = StepTimer()
    rows = label_samples(decode_ahead(watched(), "s", 10**6, segmenter.prepare, step, ahead=1), segmenter, step, "s")
    sample, row = next(rows)
    assert (sample.image, row.status, taken) == (None, "undecodable", [0, 1, 2])
    assert len(list(rows)) == 4


def test_masks_are_encoded_while_the_model_is_at_the_next_images() -> None:
    begun = threading.Semaphore(0)

    class NotBeforeTheNextPass(StepTimer):
        def __call__(self, name: str) -> AbstractContextManager[None]:
            assert begun.acquire(timeout=540)
            return super().__call__(name)

    def outcomes() -> Iterator[Outcome]:
        for index in range(6):
            sample = Sample(index=index, key=str(index), image=b"")
            labels = np.full((8, 8), index, dtype=np.uint16)
            failed = failed_row(sample, "s", "undecodable", "why")
            yield sample, failed if index == 3 else Segmentation(labels=labels, segments=(), confidence=1.0)
            begun.release()

    rows = [row for _, row in encode_ahead(outcomes(), "s", NotBeforeTheNextPass(), ahead=2)]
    assert [row.index for row in rows] == list(range(6))
    assert [None if row.mask is None else decode_mask(row.mask)[0, 0] for row in rows] == [0, 1, 2, None, 4, 5]


def test_an_error_of_the_device_ends_all_threads(scene_folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    """Also those before the model, while somebody still holds the error."""

    class Failing(Segmenter):
        def launch(self, canvases: Sequence[ModelInput], step: Step = no_step) -> Launched:
            raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA") as held:
        label(scene_folder, tmp_path, Failing(segmenter.backbone, segmenter.settings))
    deadline = time.monotonic() + 540
    while any(thread.name == "prefetch" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert held.tb is not None
