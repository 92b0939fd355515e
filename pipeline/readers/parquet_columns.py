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
        use_paths: True if the paths in the image structs are the keys where there is no key column.
    """

    image: str
    key: str | None
    meta: tuple[str, ...]
    use_paths: bool = True

    @property
    def all(self) -> tuple[str, ...]:
        """The names of all columns that are read."""
        return (self.image, *self.meta, *((self.key,) if self.key is not None else ()))


def choose_columns(schema: pa.Schema, url: str, image_field: str | None, key_field: str | None = None) -> Columns:
    """Choose the columns of a file by their names and types.

    Args:
        schema: The schema of the file.
        url: The URL of the file, for messages.
        image_field: The name of the image column, or None to look for it.
        key_field: The name of the key column, or None to look for it.

    Raises:
        ShardError: No column, or more than one, could be the image, or the key column does not exist.
    """
    # Arrow cannot select a column whose name occurs twice.
    unique = [name for name, count in Counter(schema.names).items() if count == 1]
    image = _image_column(schema, unique, url, image_field)
    others = [name for name in unique if name != image]
    usable = [name for name in others if not pa.types.is_nested(schema.field(name).type)]
    if key_field is not None and key_field not in usable:
        raise ShardError(
            url, f"the key column {key_field!r} (--key-field) is none of the columns that can be keys: {usable}"
        )
    key = key_field or next((name for name in KEY_COLUMNS if name in usable), None)
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
    if not usable:
        raise ShardError(url, no_image_message(schema, url))
    raise ShardError(url, f"several columns could be the image: {_listing(schema)}. Name it (--image-field)")


def has_image_column(schema: pa.Schema) -> bool:
    """Return True if at least one column has the type of an image."""
    return any(_is_image(column.type) for column in schema)


def no_image_message(schema: pa.Schema, path: str) -> str:
    """Return a message for a file without an image column, with advice that fits its columns.

    Args:
        schema: The schema of the file.
        path: The path of the file, for the advice.
    """
    return f"no column can be the image ({_IMAGE_TYPES}): {_listing(schema)}. {_advice(schema, path)}"


def _listing(schema: pa.Schema) -> str:
    return shorten(", ".join(f"{column.name} ({column.type})" for column in schema), 1000)


def _advice(schema: pa.Schema, path: str) -> str:
    name = path.rpartition("/")[2]
    copy = f"duckdb -c \"COPY (SELECT * EXCLUDE ({{0}}), {{1}} FROM '{name}') TO 'images/{name}'\""
    lists = [column.name for column in schema if _is_list(column.type) and _is_image(column.type.value_type)]
    if lists:
        command = copy.format(f'\\"{lists[0]}\\"', f'unnest(\\"{lists[0]}\\") AS image')
        return f"The column {lists[0]!r} holds lists of images, and each row must hold one: {command}"
    texts = [column.name for column in schema if _is_text(column.type)]
    named = [column for column in IMAGE_COLUMNS if column in texts]
    if named:
        command = copy.format(f'\\"{named[0]}\\"', f'from_base64(\\"{named[0]}\\") AS image')
        return f"The column {named[0]!r} holds text. If it is base64, decode it: {command}"
    if any(column.lower() in ("url", "image_url", "img_url") for column in texts):
        return "The files hold only the URLs of images: download the images, for example with img2dataset"
    return "Name a source with images, or add a column with the bytes of the images"


def _is_list(kind: pa.DataType) -> bool:
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(kind) for check in checks)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _named_column(schema: pa.Schema, unique: list[str], url: str, image_field: str) -> str:
    if image_field not in unique:
        problem = "are several columns" if image_field in schema.names else "is no column"
        raise ShardError(url, f"there {problem} {image_field!r}; the columns are {', '.join(schema.names)}")
    kind = schema.field(image_field).type
    if not _is_image(kind):
        advice = _advice(pa.schema([schema.field(image_field).with_name("image")]), url)
        raise ShardError(url, f"the image column {image_field!r} has type {kind}; it must be {_IMAGE_TYPES}. {advice}")
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
