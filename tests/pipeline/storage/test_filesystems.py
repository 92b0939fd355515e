"""Stores with unusual filesystems: without atomic uploads, with failing listings, or without their package."""

import sys

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.storage import SourceError, Storage


class PartialFileSystem(MemoryFileSystem):
    """A store without atomic uploads, such as sftp. An upload stops half-way while ``breaks`` is set."""

    protocol = "partial"
    store: dict = {}  # noqa: RUF012 - fsspec shares it between the instances
    pseudo_dirs = [""]  # noqa: RUF012
    breaks = False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("partial://").strip("/") if path.strip("/") else ""

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value[:1] if self.breaks else value, mode=mode)
        if self.breaks:
            raise OSError("connection lost")


def test_stores_without_atomic_uploads_get_a_rename(monkeypatch):
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


def test_files_that_are_being_uploaded_are_not_listed():
    fsspec.register_implementation("partial", PartialFileSystem, clobber=True)
    storage = Storage(url="partial://uploads")
    storage.write_bytes("x", b"1")
    storage.write_bytes(f".y.{'0' * 16}.writing", b"half")
    assert storage.files() == [("x", 1)]
    assert [file.path for file in storage.versions()] == ["x"]
    assert [file.path for file in storage.versions(depth=1)] == ["x"]


class UnsteadyFileSystem(PartialFileSystem):
    """A store whose first listing of each folder in ``failing`` fails."""

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


def test_a_folder_whose_listing_failed_is_not_left_out():
    fsspec.register_implementation("unsteady", UnsteadyFileSystem, clobber=True)
    storage = Storage(url="unsteady://root")
    for path in ("a", "b/c", "b/d/e"):
        storage.write_bytes(path, b"1")
    assert storage.files(depth=2) == [("a", 1), ("b/c", 1)]
    assert not UnsteadyFileSystem.failing


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(SourceError, match=r"pip install 'diffseg-pipeline\[gcs\]'"):
        Storage(url="gs://bucket/x").files()
    with pytest.raises(SourceError, match="cannot open nonsense://"):
        Storage(url="nonsense://x").files()
