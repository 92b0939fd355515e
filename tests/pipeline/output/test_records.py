"""Which records count: the only one of a shard, if it agrees with the listing of the run."""

from __future__ import annotations

from pathlib import Path

from pipeline.output.commit import Commit, LabelShard, write_commit
from pipeline.output.listing import Listing, write_listing
from pipeline.output.manifest import Manifest
from pipeline.output.records import read_run_commits, sort_records
from pipeline.readers.samples import Shard
from pipeline.storage import Storage


def shard(name: str, version: str = "1") -> Shard:
    return Shard(name=name, url=f"in/{name}.tar", kind="tar", version=version)


def record(name: str, version: str = "1", *, fingerprint: str = "f", **counts: int) -> Commit:
    counts = counts or {"ok": 2}
    inputs = shard(name, version).digest()
    rows = sum(counts.values())
    values = {"shard": name, "fingerprint": fingerprint, "inputs": inputs, "rows": rows, "counts": counts}
    return Commit(state="done", attempt=1, **values)  # type: ignore[arg-type]


RECORDS = [
    record("done"),
    record("changed", "0"),
    record("other-settings", fingerprint="g"),
    record("doubled"),
    record("doubled", "0"),
    record("doubled-with-other-settings"),
    record("doubled-with-other-settings", fingerprint="g"),
    record("gone"),
    record("kept"),
]
IN_SOURCE = ("done", "changed", "other-settings", "doubled", "doubled-with-other-settings", "missing")


def test_records_are_sorted_by_the_listing() -> None:
    listing = Listing.of(map(shard, IN_SOURCE)).with_kept(["kept"])
    found = sort_records([commit.path for commit in RECORDS] + ["commits/notes.txt"], "f", listing)
    assert set(found.done) == {"done", "kept"}
    assert set(found.doubled) == {"doubled", "doubled-with-other-settings"}
    assert set(found.stale) == {"changed", "other-settings"}
    assert set(found.gone) == {"gone"}
    assert [name.path for name in found.of("doubled")] == [commit.path for commit in RECORDS[3:5]]
    assert found.of("missing") == []


def test_without_a_listing_versions_are_not_compared() -> None:
    found = sort_records([commit.path for commit in RECORDS], "f", None)
    assert set(found.done) == {"done", "changed", "gone", "kept"}
    assert set(found.stale) == {"other-settings"}


def test_readers_follow_the_listing_of_run_json(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    for commit in RECORDS:
        write_commit(out, commit)
    for name in ("done", "missing", "gone"):
        write_commit(out, Commit(shard=name, state="failed", fingerprint="f", attempt=3))
    listing = Listing.of(map(shard, IN_SOURCE)).with_kept(["kept"])
    write_listing(out, listing)
    values = {"source": "in", "settings": {}, "model_sha256": "m", "resolved": {}, "environment": {}}
    manifest = Manifest(**values, fingerprint="f", listing=listing.digest())  # type: ignore[arg-type]
    commits = read_run_commits(out, manifest)
    assert set(commits.done) == {"done", "kept"}
    assert set(commits.failed) == {"missing"}
    assert {shard.tag for shard in commits.done} == {commit.tag for commit in commits.done.values()}
    assert all(isinstance(shard, LabelShard) for shard in commits.done)


def test_the_path_of_a_record_says_if_a_part_of_the_input_is_missing() -> None:
    paths = [record("a", ok=2, **{status: 1}).path for status in ("truncated", "damaged", "undecodable")]
    assert [path.rpartition(".2-of-3")[2] for path in paths] == ["-truncated.json", "-damaged.json", ".json"]
    found = sort_records(paths[:1], "f", None)
    assert found.done["a"].broken == "truncated"
