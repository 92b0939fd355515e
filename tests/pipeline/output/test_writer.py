"""Label shards: both formats hold the same rows, and hostile keys do no harm."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from unpacking import unpack
from webdataset import filters, handle_extension, tariterators

from diffseg import IGNORE
from pipeline.output import writer as writer_module
from pipeline.output.rows import SCHEMA, Row, decode_mask, encode_mask
from pipeline.output.writer import LabelShardWriter, member_key
from pipeline.storage import Storage

BOTH = ("parquet", "webdataset")
MASK = encode_mask(np.zeros((8, 8), dtype=np.uint16))


def row(key: str, index: int = 0, status: str = "ok") -> Row:
    return Row(key=key, shard="s", index=index, status=status, mask=MASK if status == "ok" else None, n_segments=1)


def write(folder: Path, rows: list[Row], **image: tuple[str, bytes]) -> dict:
    with LabelShardWriter("s", formats=BOTH, metadata={"fingerprint": "f"}) as writer:
        for new_row in rows:
            writer.add(new_row, image=image.get(new_row.key))
        return writer.publish(Storage(url=str(folder)))


def read_tar(path: Path) -> list[dict]:
    """Read with webdataset's own functions; its WebDataset class leaves the file open, which raises a warning."""
    with path.open("rb") as file:
        members = tariterators.tar_file_expander([{"url": str(path), "stream": file}])
        return list(tariterators.group_by_keys(members))


def test_both_formats_hold_the_same_rows(tmp_path: Path) -> None:
    rows = [row("a"), row("b", 1, "undecodable"), row("c", 2)]
    files = write(tmp_path, rows)
    table = pq.read_table(tmp_path / "labels" / "s.parquet")
    assert table.schema.equals(SCHEMA)
    assert table.schema.field("mask").type == pa.large_binary(), "plain binary is limited to 2 GiB per column"
    assert json.loads(table.schema.metadata[b"diffseg"]) == {"fingerprint": "f"}
    samples = read_tar(tmp_path / "webdataset" / "s.tar")
    for line, sample, written in zip(table.to_pylist(), samples, rows, strict=True):
        described = json.loads(sample["json"])
        assert sample["__key__"] == line["key"] == described["key"] == written.key
        assert described == {name: value for name, value in line.items() if name != "mask"}
        assert sample.get("png") == line["mask"] == written.mask
    for path, facts in files.items():
        data = (tmp_path / path).read_bytes()
        assert facts == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("segments", [3, 300])
def test_the_documented_decoder_keeps_label_maps_of_8_and_16_bits(segments: int, tmp_path: Path) -> None:
    labels = np.arange(segments, dtype=np.uint16).reshape(1, -1)
    labels[0, 1] = IGNORE
    row = Row(key="a", shard="s", index=0, status="ok", mask=encode_mask(labels))
    with LabelShardWriter("s", formats=("parquet", "webdataset"), metadata={}) as writer:
        writer.add(row)
        writer.publish(Storage(url=str(tmp_path)))
    decode = filters.decode(handle_extension("png", decode_mask), "pil")  # what the method of WebDataset calls
    (sample,) = decode(read_tar(tmp_path / "webdataset/s.tar"))
    np.testing.assert_array_equal(sample["png"], labels)
    assert sample["json"]["key"] == "a"


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [row("ключ/é", 0), row("b" * 300, 1)]
    assert write(tmp_path / "one", rows) == write(tmp_path / "two", rows)


def test_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "ROW_GROUP_BYTES", 3 * (len(MASK) + 1024 + 1))
    write(tmp_path, [row(str(i), i) for i in range(10)])
    parquet = pq.ParquetFile(tmp_path / "labels" / "s.parquet")
    assert [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)] == [3, 3, 3, 1]


def test_an_empty_shard_is_a_readable_file(tmp_path: Path) -> None:
    write(tmp_path, [])
    assert pq.read_table(tmp_path / "labels" / "s.parquet").num_rows == 0


HOSTILE = [
    "22.0/1.1.png",
    "../../etc/passwd",
    "/etc/passwd",
    "a%2Fb",
    "a%b",
    "",
    ".",
    "..",
    "a//b",
    "c:\\d",
    "ü/ß.jpg",
    "a\0b",
    "a\nb",
]


def test_hostile_keys_stay_in_the_folder_and_unique(tmp_path: Path) -> None:
    rows = [row(key, i) for i, key in enumerate(HOSTILE)]
    for status in ("duplicate_key", "duplicate_key", "truncated", "damaged"):
        rows.append(row("a%b", len(rows), status))
    write(tmp_path, rows)
    names = unpack(tmp_path / "webdataset" / "s.tar", tmp_path / "unpacked")
    assert len(names) == len(set(names))
    samples = read_tar(tmp_path / "webdataset" / "s.tar")
    assert [json.loads(sample["json"])["key"] for sample in samples] == [written.key for written in rows]
    assert len({member_key(written) for written in rows}) == len(rows)


def test_source_images_are_stored_beside_their_masks(tmp_path: Path) -> None:
    write(tmp_path, [row("a"), row("b", 1)], a=("jpg", b"\xff\xd8x"), b=("png", b"\x89PNG"))
    first, second = read_tar(tmp_path / "webdataset" / "s.tar")
    assert first["jpg"] == b"\xff\xd8x"
    assert (second["image.png"], second["png"]) == (b"\x89PNG", MASK)
