"""What a run does at its end: shards that were undone are found, and shards that are gone are removed."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from pipeline.errors import RunTakenOver
from pipeline.output import intents
from pipeline.output.commit import Commit, tag_of, write_commit
from pipeline.output.fence import Fence, take_over
from pipeline.output.intents import Intent, declare, list_intents, may_be_alive
from pipeline.output.listing import Listing
from pipeline.output.manifest import Manifest
from pipeline.output.reconcile import check_records, remove_gone
from pipeline.output.rows import Row
from pipeline.output.writer import LabelShardWriter
from pipeline.readers.samples import Shard
from pipeline.settings import LabelSettings
from pipeline.storage import Storage

BOTH = ("parquet", "webdataset")


def shard(name: str, version: str = "1") -> Shard:
    return Shard(name=name, url=f"in/{name}.tar", kind="tar", version=version)


LISTING = Listing.of([shard("a"), shard("b")])
FENCE = Fence(fingerprint="f", listing=LISTING.digest())


def tag(name: str, version: str = "1") -> str:
    return tag_of("f", shard(name, version).digest())


def label(out: Storage, name: str, version: str = "1", *, key: str = "k", has_record: bool = True) -> str:
    """Write a label shard of one row, and return the path of its record."""
    metadata = {"fingerprint": "f", "tag": tag(name, version)}
    with LabelShardWriter(name, formats=BOTH, metadata=metadata) as writer:
        writer.add(Row(key=key, shard=name, index=0, status="no_image"))
        files = writer.publish(out)
    inputs = shard(name, version).digest()
    values = {"rows": 1, "counts": {"no_image": 1}, "files": files}
    record = Commit(shard=name, state="done", fingerprint="f", attempt=1, inputs=inputs, **values)  # type: ignore[arg-type]
    if has_record:
        write_commit(out, record)
    return record.path


@pytest.fixture
def out(tmp_path: Path) -> Storage:
    """OUT of a run with two done shards."""
    storage = Storage(url=str(tmp_path))
    values = {"source": "in", "settings": LabelSettings().plain(), "model_sha256": "m", "resolved": {}}
    now = Manifest(**values, environment={}, fingerprint="f", listing=LISTING.digest())  # type: ignore[arg-type]
    take_over(storage, before=None, now=now, listing=LISTING)
    label(storage, "a")
    label(storage, "b")
    return storage


def files(out: Storage, *folders: str) -> list[str]:
    return [path for folder in folders for path, _ in out.files(folder)]


EXPECTED = {name: f"commits/{name}.{tag(name)}.0-of-1.json" for name in "ab"}


def undone(out: Storage) -> set[str]:
    return check_records(out, LISTING, "f", EXPECTED)[0]


def test_whole_shards_are_done(out: Storage) -> None:
    assert undone(out) == set()
    assert len(files(out, "commits")) == 2


class Lagging(Storage):
    """A store whose listings still show an earlier state of the commit records."""

    listed: ClassVar[list[tuple[str, int]]] = []

    def files(self, prefix: str = "", *, depth: int | None = None) -> list[tuple[str, int]]:
        return self.listed if prefix == "commits" else super().files(prefix, depth=depth)


def test_a_listing_that_lags_behind_makes_no_shard_undone(out: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    lagging = Lagging(url=out.url)
    assert undone(lagging) == set()  # it shows no record yet
    label(out, "a", "2")  # it still shows a record that was deleted
    monkeypatch.setattr(Lagging, "listed", out.files("commits"))
    out.delete(f"commits/a.{tag('a', '2')}.0-of-1.json")
    label(out, "a")
    assert undone(lagging) == set()


def test_shards_that_were_undone_are_found(out: Storage) -> None:
    out.delete(files(out, "commits")[0])
    assert undone(out) == {"a"}
    label(out, "b", "2", has_record=True)  # a second record
    assert undone(out) == {"a", "b"}
    assert files(out, "commits") == []


def declare_of_dead_worker(out: Storage, name: str, version: str, *, host: str = "", age: float = 0.0) -> Intent:
    intent = Intent(name, tag(name, version))
    values = {"host": host or socket.gethostname(), "pid": 2**22, "process_started": 1.0, "written": time.time() - age}
    out.write_bytes(intent.path, json.dumps(values).encode())
    return intent


@pytest.mark.parametrize("version", ["1", "2"])
def test_files_that_a_dead_worker_may_have_written_are_compared_with_the_record(out: Storage, version: str) -> None:
    declare_of_dead_worker(out, "a", version)
    assert undone(out) == set()
    assert list_intents(out) == []
    label(out, "a", version, key="written late", has_record=False)
    assert undone(out) == set()  # without an intent nobody looks
    declare_of_dead_worker(out, "a", version)
    assert undone(out) == {"a"}


def test_files_of_another_version_are_compared_while_their_writer_lives_and_its_intent_stays(out: Storage) -> None:
    intent = declare_of_dead_worker(out, "a", "2", host="another machine")
    assert undone(out) == set()
    assert list_intents(out) == [intent]
    label(out, "a", "2", has_record=False)
    assert undone(out) == {"a"}
    assert list_intents(out) == [intent]


def test_who_may_be_alive(out: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Intent("a", tag("a"))
    declare(out, here)
    assert not may_be_alive(out, here)  # the driver labels nothing while it asks
    monkeypatch.setattr(intents.os, "getpid", lambda: os.getppid())
    assert may_be_alive(out, here)
    for values in ({"process_started": psutil.Process().create_time() - 60}, {"pid": 2**22}):
        content = json.loads(out.read_bytes(here.path)) | values
        out.write_bytes(here.path, json.dumps(content).encode())
        assert not may_be_alive(out, here)  # another process with this number; no process
    assert may_be_alive(out, declare_of_dead_worker(out, "a", "1", host="another machine", age=3600))
    assert not may_be_alive(out, declare_of_dead_worker(out, "a", "1", host="another machine", age=48 * 3600))
    out.write_bytes(here.path, b"{")
    assert not may_be_alive(out, here)


def test_gone_shards_are_removed_and_no_other_file(out: Storage) -> None:
    before = files(out, "labels", "webdataset", "commits")
    label(out, "gone")
    label(out, "without-a-record", has_record=False)
    write_commit(out, Commit(shard="failed", state="failed", fingerprint="f", attempt=3))
    out.write_bytes("labels/notes.parquet", b"not ours")
    remove_gone(out, LISTING, FENCE)
    assert set(files(out, "labels", "webdataset", "commits", "failures")) == {*before, "labels/notes.parquet"}


def test_nothing_is_removed_from_an_out_that_another_run_has_taken_over(out: Storage) -> None:
    label(out, "gone")
    before = files(out, "labels", "webdataset", "commits")
    with pytest.raises(RunTakenOver):
        remove_gone(out, LISTING, Fence(fingerprint="f", listing="another"))
    assert files(out, "labels", "webdataset", "commits") == before
