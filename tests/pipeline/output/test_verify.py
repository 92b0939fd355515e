"""Every kind of damage is found and reported with the shard that must be labelled again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import jobs.verify
from pipeline.output.commit import Commit, read_commits, tag_of, write_commit
from pipeline.output.listing import Listing, write_listing
from pipeline.output.manifest import Manifest, write_manifest
from pipeline.output.rows import Row, encode_mask
from pipeline.output.verify import Verdict, verify_run
from pipeline.output.writer import LabelShardWriter
from pipeline.readers.samples import Shard
from pipeline.settings import LabelSettings
from pipeline.storage import Storage

MANIFEST = Manifest(
    source="no such folder",
    settings=LabelSettings().plain(),
    model_sha256="m",
    resolved={},
    environment={},
    fingerprint="f",
    shards=3,
)


@pytest.fixture
def out(tmp_path: Path) -> Storage:
    """An intact run of three shards of two rows."""
    storage = Storage(url=str(tmp_path))
    write_manifest(storage, MANIFEST)
    mask = encode_mask(np.zeros((8, 8), dtype=np.uint16))
    for shard in "abc":
        with LabelShardWriter(shard, formats=("parquet", "webdataset"), metadata={"tag": tag_of("f", "")}) as writer:
            writer.add(Row(key="x", shard=shard, index=0, status="ok", mask=mask))
            writer.add(Row(key="y", shard=shard, index=1, status="no_image"))
            files = writer.publish(storage)
        counts = {"ok": 1, "no_image": 1}
        write_commit(
            storage,
            Commit(shard=shard, state="done", fingerprint="f", attempt=1, rows=2, counts=counts, files=files),
        )
    return storage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flipped_bit(root: Path) -> None:
    flip(root / "labels" / "b.parquet")


def flipped_bit_in_tar(root: Path) -> None:
    flip(root / "webdataset" / "b.tar")


def truncated(root: Path) -> None:
    path = root / "labels" / "b.parquet"
    path.write_bytes(path.read_bytes()[:-1])


def missing(root: Path) -> None:
    (root / "webdataset" / "b.tar").unlink()


def record_of(root: Path, shard: str = "b") -> Path:
    (path,) = (root / "commits").glob(f"{shard}.*")
    return path


def row_missing(root: Path) -> None:
    """Remove a row, and update size and checksum in the record as a faulty program might do."""
    path = root / "labels" / "b.parquet"
    pq.write_table(pq.read_table(path).slice(0, 1), path)  # it keeps the metadata
    record = json.loads(record_of(root).read_text())
    data = path.read_bytes()
    record["files"]["labels/b.parquet"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    record_of(root).write_text(json.dumps(record))


def not_parquet(root: Path) -> None:
    data = b"no parquet"
    (root / "labels" / "b.parquet").write_bytes(data)
    record = json.loads(record_of(root).read_text())
    record["files"]["labels/b.parquet"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    record_of(root).write_text(json.dumps(record))


def record_of_another_run(root: Path) -> None:
    record = json.loads(record_of(root).read_text())
    record_of(root).write_text(json.dumps(record | {"fingerprint": "other"}))


def record_of_another_shard(root: Path) -> None:
    record_of(root).write_bytes(record_of(root, "a").read_bytes())


def record_damaged(root: Path) -> None:
    record_of(root).write_text("{")


def file_of_another_version(root: Path) -> None:
    """Replace the rows by equal ones of another run, and update the record as a faulty program might do."""
    path = root / "labels" / "b.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"diffseg": json.dumps({"tag": "another"})}), path)
    record = json.loads(record_of(root).read_text())
    data = path.read_bytes()
    record["files"]["labels/b.parquet"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    record_of(root).write_text(json.dumps(record))


def record_doubled(root: Path) -> None:
    older = tag_of("f", "an older folder")
    (root / "commits" / f"b.{older}.1-of-2.json").write_bytes(record_of(root).read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flipped_bit, "labels/b.parquet: the content differs"),
        (flipped_bit_in_tar, "webdataset/b.tar: the content differs"),
        (truncated, "were committed"),
        (missing, "webdataset/b.tar: missing"),
        (row_missing, "1 rows"),
        (not_parquet, "cannot be read as Parquet"),
        (record_of_another_run, "belongs to another run (other; run.json says f)"),
        (record_of_another_shard, "holds the record that belongs at commits/a."),
        (record_damaged, "cannot be read as a record"),
        (record_doubled, "more than one record"),
        (file_of_another_version, "labels/b.parquet: was written for another version"),
    ],
)
def test_damage_is_found_and_its_shard_named(
    damage: Callable[[Path], None], message: str, out: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify_run(out, MANIFEST).is_whole
    damage(tmp_path)
    verdict = verify_run(out, MANIFEST)
    assert list(verdict.problems) == ["b"]
    assert message in "; ".join(verdict.problems["b"])
    assert jobs.verify.main([str(tmp_path), "--redo"]) == 1
    assert "run the same `diffseg label`: b" in capsys.readouterr().out.replace("\n", " ")
    assert set(read_commits(out)) == {"a", "c"}
    again = verify_run(out, MANIFEST)
    assert (again.problems, again.missing) == ({}, 1)


def nonempty_fields(verdict: Verdict) -> dict[str, object]:
    empty: tuple[object, ...] = ({}, [], 0)
    fields = dataclasses.asdict(verdict)
    return {
        name: fields[name] for name in ("problems", "failed", "missing", "stray", "gone") if fields[name] not in empty
    }


def test_extra_files_missing_and_failed_shards_are_distinguished(out: Storage, tmp_path: Path) -> None:
    (tmp_path / "labels" / "extra.parquet").write_bytes(b"")
    (tmp_path / "commits" / "notes.txt").write_bytes(b"")
    assert nonempty_fields(verify_run(out, MANIFEST)) == {"stray": ["commits/notes.txt", "labels/extra.parquet"]}
    of_five_shards = dataclasses.replace(MANIFEST, shards=5)
    (tmp_path / "labels" / "extra.parquet").unlink()
    (tmp_path / "commits" / "notes.txt").unlink()
    write_commit(out, Commit(shard="d", state="failed", fingerprint="f", attempt=3, error="no tar"))
    assert nonempty_fields(verify_run(out, of_five_shards)) == {"failed": ["d"], "missing": 1}


def test_shards_that_the_listing_does_not_name_are_gone_and_changed_ones_are_named(out: Storage) -> None:
    shards = [Shard(name=name, url="", kind="tar", version="2") for name in "bd"]
    listing = Listing(inputs={"a": "", "b": shards[0].digest(), "d": shards[1].digest()})
    write_listing(out, listing)
    verdict = verify_run(out, dataclasses.replace(MANIFEST, listing=listing.digest()))
    assert verdict.gone == ["c"]
    assert list(verdict.problems) == ["b"]
    assert "another version of the shard's source" in verdict.problems["b"][0]
    assert (verdict.missing, verdict.is_whole) == (1, False)
