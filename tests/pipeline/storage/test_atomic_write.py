"""Atomic writes of local files: concurrent, failing and killed writers never leave a partial file under its name."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.storage import Storage, StorageUnwritable
from pipeline.storage.atomic_write import write_atomically

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}


def test_concurrent_creators_with_and_without_hard_links(tmp_path, monkeypatch):
    storage = Storage(url=str(tmp_path))

    def race(path):
        with ThreadPoolExecutor(8) as pool:
            return sorted(pool.map(lambda number: storage.create_bytes(path, b"%d" % number), range(8)))

    assert [race(f"{number}") for number in range(20)] == [[False] * 7 + [True]] * 20

    def refuse(source, target):
        raise PermissionError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", refuse)
    assert storage.create_bytes("x", b"first")
    assert not storage.create_bytes("x", b"second")
    assert storage.read_bytes("x") == b"first"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    storage = Storage(url=str(tmp_path))
    storage.write_bytes("x", b"old")

    class Broken:
        def read(self, size):
            raise OSError("the source broke")

    with pytest.raises(OSError, match="broke"):
        write_atomically(str(tmp_path / "x"), Broken())
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"old")]


def test_the_file_of_a_killed_writer_is_not_listed_and_is_removed(tmp_path):
    code = (
        "import sys, time; from pipeline.storage.atomic_write import write_atomically\n"
        "class Slow:\n"
        "    def read(self, size): print('writing', flush=True); time.sleep(600)\n"
        "write_atomically(sys.argv[1], Slow())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        storage = Storage(url=str(tmp_path))
        storage.write_bytes("y", b"1")
        assert len(os.listdir(tmp_path)) == 2, "the temporary file of a living writer stays"
        assert storage.files() == [("y", 1)]
        writer.send_signal(signal.SIGKILL)
    storage.write_bytes("x", b"2")
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]


def test_writing_works_on_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(file, flags):
        raise OSError(95, "not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    write_atomically(str(tmp_path / "x"), b"1")
    assert os.listdir(tmp_path) == ["x"]


def test_concurrent_writers_of_the_same_file(tmp_path):
    code = (
        "import sys; from pipeline.storage.atomic_write import write_atomically\n"
        "for i in range(40): write_atomically(sys.argv[1], sys.argv[2].encode() * 100000)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x"), letter], env=ENVIRONMENT) for letter in "ab"
    ]
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "x").exists():
            assert (tmp_path / "x").read_bytes() in (b"a" * 100000, b"b" * 100000)
        time.sleep(0.01)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_a_file_system_that_cannot_rename_is_named_and_holds_no_file(tmp_path, monkeypatch, number):
    def refuse(source, target):
        raise OSError(number, os.strerror(number), source, None, target)

    storage = Storage(url=str(tmp_path))
    storage.write_bytes("old", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        patch.setattr(os, "replace", refuse)
        for write in (storage.write_bytes, storage.create_bytes):
            with pytest.raises(StorageUnwritable, match=f"{tmp_path}/new: the file system cannot rename files"):
                write("new", b"new")
        with pytest.raises(OSError, match=os.strerror(number)):  # the file may belong to somebody else
            storage.write_bytes("old", b"new")
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]
    assert storage.read_bytes("old") == b"old"
