"""The overview of a run comes from the names of its records; only a sample of them is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.output import overview
from pipeline.output.commit import Commit, write_commit
from pipeline.output.overview import NOT_OK, NOT_READ, count_rows, read_overview
from pipeline.storage import Storage

READ: list[str] = []


class CountingStorage(Storage):
    """A folder that notes in `READ` which records are read."""

    def read_small(self, paths: Sequence[str]) -> list[bytes | None]:
        READ.extend(paths)
        return super().read_small(paths)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Return an empty OUT, of whose records at most four of a kind are read."""
    monkeypatch.setattr(overview, "SAMPLE_RECORDS", 4)
    READ.clear()
    return CountingStorage(url=str(tmp_path))


def commit(out: Storage, shard: str, **counts: int) -> None:
    write_commit(
        out,
        Commit(
            shard=shard,
            state="done",
            fingerprint="f",
            attempt=1,
            rows=sum(counts.values()),
            counts=counts,
            seconds={"unet": 1.0},
        ),
    )


def test_rows_of_many_shards_are_counted_by_names_and_steps_by_a_sample(out: Storage) -> None:
    for index in range(20):
        commit(out, f"s{index:02d}", ok=90, undecodable=index % 2, truncated=int(index == 7))
    result = read_overview(out, "f", None)
    assert len(result.done) == 20
    assert result.counts == {"ok": 1800, NOT_OK: 11}
    assert [record.shard for record in result.sample] == ["s00", "s05", "s10", "s15"]
    assert result.not_ok == ({"undecodable": 6, "truncated": 1}, 6)  # s01, s05, s07, s13, s15 and s19
    assert [name.shard for name in result.done.values() if name.broken] == ["s07"]
    assert len(READ) <= 8


def test_statuses_are_exact_when_few_shards_have_rows_that_are_not_ok(out: Storage) -> None:
    for index in range(20):
        commit(out, f"s{index:02d}", ok=90, undecodable=3 * (index in (1, 2)), too_large=int(index == 19))
    result = read_overview(out, "f", None)
    assert result.counts == {"ok": 1800, "undecodable": 6, "too_large": 1}
    READ.clear()
    assert count_rows(out, result.done.values()) == result.counts
    assert len(READ) == 3


def test_a_small_run_is_read_completely_and_a_damaged_record_does_not_count(out: Storage) -> None:
    for name in "abc":
        commit(out, name, ok=2)
    path = next(path for path, _ in out.files("commits") if "/b." in path)
    out.write_bytes(path, b"{")
    result = read_overview(out, "f", None)
    assert set(result.done) == {"a", "c"}
    assert (result.counts, len(result.sample)) == ({"ok": 4}, 2)


def test_failed_shards_are_counted_by_names_too(out: Storage) -> None:
    for index in range(6):
        write_commit(out, Commit(shard=f"s{index}", state="failed", fingerprint="f", attempt=3, error="lost"))
    commit(out, "s5", ok=1)
    assert read_overview(out, "f", None).failed == {f"s{index}": "lost" for index in range(4)} | {"s4": NOT_READ}
