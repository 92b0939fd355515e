"""What a run has to do, from the names of records alone."""

from __future__ import annotations

from pathlib import Path

from pipeline.output.commit import Commit, read_commits, write_commit
from pipeline.output.plan import FAILED_BEFORE, make_plan
from pipeline.readers.samples import Shard
from pipeline.storage import Storage


def shard(name: str) -> Shard:
    return Shard(name=name, url=f"in/{name}.tar", kind="tar")


def put(out: Storage, name: str, *, inputs: str | None = None, **counts: int) -> None:
    digest = shard(name).digest() if inputs is None else inputs
    rows = sum(counts.values())
    write_commit(
        out,
        Commit(shard=name, state="done", fingerprint="f", attempt=1, inputs=digest, rows=rows, counts=counts),
    )


def test_done_missing_and_changed_shards(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    put(out, "done", ok=7, undecodable=3)
    put(out, "changed", inputs="another list of files", ok=5)
    put(out, "elsewhere", ok=1)
    plan = make_plan(out, [shard("changed"), shard("done"), shard("missing")], "f", retry_failed=False)
    assert [each.name for each in plan.todo] == ["changed", "missing"]
    assert plan.counts_before() == {"ok": 7, FAILED_BEFORE: 3}
    # Of a shard that is labelled again no record stays; one of a shard that SRC does not name is none of our business.
    assert set(read_commits(out)) == {"done", "elsewhere"}


def test_retry_failed_touches_no_shard_that_src_does_not_name(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    for name in ("ours", "elsewhere"):
        put(out, name, ok=1, unreadable=1)
    plan = make_plan(out, [shard("ours")], "f", retry_failed=True)
    assert [each.name for each in plan.todo] == ["ours"]
    assert set(read_commits(out)) == {"elsewhere"}


def test_without_a_run_all_is_to_do(tmp_path: Path) -> None:
    plan = make_plan(Storage(url=str(tmp_path)), [shard("a")], None, retry_failed=False)
    assert ([each.name for each in plan.todo], plan.done, plan.failures) == ([shard("a").name], [], {})
