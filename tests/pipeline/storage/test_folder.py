"""A folder at a URL: reading, listing, and writing that shows only whole files."""

import errno
import fcntl
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.storage import SourceError, Storage
from pipeline.storage import local as localfiles


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    if request.param == "local":
        return Storage(url=str(tmp_path / "root"))
    return Storage(url=f"memory://{tmp_path.name}")


def test_what_is_written_is_read(storage, tmp_path):
    storage.write_bytes("b/c.bin", b"one")
    source = tmp_path / "source"
    source.write_bytes(b"three")
    storage.write_file("a.bin", source)
    storage.write_bytes("b/c.bin", b"two!")
    assert storage.files() == [("a.bin", 5), ("b/c.bin", 4)]
    assert storage.files("b") == [("b/c.bin", 4)]
    assert storage.files(depth=1) == [("a.bin", 5)]
    assert storage.read_bytes("b/c.bin") == b"two!"
    with storage.open("a.bin") as file:
        assert (file.read(2), file.read()) == (b"th", b"ree")
    assert storage.exists("b/c.bin")
    assert storage.exists()
    assert storage.is_file("b/c.bin")
    assert not storage.is_file("b")
    assert source.exists()


def test_a_file_that_is_written_anew_is_another_version(storage):
    assert storage.versions() == []
    for path in ("a", "b/c", "b/d/e"):
        storage.write_bytes(path, b"1")
    before = storage.versions(depth=2)
    assert [(path, size) for path, size, _ in before] == storage.files(depth=2) == [("a", 1), ("b/c", 1)]
    assert storage.versions(depth=2) == before
    time.sleep(0.05)  # the clocks of file systems tick every few milliseconds
    storage.write_bytes("b/c", b"2")
    assert [after == old for after, old in zip(storage.versions(depth=2), before, strict=True)] == [True, False]


def test_many_small_files_at_once(storage):
    for number in range(5):
        storage.write_bytes(f"a/{number}", b"%d" % number)
    paths = ["a/3", "no/such", "a/0", "a/4"]
    assert storage.read_small(paths) == [b"3", None, b"0", b"4"]
    assert storage.read_small([]) == []


def test_missing_things(storage):
    assert storage.files() == []
    assert storage.files("no") == []
    assert not storage.exists("no")
    storage.delete("no")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("no")
    storage.write_bytes("x", b"")
    storage.delete("x")
    assert storage.files() == []


def test_of_several_creators_one_succeeds(storage):
    assert storage.create_bytes("run.json", b"first")
    assert not storage.create_bytes("run.json", b"second")
    assert storage.read_bytes("run.json") == b"first"
    assert storage.files() == [("run.json", 5)]


def test_creating_at_once_and_without_hard_links(tmp_path, monkeypatch):
    storage = Storage(url=str(tmp_path))

    def race(path):
        with ThreadPoolExecutor(8) as pool:
            return sorted(pool.map(lambda number: storage.create_bytes(path, b"%d" % number), range(8)))

    assert [race(f"{number}") for number in range(20)] == [[False] * 7 + [True]] * 20

    def refuse(source, target):
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert storage.create_bytes("x", b"first")
    assert not storage.create_bytes("x", b"second")
    assert storage.read_bytes("x") == b"first"


def test_scratch_folders_of_killed_processes_go_away(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import time; from pipeline.storage.local import ScratchFolder\n"
        "folder = ScratchFolder(); open(folder.path + '/half', 'w').close()\n"
        "print(folder.path, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(localfiles.__file__).parents[2])}
    environment["TMPDIR"] = str(tmp_path)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True) as other:
        path = other.stdout.readline().strip()
        mine = localfiles.ScratchFolder()
        assert os.path.isfile(f"{path}/half"), "the folder of a living process stays"
        mine.remove()
        other.send_signal(signal.SIGKILL)
    mine = localfiles.ScratchFolder()
    assert os.listdir(tmp_path) == [os.path.basename(mine.path)]
    mine.remove()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
def test_paths_stay_below_the_root(storage, path):
    for use in (storage.read_bytes, storage.delete, lambda path: storage.write_bytes(path, b"")):
        with pytest.raises(ValueError, match="relative"):
            use(path)


def test_relative_paths_mean_the_same_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage(url="data/")
    assert storage.url == str(tmp_path / "data")
    assert Storage(url=f"file://{tmp_path}/data") == storage
    storage.write_bytes("x", b"1")
    code = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])).files())"
    command = [sys.executable, "-c", code, pickle.dumps(storage).hex()]
    environment = {**os.environ, "PYTHONPATH": str(Path(localfiles.__file__).parents[2])}
    assert subprocess.check_output(command, cwd="/", env=environment, text=True) == "[('x', 1)]\n"


