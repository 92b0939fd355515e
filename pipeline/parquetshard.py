"""Parquet files with an image column as samples: plain bytes, or the ``{bytes, path}`` structs of Hugging Face."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import samples
from pipeline.samples import Sample, ShardError, meta_text

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
KEY_COLUMNS = ("key", "__key__", "id", "image_id", "file_name", "filename", "path", "url")

_BATCH_ROWS = 16
_BUFFER_BYTES = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class _Columns:
    image: str
    key: str | None
    meta: tuple[str, ...]


def read_parquet(file: IO[bytes], url: str, image_field: str | None = None) -> Iterator[Sample]:
    """Stream the rows of a Parquet file, a few of them in memory at a time.

    The key is the first of ``KEY_COLUMNS`` that is there, else the path in the image struct, else the row's number;
    the other columns without binary values become the meta.

    Args:
        file: opened for binary reading; must allow seeking.
        url: for messages.
        image_field: the image column; without it ``IMAGE_COLUMNS`` are looked for, then the only binary one.

    Raises:
        ShardError: when it is no Parquet file, or has no image column that could be meant.
    """
    try:
        # Buffered, since a row group of photographs can be larger than the memory.
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        columns = _columns(parquet.schema_arrow, url, image_field)
        names = [columns.image, *columns.meta] + ([columns.key] if columns.key else [])
        batches = parquet.iter_batches(batch_size=_BATCH_ROWS, columns=names, use_threads=False)
        first_seen: dict[str, int] = {}
        index = 0
        for batch in batches:
            for row in range(batch.num_rows):
                yield _sample(batch, row, index, columns, first_seen)
                index += 1
    except pa.ArrowException as error:
        raise ShardError(url, f"cannot be read as Parquet: {error}") from error


def _columns(schema: pa.Schema, url: str, image_field: str | None) -> _Columns:
    image = _image_column(schema, url, image_field)
    # A name that occurs twice cannot be asked for.
    others = [name for name in schema.names if schema.names.count(name) == 1 and name != image]
    key = next(
        (name for name in KEY_COLUMNS if name in others and not pa.types.is_nested(schema.field(name).type)), None
    )
    meta = [name for name in others if name != key and not _holds_binary(schema.field(name).type)]
    return _Columns(image=image, key=key, meta=tuple(meta))


def _image_column(schema: pa.Schema, url: str, image_field: str | None) -> str:
    expected = "binary, or a struct of bytes and path"
    if image_field is not None:
        if image_field not in schema.names:
            raise ShardError(url, f"there is no column {image_field!r}; the columns are {', '.join(schema.names)}")
        if not _is_image(schema.field(image_field).type):
            found = schema.field(image_field).type
            raise ShardError(url, f"the image column {image_field!r} has type {found}; it must be {expected}")
        return image_field
    usable = [name for name in schema.names if schema.names.count(name) == 1 and _is_image(schema.field(name).type)]
    named = [name for name in IMAGE_COLUMNS if name in usable]
    if named:
        return named[0]
    if len(usable) == 1:
        return usable[0]
    found = ", ".join(f"{column.name} ({column.type})" for column in schema)
    problem = "several columns could be the image" if usable else f"no column can be the image ({expected})"
    raise ShardError(url, f"{problem}: {found}. Name it (--image-field)")


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_binary(kind.value_type)
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(check(kind) for check in checks)


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return _is_binary(kind)


def _holds_binary(kind: pa.DataType) -> bool:
    return _is_binary(kind) or any(_holds_binary(kind.field(place).type) for place in range(kind.num_fields))


def _sample(batch: pa.RecordBatch, row: int, index: int, columns: _Columns, first_seen: dict[str, int]) -> Sample:
    value = _value(batch.column(columns.image)[row])
    path = value.get("path") if isinstance(value, Mapping) else None
    image = value.get("bytes") if isinstance(value, Mapping) else value
    key = _value(batch.column(columns.key)[row]) if columns.key else path
    if isinstance(key, bytes):
        key = key.decode("utf-8", "backslashreplace")
    key = f"{index:08d}" if key is None or key == "" else str(key)
    first = first_seen.setdefault(key, index)
    fields = {name: _json(_value(batch.column(name)[row])) for name in columns.meta}
    status, error = "ok", ""
    if first != index:
        status, error = "duplicate_key", f"row {first} of this shard has the key {key!r} already"
    elif image is None:
        status, error = "no_image", f"the column {columns.image!r} is null in row {index}"
        if path is not None:
            error = f"row {index} holds only the path {path!r} and no bytes; embed the images in the Parquet file"
    elif len(image) > samples.MAX_SAMPLE_BYTES:
        status, error = "too_large", f"the image has {len(image)} bytes; at most {samples.MAX_SAMPLE_BYTES} are read"
    return Sample(
        index=index,
        key=key,
        image=image if status == "ok" else None,
        meta=meta_text(fields),
        status=status,
        error=error,
    )


def _value(scalar: pa.Scalar) -> Any:
    """The value in Python, or its text when Python has no such value (nanoseconds, years beyond 9999), or None."""
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, ImportError):
        try:
            return str(scalar)
        except ValueError:
            return None  # a string column with bytes that are not UTF-8


def _json(value: Any) -> Any:
    """``value`` in what JSON knows; what it does not (NaN, infinities) becomes null, dates and decimals their text."""
    if isinstance(value, Mapping):
        return {str(name): _json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
