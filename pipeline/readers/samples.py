"""The records that all readers share: a shard, a sample of it, and the limits within which a sample is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.digest import short_digest
from pipeline.storage import redact

STATUSES: tuple[str, ...] = (
    "ok",
    "undecodable",
    "too_large",
    "too_small",
    "nonfinite",
    "no_image",
    "several_images",
    "duplicate_key",
    "truncated",
    "damaged",
    "unreadable",
    "bad_names",
    "bad_prompt",
)
"""Every status of a row. The first means success; each of the others is a reason for a missing mask."""

MAX_MESSAGE_CHARACTERS = 2000
"""Length at which a quotation from a shard is cut in a message. A quotation can be of any length."""

COMMON_EXTENSIONS = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm")
)
PLUGIN_EXTENSIONS = frozenset(("heic", "heif", "hif", "jxl"))
"""Extensions of images that an extra of this project decodes."""
RARE_EXTENSIONS = frozenset(("avif", "jp2", "j2k", "j2c", "jpc", "jpx", "jpf")) | PLUGIN_EXTENSIONS
"""Extensions of images that are copies of other images in some data sets; the others come first there."""
IMAGE_EXTENSIONS = COMMON_EXTENSIONS | RARE_EXTENSIONS
"""File name extensions of images, in lower case."""

ShardKind = Literal["tar", "parquet", "images", "prompts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadLimits:
    """Sizes up to which the parts of a sample are read, so that a hostile shard cannot exhaust the memory.

    Attributes:
        max_sample_bytes: Size of an encoded image. A sample with a larger one gets the status `too_large`.
        max_meta_bytes: Size of all JSON and text fields of a sample. Larger fields are replaced by a note.
        max_key_bytes: Size of a key in UTF-8. A longer key is replaced by its beginning and a digest, and its sample
            gets the status `too_large`.
    """

    max_sample_bytes: int = 2**28
    max_meta_bytes: int = 2**20
    max_key_bytes: int = 2**13


DEFAULT_LIMITS = ReadLimits()


class ShardError(ValueError):
    """A shard cannot be read at all: it is missing, or is not what its name says. Another attempt may succeed."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(redact(url), redact(shorten(reason)))

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A unit of work, which is cheap to send to another process.

    Attributes:
        name: A recognisable name that is unique in its source and safe as a file name.
        url: The URL of the tar or Parquet file, or of the folder of an `images` shard. It may contain a signature, so
            messages show `redact(url)`.
        kind: The kind of reader for it.
        files: The paths of the files of an `images` shard, relative to `url` and in order; the entries of a `prompts`
            shard (`pipeline.generation.requests`), which has no URL.
        version: A text that changes when the content of the input changes (`pipeline.readers.versions`); "" where the
            listing of the source says nothing about versions.
        key_field: The key column of a Parquet file, or None to look for it.
    """

    name: str
    url: str
    kind: ShardKind
    files: tuple[str, ...] = ()
    version: str = ""
    key_field: str | None = None

    def digest(self) -> str:
        """Return 16 hexadecimal digits for the input: its name, which stands for its path or paths, and its version."""
        return short_digest(f"{self.name}\0{self.version}")

    def __repr__(self) -> str:
        return f"Shard(name={self.name!r}, kind={self.kind!r}, url={redact(self.url)!r}, {len(self.files)} files)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A sample as the shard stores it.

    Attributes:
        index: The position in the shard, from 0.
        key: The key of the sample, unchanged, except that bytes which are not UTF-8 are written as `\\xNN`. It must
            not be used as a path.
        image: The encoded image, or None unless `status` is `ok`.
        meta: A JSON object of the JSON and text fields of the sample, or "" if it has none.
        status: One of `STATUSES`.
        error: A message for people, or "" if `status` is `ok`.
    """

    index: int
    key: str
    image: bytes | None
    meta: str = ""
    status: str = "ok"
    error: str = ""


def utf8(name: str) -> str:
    """Return `name` as valid UTF-8, with `\\xNN` for each byte that is not (Python's surrogate escapes)."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def shorten(text: str, limit: int = MAX_MESSAGE_CHARACTERS) -> str:
    """Return the first `limit` characters of `text` and the number of characters that were cut."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit} more characters)"


def bounded_key(key: str, limits: ReadLimits = DEFAULT_LIMITS) -> tuple[str, str]:
    """Bound the length of a key.

    Returns:
        The key and "". For a key above `max_key_bytes`: its beginning with a digest of the whole key, and a message.
    """
    if len(key) <= limits.max_key_bytes // 4:  # a character has at most four bytes
        return key, ""
    encoded = key.encode()
    if len(encoded) <= limits.max_key_bytes:
        return key, ""
    start = encoded[: limits.max_key_bytes - 80].decode("utf-8", "ignore")
    digest = hashlib.sha256(encoded).hexdigest()
    return f"{start}…sha256:{digest}", f"the key has {len(encoded)} bytes; at most {limits.max_key_bytes} are carried"


class FirstSeen:
    """The first position of each key in a shard. The memory per key is bounded."""

    def __init__(self) -> None:
        self._positions: dict[str | bytes, int] = {}

    def __call__(self, key: str, index: int) -> int:
        """Return the position of the first sample with this key, which is `index` if the key is new."""
        short = key if len(key) <= 64 else hashlib.blake2b(key.encode(), digest_size=16).digest()
        return self._positions.setdefault(short, index)

    def __bool__(self) -> bool:
        """Return True if a key has been seen."""
        return bool(self._positions)


def meta_text(fields: Mapping[str, Any], size: int = 0, limits: ReadLimits = DEFAULT_LIMITS) -> str:
    """Return the JSON and text fields of a sample as a JSON object with sorted keys, or "" if there are none.

    Args:
        fields: Values that JSON can represent.
        size: The size of the fields in the shard, in bytes. Above `max_meta_bytes` a note replaces the fields.
        limits: The size limits.
    """
    if not fields and not size:
        return ""
    if size > limits.max_meta_bytes:
        return _size_note(size, limits)
    try:
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        return json.dumps({"__note__": "left out: the JSON is nested too deeply"})
    # A lone surrogate, from "\ud800" in the JSON of a shard, cannot be encoded as UTF-8; its escape is valid JSON.
    encoded = text.encode("utf-8", "backslashreplace")
    return _size_note(len(encoded), limits) if len(encoded) > limits.max_meta_bytes else encoded.decode("utf-8")


def _size_note(size: int, limits: ReadLimits) -> str:
    note = f"left out: {size} bytes of JSON and text; at most {limits.max_meta_bytes} are carried"
    return json.dumps({"__note__": note})
