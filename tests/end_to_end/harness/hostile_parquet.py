"""Hostile Parquet files: wrong types, pages and footers."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hostile_images import Bad, Creates, photograph
from hostile_shard import OK, ExpectedRow, HostileShard

NO_IMAGE = frozenset({"no_image"})
TOO_LARGE = frozenset({"too_large"})
LOST = frozenset({"ok", "damaged", "truncated", "duplicate_key"})


def file_of(table: pa.Table | dict[str, Any], **options: Any) -> bytes:
    """Return a table as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(table) if isinstance(table, dict) else table, buffer, **options)
    return buffer.getvalue()


def sample_parquet(rng: random.Random, bad: list[Bad]) -> HostileShard:
    """Put bad images between good ones, as plain bytes or as structs, in row groups of a random size."""
    rows, expected = [], []
    for number, case in enumerate(bad):
        rows += [(f"g/{number}.png", photograph(rng)), (f"../b/{number}", case.data)]
        expected += [ExpectedRow(f"g/{number}.png", OK), ExpectedRow(f"../b/{number}", case.statuses, case.kind)]
    keys, images = [key for key, _ in rows], [image for _, image in rows]
    if rng.random() < 0.5:
        table = {"key": keys, "image": images}
    else:
        table = {"image": [{"bytes": image, "path": key} for key, image in rows]}
    options = {"compression": rng.choice(["none", "zstd", "snappy", "gzip"]), "row_group_size": rng.randrange(3, 30)}
    return HostileShard("images in Parquet", ".parquet", file_of(table, **options), expected)


def strange_rows(rng: random.Random, canary: str) -> Iterator[HostileShard]:
    """Yield files with odd keys, values and columns beside good images."""
    good = photograph(rng)
    yield from _odd_keys(good)
    yield from _odd_values(good)
    yield from _odd_columns(good, canary)


def _odd_keys(good: bytes) -> Iterator[HostileShard]:
    keys = [
        "../../up",
        "/etc/cron.d/x",
        "//",
        ".",
        "..",
        "%2e",
        "line\nbreak",
        " ",
        "C:\\x",
        "é漢",
        "a/",
        "\x1b[",
        "a\0b",
    ]
    data = file_of({"key": keys, "image": [good] * len(keys)})
    yield HostileShard("key", ".parquet", data, [ExpectedRow(key, OK, "key") for key in keys])
    long = [letter * 10_000_000 for letter in "abc"]
    data = file_of({"key": [*long, "d"], "image": [good] * 4})
    expected = [*(ExpectedRow(key, TOO_LARGE, "10 MB key") for key in long), ExpectedRow("d", OK)]
    yield HostileShard("10 MB key", ".parquet", data, expected)


def _odd_values(good: bytes) -> Iterator[HostileShard]:
    texts = ["{" * 10_000_000, json.dumps({"a": "x" * 10_000_000}), "\\" * 10_000_000]
    data = file_of({"key": list("abcd"), "image": [good] * 4, "json": [*texts, "{}"]})
    yield HostileShard(
        "10 MB JSON", ".parquet", data, [*(ExpectedRow(k, OK, "10 MB JSON") for k in "abc"), ExpectedRow("d", OK)]
    )
    invalid = pa.Array.from_buffers(
        pa.string(), 3, pa.array([b"\xff", b"a\xc3", b"\xed\xa0\x80"], pa.binary()).buffers()
    )
    data = file_of({"key": invalid, "image": [good] * 3, "text": invalid})
    yield HostileShard("invalid UTF-8", ".parquet", data, [ExpectedRow(None, OK, "invalid UTF-8")] * 3)
    for zone in ("No/Such", "../../etc/passwd", "Europe", "\0"):
        stamps = pa.array([1, 2**62], pa.timestamp("us", zone))
        data = file_of({"key": list("ab"), "image": [good] * 2, "when": stamps})
        yield HostileShard("time zones", ".parquet", data, [ExpectedRow(key, OK, "time zones") for key in "ab"])
    nulls = pa.array([None, good, None], pa.binary())
    for column in (nulls, pa.array([{"bytes": None}, {"bytes": good}, None])):
        expected = [
            ExpectedRow("00000000", NO_IMAGE, "nulls"),
            ExpectedRow("00000001", OK),
            ExpectedRow("00000002", NO_IMAGE, "nulls"),
        ]
        yield HostileShard("nulls", ".parquet", file_of({"image": column}), expected)
    data = file_of({"key": ["a", "b", "a"], "image": [good] * 3})
    # A column that does not tell rows apart is not used as the key, so the row numbers are.
    expected = [ExpectedRow(f"{number:08d}", OK, "duplicated key") for number in range(3)]
    yield HostileShard("duplicated key", ".parquet", data, expected)


def _odd_columns(good: bytes, canary: str) -> Iterator[HostileShard]:
    deep = pa.array([1])
    for _ in range(90):
        deep = pa.StructArray.from_arrays([deep], ["s"])
    yield HostileShard(
        "deep structs", ".parquet", file_of({"image": [good], "deep": deep}), [ExpectedRow("00000000", OK)]
    )
    for name in (b"arrow.py_extension_type", b"pickle", b"pandas"):
        field = pa.field("pickled", pa.int64()).with_metadata(
            {b"ARROW:extension:name": name, b"ARROW:extension:metadata": pickle.dumps(Creates(canary))}
        )
        schema = pa.schema([pa.field("image", pa.binary()), field]).with_metadata(
            {name: field.metadata[b"ARROW:extension:metadata"]}
        )
        data = file_of(pa.table([[good], [1]], schema=schema))
        yield HostileShard("pickled types", ".parquet", data, [ExpectedRow("00000000", OK, "pickled types")])
    yield HostileShard(
        "10 MB metadata",
        ".parquet",
        file_of(pa.table({"image": [good]}).replace_schema_metadata({"x": "m" * 10_000_000})),
        [ExpectedRow("00000000", OK, "10 MB metadata")],
    )
    wide = {"image": [good], **{f"c{number}": [number] for number in range(3000)}}
    yield HostileShard("many columns", ".parquet", file_of(wide), [ExpectedRow("00000000", OK, "many columns")])


