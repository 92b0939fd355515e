"""Parquet files that claim more data than they hold, or are damaged between intact rows."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.readers.parquet import read_parquet
from pipeline.readers.parquet_guard import FREE_BYTES
from pipeline.readers.samples import ShardError
from pipeline.readers.thrift import Malformed, read_struct


def file_of(table, **options) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(table), file, **options)
    return file.getvalue()


def read(data):
    return list(read_parquet(io.BytesIO(data), "the.parquet"))


def rows(count):
    return {"key": [f"k{i}" for i in range(count)], "image": [b"image %03d" % i * 9 for i in range(count)]}


PLAIN = {"compression": "none", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}


def test_damage_affects_the_later_rows_of_its_row_group_only():
    data = bytearray(file_of(rows(9), row_group_size=3, **PLAIN))
    data[data.index(b"image 004") + 2] ^= 1
    samples = read(bytes(data))
    assert [(sample.index, sample.key) for sample in samples] == [(number, f"k{number}") for number in range(9)]
    assert [sample.status for sample in samples] == ["ok"] * 3 + ["damaged"] * 3 + ["ok"] * 3
    assert "CRC" in samples[4].error


def test_a_file_of_one_damaged_row_group_is_a_shard_error():
    data = bytearray(file_of(rows(3), **PLAIN))
    data[data.index(b"image 001")] ^= 1
    with pytest.raises(ShardError, match=r"^the\.parquet: cannot be read as Parquet: .*CRC"):
        read(bytes(data))


def test_a_skipped_page_affects_its_rows_only():
    data = bytearray(file_of(rows(9), row_group_size=3, **PLAIN))
    column = pq.ParquetFile(io.BytesIO(bytes(data))).metadata.row_group(1).column(0)
    assert data[column.data_page_offset : column.data_page_offset + 2] == b"\x15\x00"  # type: a data page
    data[column.data_page_offset + 1] = 20  # an unknown type, which Arrow skips
    samples = read(bytes(data))
    assert [sample.status for sample in samples] == ["ok"] * 3 + ["damaged"] * 3 + ["ok"] * 3


def test_a_page_cannot_raise_its_limit_by_claiming_more_stored_bytes():
    data = bytearray(file_of(rows(2), **PLAIN))
    start = pq.ParquetFile(io.BytesIO(bytes(data))).metadata.row_group(0).column(1).data_page_offset
    fields, _ = read_struct(bytes(data), start)
    assert fields[2] == fields[3] < 2**13
    huge = b"\xfe\xff\xff\xff\x0f"  # 2^31 - 1, as zigzag
    header = b"\x15\x00\x15" + huge + b"\x15" + huge
    data[start : start + len(header)] = header
    with pytest.raises(ShardError, match="cannot be read as Parquet: a page"):
        read(bytes(data))


def test_errors_of_the_store_are_raised_unchanged():
    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() < 100:
                raise ConnectionResetError("reset by peer")
            return super().read(size)

    with pytest.raises(ConnectionResetError, match="reset by peer"):
        list(read_parquet(Failing(file_of(rows(3))), "the.parquet"))


@pytest.mark.parametrize("dictionary", [False, True])
def test_pages_that_decompress_to_too_many_bytes(dictionary):
    with pytest.raises(ShardError, match="believed"):
        read(file_of({"image": [b"\0" * (FREE_BYTES * 5 // 4)]}, compression="zstd", use_dictionary=dictionary))


def test_columns_that_together_decompress_to_too_many_bytes():
    texts = {f"text{number}": ["x" * (FREE_BYTES // 8)] for number in range(10)}
    with pytest.raises(ShardError, match="believed"):
        read(file_of({"image": [b"x"], **texts}, compression="zstd"))


def test_an_endless_list_and_more_rows_than_bytes():
    endless = pa.ListArray.from_arrays([0, 2**24], pa.nulls(2**24, pa.int32()))
    with pytest.raises(ShardError, match="values"):
        read(file_of({"image": [b"x"], "list": endless}, compression="zstd"))
    with pytest.raises(ShardError, match="declares 2000000 rows"):
        read(file_of({"image": pa.nulls(2_000_000, pa.binary())}))


def test_large_incompressible_pages_are_read():
    data = bytes(range(256)) * (FREE_BYTES // 256 + 1000)
    (sample,) = read(file_of({"image": [data]}, compression="none", use_dictionary=False))
    assert (sample.status, sample.image == data) == ("ok", True)


def test_long_keys_are_cut_and_repeated_long_keys_are_not_used():
    keys = ["a" * 100_000, "a" * 99_999 + "b", "c"]
    samples = read(file_of({"key": keys, "image": [b"x"] * 3}))
    assert [sample.status for sample in samples] == ["too_large", "too_large", "ok"]
    assert samples[0].key != samples[1].key
    repeated = read(file_of({"key": [keys[0], *keys], "image": [b"x"] * 4}))
    assert [(sample.key, sample.status) for sample in repeated] == [(f"{row:08d}", "ok") for row in range(4)]
    assert max(len(sample.error) for sample in samples) < 3000


def test_thousands_of_columns_take_seconds():
    (sample,) = read(file_of({"image": [b"x"], **{f"c{number}": [number] for number in range(3000)}}))
    assert sample.status == "ok"


def test_meta_above_the_limit_is_not_converted_to_python():
    floats = pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 2**21), 2**21)
    (sample,) = read(file_of({"image": [b"x"], "floats": floats}))
    assert "left out: 17039360 bytes" in sample.meta


def test_unknown_time_zones():
    stamps = pa.array([1], pa.timestamp("us", "No/Such"))
    (sample,) = read(file_of({"image": [b"x"], "when": stamps}))
    assert sample.status == "ok"


def test_thrift_structs():
    # 1: i32 -3, 2: true, 4: binary "ab", 5: struct {1: i64 1}, 6: list of two bytes, 7: map {i32 1: i32 2}, 8: double
    data = b"\x15\x05\x11\x28\x02ab\x1c\x16\x02\x00\x19\x23\x07\x08\x1b\x01\x55\x02\x04\x17" + bytes(8) + b"\x00rest"
    fields, length = read_struct(b"__" + data, 2)
    assert fields == {1: -3, 2: True, 4: None, 5: {1: 1}, 6: None, 7: None, 8: None}
    assert length == len(data) - len(b"rest")
    for broken in (
        b"",
        b"\x15",
        b"\x1d\x00",
        b"\x1c" * 100,
        b"\x15" + b"\xff" * 12,
        b"\x18\xff\xff\xff\xff\x07",
        b"\x19\xf3\xff\x7f",
    ):
        with pytest.raises(Malformed):
            read_struct(broken, 0)
