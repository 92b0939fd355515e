from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.commit import Commit, commit_path, read_commits, totals, verify_commit, write_commit
from pipeline.outputs import LabelShardWriter
from pipeline.rows import Row, encode_mask
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
        out.write_bytes(commit_path("broken"), damage)
        assert set(read_commits(out)) == {"s"}


def test_only_the_same_settings_make_it_done(tmp_path: Path) -> None:
    record = commit(Storage(url=str(tmp_path)))
    assert record.is_done("f")
    assert not record.is_done("g")
    assert not Commit(shard="s", state="failed", fingerprint="f", attempt=3).is_done("f")


def test_verify_sees_every_damage(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    record = commit(out)
    assert verify_commit(out, record) == []
    path = tmp_path / "labels" / "s.parquet"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    assert "bytes" in verify_commit(out, record)[0]
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    assert "sha256" in verify_commit(out, record)[0]
    path.unlink()
    assert "missing" in verify_commit(out, record)[0]
    path.write_bytes(good)
    (tmp_path / "webdataset" / "s.tar").write_bytes(b"")
    assert [line.split(":")[0] for line in verify_commit(out, record)] == ["webdataset/s.tar"]


def test_verify_counts_rows(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    record = commit(out)
    for wrong in ({"rows": 3}, {"counts": {"ok": 2}}):
        fields = {name: getattr(record, name) for name in record.__dataclass_fields__} | wrong
        assert "rows" in verify_commit(out, Commit(**fields))[0]
