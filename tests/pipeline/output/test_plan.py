"""The plan of a run follows from the names of the records alone."""

from __future__ import annotations

from pathlib import Path

from pipeline.output.commit import Commit, read_commits, write_commit
from pipeline.output.listing import Listing
from pipeline.output.plan import FAILED_BEFORE, Plan, make_plan
from pipeline.readers.samples import Shard
from pipeline.storage import Storage


def shard(name: str, version: str = "1") -> Shard:
    return Shard(name=name, url=f"in/{name}.tar", kind="tar", version=version)


def commit(out: Storage, name: str, *, inputs: str | None = None, **counts: int) -> None:
    digest = shard(name).digest() if inputs is None else inputs
    rows = sum(counts.values())
    write_commit(
        out,
        Commit(shard=name, state="done", fingerprint="f", attempt=1, inputs=digest, rows=rows, counts=counts),
    )


def fail(out: Storage, name: str, *, version: str = "1", transient: bool = False) -> None:
    inputs = shard(name, version).digest()
    write_commit(
        out,
        Commit(shard=name, state="failed", fingerprint="f", attempt=3, inputs=inputs, error="no", transient=transient),
    )


def plan_of(out: Storage, *shards: Shard, retry_failed: bool = False, ignore_changes: bool = False) -> Plan:
    return make_plan(out, shards, Listing.of(shards, ignore_changes=ignore_changes), "f", retry_failed=retry_failed)


def todo(plan: Plan) -> list[str]:
    return [shard.name for shard in plan.todo]


def test_done_missing_changed_and_gone_shards(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    commit(out, "done", ok=7, undecodable=3)
    commit(out, "changed", inputs="another list of files", ok=5)
    commit(out, "gone", ok=1)
    plan = plan_of(out, shard("changed"), shard("done"), shard("missing"))
    assert todo(plan) == ["changed", "missing"]
    assert plan.counts_before() == {"ok": 7, FAILED_BEFORE: 3}
    assert list(plan.gone) == ["gone"]
    assert set(read_commits(out)) == {"changed", "done", "gone"}  # OUT may belong to another run
    plan.delete_outdated(out)
    assert set(read_commits(out)) == {"done", "gone"}


def test_a_replaced_file_is_labelled_again_unless_changes_are_ignored(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    commit(out, "a", ok=1)
    assert todo(plan_of(out, shard("a", "2"))) == ["a"]
    assert todo(plan_of(out, shard("a", "2"), ignore_changes=True)) == []
    assert todo(plan_of(out, shard("a", ""))) == []  # the version is unknown


def test_a_shard_with_two_records_is_labelled_again(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    commit(out, "versions", ok=1)
    commit(out, "versions", inputs="another version", ok=1)
    commit(out, "counts", ok=1, unreadable=1)
    commit(out, "counts", ok=2)
    plan = plan_of(out, shard("versions"), shard("counts"))
    assert todo(plan) == ["versions", "counts"]
    plan.delete_outdated(out)
    assert read_commits(out) == {}


def test_retry_failed_labels_transient_failures_and_failures_whose_source_changed(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    for name in ("unreadable", "gone"):
        commit(out, name, ok=1, unreadable=1)
    commit(out, "truncated", ok=1, truncated=1)
    commit(out, "truncated-and-changed", inputs="the half of it", ok=1, truncated=1)
    commit(out, "changed", inputs="another", ok=1)
    fail(out, "failed")
    fail(out, "failed-and-changed", version="0")
    fail(out, "lost", transient=True)
    names = ("changed", "failed", "failed-and-changed", "lost", "never-tried", "truncated", "truncated-and-changed")
    plan = plan_of(out, *map(shard, (*names, "unreadable")), retry_failed=True)
    assert todo(plan) == ["failed-and-changed", "lost", "truncated-and-changed", "unreadable"]
    plan.delete_outdated(out)
    assert {path.name.partition(".")[0] for path in (tmp_path / "commits").iterdir()} == {
        "changed",
        "gone",
        "truncated",
    }


def test_without_a_run_every_shard_is_to_be_labelled(tmp_path: Path) -> None:
    plan = make_plan(Storage(url=str(tmp_path)), [shard("a")], Listing.of([shard("a")]), None, retry_failed=False)
    assert (todo(plan), plan.done, plan.failures) == (["a"], [], {})
