"""The fence between runs in one OUT: who owns it, and what happens to files that are written too late."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import RunRefused, RunTakenOver
from pipeline.output.commit import Commit, tag_of, write_commit
from pipeline.output.fence import Fence, publication, take_over
from pipeline.output.intents import list_intents
from pipeline.output.listing import Listing, listing_paths, read_listing, write_listing
from pipeline.output.manifest import Manifest, read_manifest, write_manifest
from pipeline.readers.samples import Shard
from pipeline.settings import LabelSettings
from pipeline.storage import Storage


def shard(name: str, version: str = "1") -> Shard:
    return Shard(name=name, url=f"in/{name}.tar", kind="tar", version=version)


def manifest(listing: Listing, fingerprint: str = "f", **changes: object) -> Manifest:
    values = {"source": "in", "settings": LabelSettings().plain(), "model_sha256": "m", "resolved": {}}
    values |= {"environment": {}, "fingerprint": fingerprint, "listing": listing.digest()}
    return Manifest(**(values | changes))  # type: ignore[arg-type]


OLD = Listing.of([shard("a"), shard("b"), shard("gone")])
NEW = Listing.of([shard("a", "2"), shard("b")])
FENCE = Fence(fingerprint="f", listing=OLD.digest())


@pytest.fixture
def out(tmp_path: Path) -> Storage:
    """OUT of a run with the old listing."""
    storage = Storage(url=str(tmp_path))
    take_over(storage, before=None, now=manifest(OLD), listing=OLD)
    return storage


def tag(name: str, version: str = "1") -> str:
    return tag_of("f", shard(name, version).digest())


def commit(out: Storage, name: str, version: str = "1") -> str:
    """Write a record, and return its path."""
    inputs = shard(name, version).digest()
    record = Commit(shard=name, state="done", fingerprint="f", attempt=1, inputs=inputs, rows=1, counts={"ok": 1})
    write_commit(out, record)
    return record.path


def files(out: Storage) -> set[str]:
    return {path for path, _ in out.files() if path != "run.json" and not path.startswith("listings/")}


def move_fence(out: Storage, fingerprint: str = "f") -> None:
    write_listing(out, NEW)
    write_manifest(out, manifest(NEW, fingerprint))


def overtake(out: Storage, name: str, write: Callable[[], object]) -> None:
    """Let another run take over OUT after a worker has written what `write` writes."""

    def commit_late() -> None:
        with publication(out, name, tag(name), FENCE):
            write()
            move_fence(out)

    with pytest.raises(RunTakenOver, match="newer listing"):
        commit_late()


def test_a_commit_leaves_no_intent(out: Storage) -> None:
    with publication(out, "a", tag("a"), FENCE):
        assert [intent.shard for intent in list_intents(out)] == ["a"]
        record = commit(out, "a")
    assert files(out) == {record}


@pytest.mark.parametrize("fingerprint", ["f", "g"])
def test_nothing_is_written_once_another_run_has_taken_over(out: Storage, fingerprint: str) -> None:
    move_fence(out, fingerprint)
    with (
        pytest.raises(RunTakenOver, match="newer listing" if fingerprint == "f" else "other settings"),
        publication(out, "a", tag("a"), FENCE),
    ):
        pytest.fail("the block must not be entered")
    assert files(out) == set()


def test_run_json_that_was_deleted_stops_a_run(out: Storage) -> None:
    out.delete("run.json")
    with pytest.raises(RunTakenOver, match=r"run\.json has been deleted"):
        FENCE.check(out)


def test_late_files_take_the_record_of_the_other_run_with_them(out: Storage) -> None:
    def write_late() -> None:
        with publication(out, "a", tag("a"), FENCE):
            move_fence(out)
            commit(out, "a", "2")  # the other run
            out.write_bytes("labels/a.parquet", b"of the older listing")
            FENCE.check(out)

    with pytest.raises(RunTakenOver, match="newer listing"):
        write_late()
    # The shard is not done. The intent tells the other run, if it writes its record after this.
    assert files(out) == {"labels/a.parquet", f"intents/a.{tag('a')}.json"}


def test_a_late_record_is_taken_back(out: Storage) -> None:
    overtake(out, "a", lambda: commit(out, "a"))
    assert files(out) == {f"intents/a.{tag('a')}.json"}


def test_late_files_that_the_other_run_would_write_too_stay(out: Storage) -> None:
    overtake(out, "b", lambda: (out.write_bytes("labels/b.parquet", b""), commit(out, "b")))
    records = {path for path, _ in out.files("commits")}
    assert len(records) == 1
    assert files(out) == {"labels/b.parquet", f"intents/b.{tag('b')}.json"} | records


def test_late_files_of_a_shard_that_is_gone_are_deleted(out: Storage) -> None:
    overtake(out, "gone", lambda: (out.write_bytes("labels/gone.parquet", b""), commit(out, "gone")))
    assert files(out) == {f"intents/gone.{tag('gone')}.json"}


def test_another_error_leaves_the_intent(out: Storage) -> None:
    with pytest.raises(OSError, match="full"), publication(out, "a", tag("a"), FENCE):
        raise OSError("the disk is full")
    assert files(out) == {f"intents/a.{tag('a')}.json"}


def test_taking_over_writes_the_listing_and_run_json(out: Storage) -> None:
    before = read_manifest(out)
    take_over(out, before=before, now=manifest(NEW, environment={"threads": 2}), listing=NEW)
    now = read_manifest(out)
    assert now is not None
    assert (now.listing, read_listing(out, now.listing)) == (NEW.digest(), NEW)
    assert len(listing_paths(out)) == 2  # the run deletes the other one at its end


def test_a_run_whose_listing_may_be_the_older_one_does_not_take_over(out: Storage) -> None:
    before = read_manifest(out)
    move_fence(out)  # while this run was loading its model
    third = Listing.of([shard("c")])
    with pytest.raises(RunTakenOver, match="another listing of SRC was started at the same time"):
        take_over(out, before=before, now=manifest(third), listing=third)
    with pytest.raises(RunTakenOver, match="another listing of SRC was started at the same time"):
        take_over(out, before=None, now=manifest(third), listing=third)  # it had found an empty OUT
    # A run with the same listing may go on.
    take_over(out, before=before, now=manifest(NEW), listing=NEW)


def test_a_run_with_other_settings_is_refused(out: Storage) -> None:
    other = dataclasses.replace(manifest(NEW, "g"), model_sha256="n")
    with pytest.raises(RunRefused, match="model_sha256: 'm' in OUT, 'n' now"):
        take_over(out, before=read_manifest(out), now=other, listing=NEW)


def test_a_run_that_was_deleted_in_the_meantime_is_not_continued(out: Storage) -> None:
    before = read_manifest(out)
    out.delete("run.json")
    with pytest.raises(RunTakenOver, match="deleted while this run was starting"):
        take_over(out, before=before, now=manifest(NEW), listing=NEW)
