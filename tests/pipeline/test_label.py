"""`label_shard` and its stages in this process, with the embedded model at 64 px."""

from __future__ import annotations

import dataclasses
import shutil
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
from diffseg.method.signals import Signals
from diffseg.model.backbone import Step, no_step
from diffseg.pending import PendingBatch
from pipeline.label import Decoded, Outcome, decode_samples, encode_rows, label_samples, label_shard
from pipeline.output.commit import read_commits
from pipeline.output.rows import FEATURE_COLUMNS, QUALITY_COLUMNS, decode_mask, failed_row
from pipeline.output.verify import verify_commit
from pipeline.prefetch import THREAD_NAME
from pipeline.readers.find import find_shards
from pipeline.readers.samples import Sample, ShardError
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


def test_rows_hold_what_the_segmenter_returns(scene_folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    rows = label(scene_folder, tmp_path, segmenter)
    paths = sorted(path for path in scene_folder.rglob("*") if path.is_file())
    assert list(rows) == [path.relative_to(scene_folder).as_posix() for path in paths]
    for path, row in zip(paths, rows.values(), strict=True):
        expected = segmenter(path)
        assert np.array_equal(decode_mask(row["mask"]), expected.labels)
        assert [segment["area"] for segment in row["segments"]] == [segment.area for segment in expected.segments]
        assert row["confidence"] == pytest.approx(expected.confidence)


def test_the_commit_describes_the_files(scene_folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    label(scene_folder, tmp_path, segmenter, format="parquet,webdataset")
    out = Storage(url=str(tmp_path))
    (commit,) = read_commits(out).values()
    assert (commit.state, commit.rows, commit.counts, commit.attempt) == ("done", 20, {"ok": 20}, 1)
    assert set(commit.files) == {f"labels/{commit.shard}.parquet", f"webdataset/{commit.shard}.tar"}
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


def test_batches_give_the_same_bytes_each_time_and_nearly_the_masks_of_single_images(
    scene_folder: Path, tmp_path: Path, segmenter: Segmenter
) -> None:
    fours = Segmenter(segmenter.backbone, segmenter.settings, batch_size=4)
    single = label(scene_folder, tmp_path / "1", segmenter)
    batched = label(scene_folder, tmp_path / "4", fours)
    label(scene_folder, tmp_path / "4b", fours)
    (path,), (again,) = ((tmp_path / name / "labels").iterdir() for name in ("4", "4b"))
    assert path.read_bytes() == again.read_bytes()
    agreement = [np.mean(decode_mask(single[key]["mask"]) == decode_mask(batched[key]["mask"])) for key in single]
    assert min(agreement) > 0.99  # the batch size may change the last bits of a float, and so a pixel


def test_the_position_in_a_batch_changes_nothing(scene_folder: Path, segmenter: Segmenter) -> None:
    fours = Segmenter(segmenter.backbone, segmenter.settings, batch_size=4)
    images = [decode_image(path) for path in sorted((scene_folder / "a").iterdir())[:4]]
    forward = [result.labels for result in fours(images)]
    backward = [result.labels for result in fours(images[::-1])]
    alone = [fours(image).labels for image in images]
    for i in range(4):
        assert np.array_equal(forward[i], backward[3 - i])
        assert np.array_equal(forward[i], alone[i])


def test_an_overflow_fails_only_its_own_row(scene_folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    class Overflowing(Segmenter):
        def from_attention(self, signals: Signals, inputs: Sequence[ModelInput], step: Step = no_step) -> PendingBatch:
            pending = super().from_attention(signals, inputs, step)
            finite = torch.tensor([index != 1 for index in range(len(inputs))])
            return dataclasses.replace(pending, finite=finite)

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

    yielded = 0
    decoded = decode_samples(samples(), "s", 2**20, segmenter.prepare, StepTimer(), threads=2, ahead=3)
    for sample, model_input, row in decoded:
        assert (sample.index, row) == (yielded, None)
        assert model_input is not None
        assert drawn <= yielded + 4
        yielded += 1
    assert yielded == 50


def test_bad_images_wait_for_no_batch_and_keep_no_bytes(segmenter: Segmenter) -> None:
    """Otherwise a shard of large broken files would be in memory as a whole."""
    bad = [Sample(index=i, key=str(i), image=b"no image" * 1000) for i in range(5)]
    drawn: list[int] = []

    def samples() -> Iterator[Sample]:
        for sample in bad:
            drawn.append(sample.index)
            yield sample

    step = StepTimer()
    decoded = decode_samples(samples(), "s", 10**6, segmenter.prepare, step, threads=2, ahead=1)
    rows = label_samples(decoded, segmenter, step, "s")
    sample, row = next(rows)
    assert (sample.image, row.status, drawn) == (None, "undecodable", [0, 1, 2])
    assert len(list(rows)) == 4


def test_masks_are_encoded_while_the_model_labels_the_next_images() -> None:
    next_pass = threading.Semaphore(0)

    class BlockedUntilTheNextPass(StepTimer):
        def __call__(self, name: str) -> AbstractContextManager[None]:
            assert next_pass.acquire(timeout=540)
            return super().__call__(name)

    def outcomes() -> Iterator[Outcome]:
        for index in range(6):
            sample = Sample(index=index, key=str(index), image=b"")
            labels = np.full((8, 8), index, dtype=np.uint16)
            failed = failed_row(sample, "s", "undecodable", "why")
            yield sample, failed if index == 3 else Segmentation(labels=labels, segments=(), confidence=1.0)
            next_pass.release()

    rows = [row for row, _ in encode_rows(outcomes(), "s", BlockedUntilTheNextPass(), threads=2, ahead=2)]
    assert [row.index for row in rows] == list(range(6))
    assert [None if row.mask is None else decode_mask(row.mask)[0, 0] for row in rows] == [0, 1, 2, None, 4, 5]


def test_a_device_error_ends_all_threads(scene_folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    """This includes the threads of the stages before the model, while the caller still holds the error."""

    class Failing(Segmenter):
        def from_attention(self, signals: Signals, inputs: Sequence[ModelInput], step: Step = no_step) -> PendingBatch:
            raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA") as raised:
        label(scene_folder, tmp_path, Failing(segmenter.backbone, segmenter.settings))
    deadline = time.monotonic() + 540
    while any(thread.name == THREAD_NAME for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert raised.tb is not None


def test_an_error_of_the_shard_follows_the_rows_before_it_and_is_no_error_of_the_model(segmenter: Segmenter) -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)

    def decoded() -> Iterator[Decoded]:
        for index in range(3):
            yield Decoded(Sample(index=index, key=str(index), image=b""), segmenter.prepare(image), None)
        raise ShardError("s", "it ends early")

    outcomes = label_samples(decoded(), segmenter, StepTimer(), "s")
    assert [next(outcomes)[0].index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ShardError, match="it ends early"):
        next(outcomes)


def test_features_are_further_columns_and_leave_the_others_unchanged(
    scene_folder: Path, tmp_path: Path, segmenter: Segmenter
) -> None:
    plain = label(scene_folder, tmp_path / "plain", segmenter)
    with_features = Segmenter(segmenter.backbone, segmenter.settings, features=True)
    rows = label(scene_folder, tmp_path / "features", with_features, features=True)
    for key, row in rows.items():
        image, segments = (row.pop(name) for name in FEATURE_COLUMNS)
        assert row == plain[key]
        assert (len(image), len(segments)) == (512, 512 * row["n_segments"])


def test_the_score_of_quality_is_further_columns_and_leaves_the_others_unchanged(
    scene_folder: Path, tmp_path: Path, segmenter: Segmenter
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in sorted(path for path in scene_folder.rglob("*") if path.is_file())[:2]:
        shutil.copy(path, source)
    plain = label(source, tmp_path / "plain", segmenter)
    scoring = Segmenter(segmenter.backbone, segmenter.settings.with_values(variants=2), quality=True)
    rows = label(source, tmp_path / "quality", scoring, quality=True)
    assert rows == label(source, tmp_path / "again", scoring, quality=True)
    assert len(rows) == 2
    for key, row in rows.items():
        within, between = (row.pop(name) for name in QUALITY_COLUMNS)
        assert row == plain[key]
        assert -1 <= within <= 1
        assert (between is None) == (row["n_segments"] == 1)