def test_the_root_of_a_store():
    storage = Storage(url="memory://")
    storage.write_bytes("root-of-store/x", b"1")
    assert ("root-of-store/x", 1) in storage.files()
    storage.delete("root-of-store/x")


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    storage = Storage(url=str(tmp_path))
    storage.write_bytes("x", b"old")

    class Broken:
        def read(self, size):
            raise OSError("the source broke")

    with pytest.raises(OSError, match="broke"):
        localfiles.write_atomically(str(tmp_path / "x"), Broken())
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"old")]


def test_files_of_a_killed_writer_are_not_listed_and_go_away(tmp_path):
    code = (
        "import sys, time; from pipeline.storage.local import write_atomically\n"
        "class Slow:\n"
        "    def read(self, size): print('writing', flush=True); time.sleep(60)\n"
        "write_atomically(sys.argv[1], Slow())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(localfiles.__file__).parents[2])}
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        storage = Storage(url=str(tmp_path))
        storage.write_bytes("y", b"1")
        assert len(os.listdir(tmp_path)) == 2, "the file of a living writer stays"
        assert storage.files() == [("y", 1)]
        writer.send_signal(signal.SIGKILL)
    storage.write_bytes("x", b"2")
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]


def test_writing_works_where_there_are_no_locks(tmp_path, monkeypatch):
    def refuse(file, flags):
        raise OSError(95, "not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    localfiles.write_atomically(str(tmp_path / "x"), b"1")
    assert os.listdir(tmp_path) == ["x"]


def test_many_writers_of_one_name(tmp_path):
    code = (
        "import sys; from pipeline.storage.local import write_atomically\n"
        "for i in range(40): write_atomically(sys.argv[1], sys.argv[2].encode() * 100000)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(localfiles.__file__).parents[2])}
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x"), letter], env=environment) for letter in "ab"
    ]
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "x").exists():
            assert (tmp_path / "x").read_bytes() in (b"a" * 100000, b"b" * 100000)
        time.sleep(0.01)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["x"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x").write_bytes(b"12")
    (tmp_path / "root" / "there").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "file").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "root" / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "root" / "sub" / "circle").symlink_to(tmp_path / "root")
    assert Storage(url=str(tmp_path / "root")).files() == [("file", 2), ("there/x", 2)]


class PartialFileSystem(MemoryFileSystem):
    """A store without atomic puts, such as sftp: the upload breaks off half-way when told to."""

    protocol = "partial"
    store: dict = {}  # noqa: RUF012 - fsspec's way of sharing it
    pseudo_dirs = [""]  # noqa: RUF012
    breaks = False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("partial://").strip("/") if path.strip("/") else ""

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value[:1] if self.breaks else value, mode=mode)
        if self.breaks:
            raise OSError("connection lost")


def test_stores_without_atomic_puts_get_a_rename(monkeypatch):
    fsspec.register_implementation("partial", PartialFileSystem, clobber=True)
    storage = Storage(url="partial://folder")
    storage.write_bytes("a/x", b"first")
    monkeypatch.setattr(PartialFileSystem, "breaks", True)
    with pytest.raises(OSError, match="lost"):
        storage.write_bytes("a/x", b"second")
    assert storage.read_bytes("a/x") == b"first"
    monkeypatch.setattr(PartialFileSystem, "breaks", False)
    storage.write_bytes("a/x", b"third")
    assert list(PartialFileSystem.store) == ["/folder/a/x"]
    assert storage.read_bytes("a/x") == b"third"


class UnsteadyFileSystem(PartialFileSystem):
    """A store that fails to list a folder for the first time."""

    protocol = "unsteady"
    store: dict = {}  # noqa: RUF012
    failing = ("/root/b",)

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("unsteady://").strip("/") if path.strip("/") else ""

    def ls(self, path, detail=True, **kwargs):
        if path.rstrip("/") in self.failing:
            UnsteadyFileSystem.failing = ()
            raise ConnectionError("reset")
        return super().ls(path, detail=detail, **kwargs)


def test_a_folder_that_was_not_listed_is_not_left_out():
    fsspec.register_implementation("unsteady", UnsteadyFileSystem, clobber=True)
    storage = Storage(url="unsteady://root")
    for path in ("a", "b/c", "b/d/e"):
        storage.write_bytes(path, b"1")
    assert storage.files(depth=2) == [("a", 1), ("b/c", 1)]
    assert not UnsteadyFileSystem.failing


@pytest.mark.parametrize(
    "url",
    [
        "pipe:curl -s https://host/x.tar",
        "PIPE:cat x",
        "pipe://cat",
        "reference://x",
        "simplecache::s3://bucket/x",
        "zip://a.jpg::file.zip",
        "dask://x",
    ],
)
def test_urls_that_run_or_wrap_something_are_refused(url):
    with pytest.raises(SourceError, match=r"refused|not supported"):
        Storage(url=url)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(SourceError, match=r"pip install 'diffseg-pipeline\[gcs\]'"):
        Storage(url="gs://bucket/x").files()
    with pytest.raises(SourceError, match="cannot open nonsense://"):
        Storage(url="nonsense://x").files()
    with pytest.raises(SourceError, match="empty"):
        Storage(url="")
