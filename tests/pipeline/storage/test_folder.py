"""A folder at a URL: the same operations on local files and in a remote store."""

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.storage import Storage


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    if request.param == "local":
        return Storage(url=str(tmp_path / "root"))
    return Storage(url=f"memory://{tmp_path.name}")


def test_written_files_are_read_back(storage, tmp_path):
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


def test_a_rewritten_file_has_another_version(storage):
    assert storage.versions() == []
    for path in ("a", "b/c", "b/d/e"):
        storage.write_bytes(path, b"1")
    before = storage.versions(depth=2)
    assert [(path, size) for path, size, _ in before] == storage.files(depth=2) == [("a", 1), ("b/c", 1)]
    assert storage.versions(depth=2) == before
    time.sleep(0.05)  # the clocks of file systems tick every few milliseconds
    storage.write_bytes("b/c", b"2")
    assert [after == old for after, old in zip(storage.versions(depth=2), before, strict=True)] == [True, False]


def test_the_version_of_one_file_is_that_of_the_listing(storage):
    storage.write_bytes("a/b", b"1")
    assert storage.stat("a/b") == storage.list_files()[0] == storage.list_files("a")[0]
    for missing in ("a/c", "d/e"):
        with pytest.raises(FileNotFoundError):
            storage.stat(missing)


def test_many_small_files_are_read_in_one_call(storage):
    for number in range(5):
        storage.write_bytes(f"a/{number}", b"%d" % number)
    paths = ["a/3", "no/such", "a/0", "a/4"]
    assert storage.read_small(paths) == [b"3", None, b"0", b"4"]
    assert storage.read_small([]) == []


def test_missing_files_and_folders(storage):
    assert storage.files() == []
    assert storage.files("no") == []
    assert not storage.exists("no")
    storage.delete("no")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("no")
    storage.write_bytes("x", b"")
    storage.delete("x")
    assert storage.files() == []


def test_only_one_of_several_creators_succeeds(storage):
    assert storage.create_bytes("run.json", b"first")
    assert not storage.create_bytes("run.json", b"second")
    assert storage.read_bytes("run.json") == b"first"
    assert storage.files() == [("run.json", 5)]


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
def test_paths_outside_the_root_are_refused(storage, path):
    for use in (storage.read_bytes, storage.delete, lambda path: storage.write_bytes(path, b"")):
        with pytest.raises(ValueError, match="relative"):
            use(path)


def test_a_relative_url_means_the_same_in_every_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage(url="data/")
    assert storage.url == str(tmp_path / "data")
    assert Storage(url=f"file://{tmp_path}/data") == storage
    storage.write_bytes("x", b"1")
    code = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])).files())"
    command = [sys.executable, "-c", code, pickle.dumps(storage).hex()]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    assert subprocess.check_output(command, cwd="/", env=environment, text=True) == "[('x', 1)]\n"


def test_a_storage_is_a_value(tmp_path):
    storage = Storage(url="s3://bucket/folder", options={"key": "k" * 8}, retry_timeout=2.0)
    copy = pickle.loads(pickle.dumps(storage))
    assert (copy, hash(copy), copy.retry_timeout) == (storage, hash(storage), 2.0)
    moved = storage.at(str(tmp_path))
    assert (moved.options, moved.retry_timeout, moved.files()) == (storage.options, 2.0, [])


def test_the_root_of_a_store():
    storage = Storage(url="memory://")
    storage.write_bytes("root-of-store/x", b"1")
    assert ("root-of-store/x", 1) in storage.files()
    storage.delete("root-of-store/x")


def test_links_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x").write_bytes(b"12")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "file").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "root" / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "root" / "sub" / "circle").symlink_to(tmp_path / "root")
    assert Storage(url=str(tmp_path / "root")).files() == [("file", 2), ("link/x", 2)]


@pytest.mark.parametrize("root", ["memory://names", "local"])
def test_names_are_those_of_the_files_and_folders_directly_below_the_root(root: str, tmp_path: Path) -> None:
    folder = Storage(url=root if root.startswith("memory") else str(tmp_path / "names"))
    assert folder.names() == []
    folder.write_bytes("a.txt", b"")
    folder.write_bytes("b/c/d.txt", b"")
    assert folder.names() == ["a.txt", "b"]
