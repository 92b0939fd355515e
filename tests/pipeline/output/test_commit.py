"""Records of shards: what is written comes back, and what does not count is left out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from pipeline.output.commit import (
    Commit,
    CommitName,
    parse_name,
    read_commits,
    tag_of,
    totals,
    write_commit,
)
from pipeline.output.manifest import Manifest
from pipeline.output.records import read_run_commits
from pipeline.output.rows import Row, encode_mask
from pipeline.output.writer import LabelShardWriter
from pipeline.storage import Storage


def commit(out: Storage, shard: str = "s") -> Commit:
    mask = encode_mask(np.zeros((8, 8), dtype=np.uint16))
    with LabelShardWriter(shard, formats=("parquet", "webdataset"), metadata={}) as writer:
        writer.add(Row(key="a", shard=shard, index=0, status="ok", mask=mask))
        writer.add(Row(key="b", shard=shard, index=1, status="no_image"))
        files = writer.publish(out)
    return Commit(
        shard=shard,
        state="done",
        fingerprint="f",
        attempt=1,
        rows=2,
        counts={"ok": 1, "no_image": 1},
        files=files,
        seconds={"unet": 0.5},
    )


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    written = {name: commit(out, name) for name in ("s", "t")}
    for record in written.values():
        write_commit(out, record)
    assert read_commits(out) == written
    counts, seconds = totals(written.values())
    assert (counts, seconds) == ({"ok": 2, "no_image": 2}, {"unet": 1.0})


def test_a_damaged_record_does_not_count(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    write_commit(out, commit(out))
    for damage in (b"", b"{", b"[]", b"{}", b'{"shard": 1}'):
        out.write_bytes(f"commits/broken.{tag_of('f', '')}.1-of-2.json", damage)
        assert set(read_commits(out)) == {"s"}


def test_a_record_name_holds_the_shard_its_rows_and_the_settings(tmp_path: Path) -> None:
    record = commit(Storage(url=str(tmp_path)), "a.b--c")
    name = parse_name(record.path)
    assert name == CommitName(shard="a.b--c", tag=tag_of("f", ""), ok=1, rows=2)
    assert len({tag_of(fingerprint, inputs) for fingerprint in "fg" for inputs in ("", "x")}) == 4
    for other in ("commits/a.json", "commits/a.0123456789abcdef.json", "labels/a.0123456789abcdef.1-of-1.json"):
        assert parse_name(other) is None


def test_a_done_shard_replaces_its_failure(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    failure = Commit(shard="s", state="failed", fingerprint="f", attempt=3, error="lost", transient=True, finished=9.0)
    write_commit(out, failure)
    assert json.loads(out.read_bytes("failures/s.json"))["passing"] is True
    assert read_commits(out) == {"s": failure}
    assert failure.has_transient_failure()
    done = commit(out)
    write_commit(out, done)
    assert read_commits(out) == {"s": done}
    assert not done.has_transient_failure()


def test_only_done_shards_with_the_fingerprint_of_the_run_count(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    manifest = Manifest(source="in", settings={}, model_sha256="m", resolved={}, environment={}, fingerprint="f")
    done = commit(out, "done")
    other = dataclasses.replace(commit(out, "other-settings"), fingerprint="another")
    failure = Commit(shard="failed", state="failed", fingerprint="f", attempt=3, error="damaged", rows=2)
    for record in (done, other, failure):
        write_commit(out, record)
    commits = read_run_commits(out, manifest)
    assert (commits.done, commits.failed) == ({"done": done}, {"failed": failure})
    assert list(commits.records.stale) == ["other-settings"]
