"""The plan of a run follows from the names of the records alone."""

from __future__ import annotations

from pathlib import Path

from pipeline.output.commit import Commit, read_commits, write_commit
from pipeline.output.plan import FAILED_BEFORE, make_plan
from pipeline.readers.samples import Shard
from pipeline.storage import Storage


def shard(name: str) -> Shard:
    return Shard(name=name, url=f"in/{name}.tar", kind="tar")


def commit(out: Storage, name: str, *, inputs: str | None = None, **counts: int) -> None:
    digest = shard(name).digest() if inputs is None else inputs
    rows = sum(counts.values())
    write_commit(
        out,
        Commit(shard=name, state="done", fingerprint="f", attempt=1, inputs=digest, rows=rows, counts=counts),
    )


def test_done_missing_and_changed_shards(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    commit(out, "done", ok=7, undecodable=3)
    commit(out, "changed", inputs="another list of files", ok=5)
    commit(out, "elsewhere", ok=1)
    plan = make_plan(out, [shard("changed"), shard("done"), shard("missing")], "f", retry_failed=False)
    assert [todo.name for todo in plan.todo] == ["changed", "missing"]
    assert plan.counts_before() == {"ok": 7, FAILED_BEFORE: 3}
    # The record of a shard that is labelled again is deleted; the record of a shard that is not in SRC stays.
    assert set(read_commits(out)) == {"done", "elsewhere"}


def test_retry_failed_touches_no_shard_outside_src(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    for name in ("in-src", "elsewhere"):
        commit(out, name, ok=1, unreadable=1)
    plan = make_plan(out, [shard("in-src")], "f", retry_failed=True)
    assert [todo.name for todo in plan.todo] == ["in-src"]
    assert set(read_commits(out)) == {"elsewhere"}


def test_without_a_run_every_shard_is_to_be_labelled(tmp_path: Path) -> None:
    plan = make_plan(Storage(url=str(tmp_path)), [shard("a")], None, retry_failed=False)
    assert ([todo.name for todo in plan.todo], plan.done, plan.failures) == ([shard("a").name], [], {})
