"""`read_shard` reads the same images from a tar, a Parquet file and a folder, at any URL."""

import io
import logging
import os
import pickle
import socket
import tarfile
import threading
import time
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.readers.find import find_shards
from pipeline.readers.image_files import READ_THREADS
from pipeline.readers.read import read_shard
from pipeline.readers.samples import STATUSES, ReadLimits, Shard, ShardError
from pipeline.storage import Storage, local, retries
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


def test_all_kinds_of_shards_give_the_same_samples(root):
    storage = Storage(url=root)
    storage.write_bytes("tars/a.tar", as_tar())
    storage.write_bytes("parquet/a.parquet", as_parquet())
    for key, data in IMAGES.items():
        storage.write_bytes(f"images/{key}.jpg", data)
    for folder, suffix in (("tars", ""), ("parquet", ""), ("images", ".jpg")):
        shards = find_shards(f"{root}/{folder}", samples_per_shard=8)
        samples = [sample for shard in shards for sample in read_shard(shard)]
        assert [(sample.key, sample.image) for sample in samples] == [(key + suffix, IMAGES[key]) for key in IMAGES]
        assert {sample.status for sample in samples} == {"ok"}
    assert [sample.index for sample in read_shard(shards[1])] == list(range(len(shards[1].files)))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_missing_files_and_files_of_another_kind_are_shard_errors(root, kind):
    shard = Shard(name="x", url=f"{root}/x.{kind}", kind=kind)
    with pytest.raises(ShardError, match=rf"x\.{kind}: there is no such file"):
        list(read_shard(shard))
    Storage(url=root).write_bytes(f"x.{kind}", b"<html>404</html>" * 100)
    with pytest.raises(ShardError, match=rf"x\.{kind}: "):
        list(read_shard(shard))


def test_an_unreadable_file_of_a_folder_affects_only_its_row(root):
    storage = Storage(url=root)
    for name, data in {"a.jpg": b"a", "b.jpg": b"b", "c.jpg": b"c" * 101, "d.jpg": b"d" * 100, "e.jpg": b""}.items():
        storage.write_bytes(name, data)
    (shard,) = find_shards(root)
    storage.delete("b.jpg")
    samples = list(read_shard(shard, limits=ReadLimits(max_sample_bytes=100)))
    assert [sample.status for sample in samples] == ["ok", "unreadable", "too_large", "ok", "ok"]
    assert [sample.image for sample in samples] == [b"a", None, None, b"d" * 100, b""]
    assert "FileNotFoundError" in samples[1].error


def wait_until(condition):
    deadline = time.monotonic() + 540
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_files_of_a_folder_are_read_concurrently_and_yielded_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "open_regular", partial(open, mode="rb"))  # which the pipes below are not
    names = tuple(f"{number:02d}.jpg" for number in range(READ_THREADS + 2))
    for name in names:
        os.mkfifo(tmp_path / name)  # opening a pipe to read waits until it is opened to write, and vice versa
    step, samples = StepTimer(), []
    shard = Shard(name="x", url=str(tmp_path), kind="images", files=names)
    reader = threading.Thread(target=lambda: samples.extend(read_shard(shard, step=step)), daemon=True)
    reader.start()
    writers = {name: (tmp_path / name).open("wb") for name in reversed(names[1:READ_THREADS])}
    time.sleep(0.2)
    with pytest.raises(OSError, match="No such device"):  # it is not opened before the first file is read
        os.open(tmp_path / names[-1], os.O_WRONLY | os.O_NONBLOCK)
    for name, file in writers.items():
        file.write(name.encode())
        file.close()
    for name in (names[0], *names[READ_THREADS:]):
        (tmp_path / name).write_bytes(name.encode())
    reader.join(540)
    assert [sample.image for sample in samples] == [name.encode() for name in names]
    assert step.seconds["read"] >= 0.2 * len(writers), "the sum over all threads"


def test_a_pipe_in_the_place_of_a_file_is_unreadable(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    (sample,) = read_shard(Shard(name="x", url=str(tmp_path), kind="images", files=("a.jpg",)))
    assert (sample.status, sample.image) == ("unreadable", None)


def test_an_error_of_the_store_is_raised_after_the_samples_before_it(tmp_path):
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
    """The store does not answer until the wait was logged, so the wait cannot be too short to be seen."""
    monkeypatch.setattr(retries, "QUIET_SECONDS", 0.0)
    recorder = WaitRecorder()

    class Store(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404 if recorder.waits else 503)

        do_HEAD = do_GET

        def log_message(self, format, *args):
            pass

    shard = Shard(name="x", url="s3://b/x", kind="images", files=("a.jpg", "b.jpg"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        retries.log.addHandler(recorder)
        try:
            storage = Storage(url="s3://b", options=options_of(server.server_port), retry_timeout=540.0)
            samples = list(read_shard(shard, storage))
        finally:
            retries.log.removeHandler(recorder)
            server.shutdown()
            thread.join()
    assert [sample.status for sample in samples] == ["unreadable", "unreadable"]
    assert "s3://b/x/" in recorder.waits[0]
    assert "does not answer" in recorder.waits[0]
    assert not waiting()


def test_a_store_that_does_not_answer_in_time_is_an_error_of_the_reader():
    shard = Shard(name="x", url="s3://b/x", kind="images", files=("a.jpg", "b.jpg"))
    with closing(socket.socket()) as refusing:
        refusing.bind(("127.0.0.1", 0))
        storage = Storage(url="s3://b", options=options_of(refusing.getsockname()[1]), retry_timeout=0.1)
        with pytest.raises(StoreUnavailable, match=r"s3://b/x/a\.jpg"):
            list(read_shard(shard, storage))


def options_of(port):
    return {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}"}}


def test_the_time_of_a_slow_consumer_does_not_count_as_reading(tmp_path, monkeypatch):
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
        "duplicate_key", "truncated", "damaged", "unreadable", "bad_names", "bad_prompt",
    )  # fmt: skip
