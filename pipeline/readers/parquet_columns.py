"""Choose the columns of a Parquet file that hold the image, the key and the meta of a sample."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from pipeline.readers.samples import ShardError, shorten

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
"""Names of image columns, the most specific first."""
KEY_COLUMNS = ("key", "__key__", "id", "image_id", "file_name", "filename", "path", "url")
"""Names of key columns, in the order in which they are tried."""

_IMAGE_TYPES = "binary, or a struct of bytes and path"


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The columns that are read. Each name occurs once in the file.

    Attributes:
        image: The column of the encoded images.
        key: The column of the keys, or None if there is none.
        meta: The columns whose values become the meta of a sample.
    """

    image: str
    key: str | None
    meta: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """The names of all columns that are read."""
        return (self.image, *self.meta, *((self.key,) if self.key is not None else ()))


def choose_columns(schema: pa.Schema, url: str, image_field: str | None) -> Columns:
    """Choose the columns of a file by their names and types.

    Args:
        schema: The schema of the file.
        url: The URL of the file, for messages.
        image_field: The name of the image column, or None to look for it.

    Raises:
        ShardError: No column, or more than one, could be the image.
    """
    # Arrow cannot select a column whose name occurs twice.
    unique = [name for name, count in Counter(schema.names).items() if count == 1]
    image = _image_column(schema, unique, url, image_field)
    others = [name for name in unique if name != image]
    key = next(
        (name for name in KEY_COLUMNS if name in others and not pa.types.is_nested(schema.field(name).type)), None
    )
    meta = [name for name in others if name != key and not _holds_binary(schema.field(name).type)]
    return Columns(image=image, key=key, meta=tuple(meta))


def _image_column(schema: pa.Schema, unique: list[str], url: str, image_field: str | None) -> str:
    if image_field is not None:
        return _named_column(schema, unique, url, image_field)
    usable = [name for name in unique if _is_image(schema.field(name).type)]
    named = [name for name in IMAGE_COLUMNS if name in usable]
    if named:
        return named[0]
    if len(usable) == 1:
        return usable[0]
    columns = ", ".join(f"{column.name} ({column.type})" for column in schema)
    problem = "several columns could be the image" if usable else f"no column can be the image ({_IMAGE_TYPES})"
    raise ShardError(url, f"{problem}: {shorten(columns, 1000)}. Name it (--image-field)")


def _named_column(schema: pa.Schema, unique: list[str], url: str, image_field: str) -> str:
    if image_field not in unique:
        problem = "are several columns" if image_field in schema.names else "is no column"
        raise ShardError(url, f"there {problem} {image_field!r}; the columns are {', '.join(schema.names)}")
    kind = schema.field(image_field).type
    if not _is_image(kind):
        raise ShardError(url, f"the image column {image_field!r} has type {kind}; it must be {_IMAGE_TYPES}")
    return image_field


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
