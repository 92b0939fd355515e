"""`read_shard`: the same photographs from a tar, a Parquet file and a folder, at any URL."""

import io
import logging
import os
import pickle
import socket
import tarfile
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.readers import samples
from pipeline.readers.find import find_shards
from pipeline.readers.image_files import FILES_AT_ONCE
from pipeline.readers.read import read_shard
from pipeline.readers.samples import STATUSES, Shard, ShardError
from pipeline.storage import Storage, retries
from pipeline.storage.retries import StoreUnavailable, waiting
from pipeline.timing import StepTimer

IMAGES = {f"{number:02d}": b"image %d" % number for number in range(20)}


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def as_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for key, data in IMAGES.items():
            info = tarfile.TarInfo(f"{key}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def as_parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"key": list(IMAGES), "image": list(IMAGES.values())}), file)
    return file.getvalue()


def test_three_kinds_give_the_same_samples(root):
    storage = Storage(url=root)
    storage.write_bytes("tars/a.tar", as_tar())
    storage.write_bytes("parquet/a.parquet", as_parquet())
    for key, data in IMAGES.items():
        storage.write_bytes(f"images/{key}.jpg", data)
    for folder, suffix in (("tars", ""), ("parquet", ""), ("images", ".jpg")):
        shards = find_shards(f"{root}/{folder}", samples_per_shard=8)
        found = [sample for shard in shards for sample in read_shard(shard)]
        assert [(sample.key, sample.image) for sample in found] == [(key + suffix, IMAGES[key]) for key in IMAGES]
        assert {sample.status for sample in found} == {"ok"}
    assert [sample.index for sample in read_shard(shards[1])] == list(range(8))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_missing_and_mistaken_files_are_shard_errors(root, kind):
    shard = Shard(name="x", url=f"{root}/x.{kind}", kind=kind)
    with pytest.raises(ShardError, match=rf"x\.{kind}: there is no such file"):
        list(read_shard(shard))
    Storage(url=root).write_bytes(f"x.{kind}", b"<html>404</html>" * 100)
    with pytest.raises(ShardError, match=rf"x\.{kind}: "):
        list(read_shard(shard))


def test_one_bad_file_of_a_folder_costs_only_its_own_row(root, monkeypatch):
    monkeypatch.setattr(samples, "MAX_SAMPLE_BYTES", 100)
    storage = Storage(url=root)
    for name, data in {"a.jpg": b"a", "b.jpg": b"b", "c.jpg": b"c" * 101, "d.jpg": b"d" * 100, "e.jpg": b""}.items():
        storage.write_bytes(name, data)
    (shard,) = find_shards(root)
    storage.delete("b.jpg")
    found = list(read_shard(shard))
    assert [sample.status for sample in found] == ["ok", "unreadable", "too_large", "ok", "ok"]
    assert [sample.image for sample in found] == [b"a", None, None, b"d" * 100, b""]
    assert "FileNotFoundError" in found[1].error


def until(holds):
    deadline = time.monotonic() + 540
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_files_of_a_folder_are_read_at_the_same_time_and_come_in_order(tmp_path):
    names = tuple(f"{number:02d}.jpg" for number in range(FILES_AT_ONCE + 2))
    for name in names:
        os.mkfifo(tmp_path / name)  # who opens one to read waits for one who writes, and the other way round
    step, found = StepTimer(), []
    shard = Shard(name="x", url=str(tmp_path), kind="images", files=names)
    reader = threading.Thread(target=lambda: found.extend(read_shard(shard, step=step)), daemon=True)
    reader.start()
    writers = {name: (tmp_path / name).open("wb") for name in reversed(names[1:FILES_AT_ONCE])}
    time.sleep(0.2)
    with pytest.raises(OSError, match="No such device"):  # nobody reads it before the first is done
        os.open(tmp_path / names[-1], os.O_WRONLY | os.O_NONBLOCK)
    for name, file in writers.items():
        file.write(name.encode())
        file.close()
    for name in (names[0], *names[FILES_AT_ONCE:]):
        (tmp_path / name).write_bytes(name.encode())
    reader.join(540)
    assert [sample.image for sample in found] == [name.encode() for name in names]
    assert step.seconds["read"] >= 0.2 * len(writers), "the seconds of all threads"


def test_an_error_of_the_store_is_raised_behind_the_samples_before_it(tmp_path):
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b.jpg").symlink_to("b.jpg")
    stream = read_shard(Shard(name="x", url=str(tmp_path), kind="images", files=("a.jpg", "b.jpg", "c.jpg")))
    assert next(stream).key == "a.jpg"
    with pytest.raises(OSError, match=r"b\.jpg"):
        next(stream)


class WaitRecorder(logging.Handler):
    """Records what `waiting` returns at the moment at which a wait is logged."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def emit(self, record):
        self.waits.append(waiting())


def test_a_wait_of_a_reading_thread_is_reported(monkeypatch):
    monkeypatch.setattr(retries, "QUIET_SECONDS", 0.0)
    recorder = WaitRecorder()
    shard = Shard(name="x", url="s3://b/x", kind="images", files=("a.jpg", "b.jpg"))
    with closing(socket.socket()) as refusing:
        refusing.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{refusing.getsockname()[1]}"
        options = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": endpoint}}
        retries.log.addHandler(recorder)
        try:
            with pytest.raises(StoreUnavailable, match=r"s3://b/x/a\.jpg"):
                list(read_shard(shard, Storage(url="s3://b", options=options, retry_timeout=2.0)))
        finally:
            retries.log.removeHandler(recorder)
    assert "s3://b/x/" in recorder.waits[0]
    assert "does not answer" in recorder.waits[0]
    until(lambda: not waiting())


def test_the_time_of_a_slow_consumer_is_not_that_of_reading(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(as_tar())
    step, now = StepTimer(), [0.0]
    monkeypatch.setattr("pipeline.timing.time", SimpleNamespace(perf_counter=lambda: now[0]))
    for _ in read_shard(find_shards(str(tmp_path))[0], step=step):
        now[0] += 1
    assert step.seconds == {"read": 0}


def test_file_names_that_are_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb") as file:
        file.write(b"x")
    (sample,) = read_shard(find_shards(str(tmp_path))[0])
    assert (sample.key, sample.image) == ("\\xff.jpg", b"x")


def test_errors_hide_secrets_and_survive_pickling():
    error = ShardError("https://user:pw@host/x.tar?sig=abc", "GET https://host/x.tar?sig=abc gave 403")
    for shown in (error, pickle.loads(pickle.dumps(error))):
        assert str(shown) == "https://host/x.tar: GET https://host/x.tar gave 403"


def test_the_list_of_statuses_is_closed():
    assert STATUSES == (
        "ok", "undecodable", "too_large", "too_small", "nonfinite", "no_image", "several_images",
        "duplicate_key", "truncated", "damaged", "unreadable", "bad_names",
    )  # fmt: skip