def wrong_tables(rng: random.Random) -> Iterator[HostileShard]:
    """Yield files without a column of images, each of which must be an error of the shard."""
    good = photograph(rng)
    tables: dict[str, Any] = {
        "int image": {"image": [1, 2]},
        "text image": {"image": ["a", "b"]},
        "list image": {"image": [[good], [good]]},
        "image without bytes": {"image": [{"path": "x"}, {"path": "y"}]},
        "bytes of ints": {"image": [{"bytes": [1, 2], "path": "x"}]},
        "null image": {"image": pa.nulls(3)},
        "no columns": {},
        "two image columns": {"left": [good], "right": [good]},
        "columns of one name": pa.table([[good], [good]], names=["image", "image"]),
        "many binary columns": {f"c{number}": [good] for number in range(1000)},
    }
    for kind, table in tables.items():
        yield HostileShard(kind, ".parquet", file_of(table), [], refused="must")
    encoded = pa.array([good, good, None], pa.binary()).dictionary_encode()
    expected = [ExpectedRow("00000000", OK), ExpectedRow("00000001", OK), ExpectedRow("00000002", NO_IMAGE)]
    yield HostileShard("dictionary image", ".parquet", file_of({"image": encoded}), expected)
    yield HostileShard("no rows", ".parquet", file_of({"image": pa.array([], pa.binary())}), [])


def bombs(rng: random.Random) -> Iterator[HostileShard]:
    """Yield kilobytes that unpack to gigabytes, or declare millions of rows."""
    flood = bytes(300 * 2**20)
    for compression in ("zstd", "gzip", "brotli"):
        for dictionary in (False, True):
            data = file_of({"image": [flood]}, compression=compression, use_dictionary=dictionary)
            yield HostileShard(f"{compression} bomb", ".parquet", data, [], refused="must")
    some = bytes(50 * 2**20)
    data = file_of({"image": [some] * 30}, compression="zstd")
    expected = [ExpectedRow(f"{number:08d}", frozenset({"undecodable"}), "dictionary bomb") for number in range(30)]
    yield HostileShard("dictionary bomb", ".parquet", data, expected)
    wide = {"image": [b"x"], **{f"c{number}": ["y" * 2**25] for number in range(12)}}
    yield HostileShard("bomb of columns", ".parquet", file_of(wide, compression="zstd"), [], refused="must")
    endless = pa.ListArray.from_arrays([0, 2**25], pa.nulls(2**25, pa.int32()))
    data = file_of({"image": [b"x"], "list": endless}, compression="zstd")
    yield HostileShard("endless list", ".parquet", data, [], refused="must")
    data = file_of({"image": pa.nulls(2_000_000, pa.binary())}, compression="zstd")
    yield HostileShard("endless nulls", ".parquet", data, [], refused="must")
    floats = pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 2**21), 2**21)
    data = file_of({"image": [photograph(rng)], "floats": floats}, use_dictionary=False, compression="none")
    yield HostileShard("16 MB of floats", ".parquet", data, [ExpectedRow("00000000", OK, "16 MB of floats")])


def damaged_parquet(rng: random.Random, count: int) -> Iterator[HostileShard]:
    """Yield ``count`` small files with checksums that are truncated, have flipped bits, or have false numbers."""
    images = [photograph(rng) for _ in range(12)]
    keys = [f"k{number}" for number in range(12)]
    for number in range(count):
        compression = rng.choice(["none", "zstd", "snappy"])
        options = {"compression": compression, "row_group_size": 4, "write_page_checksum": True}
        data = bytearray(file_of({"key": keys, "image": images, "n": list(range(12))}, **options))
        footer = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
        kind = ("page", "footer", "cut", "length", "magic")[number % 5]
        if kind == "page":
            data[rng.randrange(4, footer)] ^= 1 << rng.randrange(8)
            expected = [ExpectedRow(key, LOST) for key in keys]
            yield HostileShard("corrupt page", ".parquet", bytes(data), expected, beyond=3)
            continue
        if kind == "footer":
            for _ in range(rng.choice([1, 1, 3])):
                data[rng.randrange(footer, len(data) - 8)] ^= 1 << rng.randrange(8)
            # Names, types and counts may differ now. The check is only that nothing breaks.
            yield HostileShard("corrupt footer", ".parquet", bytes(data), [], beyond=2**20 + 2**17, refused="may")
            continue
        if kind == "cut":
            data = data[: rng.choice([rng.randrange(len(data)), rng.randrange(20), len(data) - rng.randrange(1, 9)])]
        elif kind == "length":
            length = rng.choice([0, 1, 2**31, 2**32 - 1, len(data), rng.randrange(len(data)) | 1])
            data[-8:-4] = struct.pack("<I", length)
        else:
            data[-4:] = rng.choice([b"PARE", b"PAR2", rng.randbytes(4)])
        yield HostileShard(f"footer: {kind}", ".parquet", bytes(data), [], refused="must")
