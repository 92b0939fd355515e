"""The columns of a Parquet file: which of them are the image, the key and the meta, and their values in Python."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.readers import samples
from pipeline.readers.samples import ShardError, shorten

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
KEY_COLUMNS = ("key", "__key__", "id", "image_id", "file_name", "filename", "path", "url")


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Names of columns; each occurs once in the file."""

    image: str
    key: str | None
    meta: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Those that are read."""
        return (self.image, *self.meta, *((self.key,) if self.key is not None else ()))


def choose_columns(schema: pa.Schema, url: str, image_field: str | None) -> Columns:
    """Raises ``ShardError`` where no column, or more than one, could be the image."""
    # A name that occurs twice cannot be asked for.
    unique = [name for name, count in Counter(schema.names).items() if count == 1]
    image = _image_column(schema, unique, url, image_field)
    others = [name for name in unique if name != image]
    there = set(others)
    key = next(
        (name for name in KEY_COLUMNS if name in there and not pa.types.is_nested(schema.field(name).type)), None
    )
    meta = [name for name in others if name != key and not _holds_binary(schema.field(name).type)]
    return Columns(image=image, key=key, meta=tuple(meta))


def _image_column(schema: pa.Schema, unique: list[str], url: str, image_field: str | None) -> str:
    expected = "binary, or a struct of bytes and path"
    if image_field is not None:
        if image_field not in unique:
            problem = "are several columns" if image_field in schema.names else "is no column"
            raise ShardError(url, f"there {problem} {image_field!r}; the columns are {', '.join(schema.names)}")
        if not _is_image(schema.field(image_field).type):
            found = schema.field(image_field).type
            raise ShardError(url, f"the image column {image_field!r} has type {found}; it must be {expected}")
        return image_field
    usable = [name for name in unique if _is_image(schema.field(name).type)]
    named = [name for name in IMAGE_COLUMNS if name in usable]
    if named:
        return named[0]
    if len(usable) == 1:
        return usable[0]
    found = ", ".join(f"{column.name} ({column.type})" for column in schema)
    problem = "several columns could be the image" if usable else f"no column can be the image ({expected})"
    raise ShardError(url, f"{problem}: {shorten(found, 1000)}. Name it (--image-field)")


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


def image_of(scalar: pa.Scalar) -> tuple[bytes | int | None, str | None]:
    """(the encoded image, or its size where that is too large, or None; the path beside it, or None)."""
    if not scalar.is_valid:
        return None, None
    if not pa.types.is_struct(scalar.type):
        return _bytes(scalar), None
    path = value_of(scalar["path"]) if scalar.type.get_field_index("path") >= 0 else None
    return _bytes(scalar["bytes"]), None if path is None else str(path)


def _bytes(scalar: pa.Scalar) -> bytes | int | None:
    if pa.types.is_dictionary(scalar.type):
        scalar = scalar.value
    if not scalar.is_valid:
        return None
    buffer = scalar.as_buffer()
    return buffer.size if buffer.size > samples.MAX_SAMPLE_BYTES else buffer.to_pybytes()


def value_of(scalar: pa.Scalar) -> Any:
    """The value in Python, or its text when Python has no such value (nanoseconds, years beyond 9999), or None."""
    for convert in (scalar.as_py, scalar.__str__):
        try:
            return convert()
        except Exception:  # strings that are not UTF-8, time zones that do not exist: what a file can say is endless
            continue
    return None


def json_of(value: Any) -> Any:
    """``value`` in what JSON knows; what it does not (NaN, infinities) becomes null, dates and decimals their text."""
    if isinstance(value, Mapping):
        return {str(name): json_of(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_of(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
