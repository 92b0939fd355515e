"""What a shard is, and what comes out of one: the two records that all readers share."""

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
)
"""Every status that a row can have. The first is success, each other one says why there is no mask."""

MAX_SAMPLE_BYTES = 2**28
"""Encoded images above this size get the status ``too_large`` instead of memory."""

MAX_META_BYTES = 2**20
"""JSON and text of one sample above this size is left out, with a note in its place."""

MAX_KEY_BYTES = 2**13
"""Of a longer key the row has the beginning and a digest, and the status ``too_large``."""

MAX_MESSAGE_CHARACTERS = 2000
"""What is quoted from a shard can have any length; an error is read by people."""

IMAGE_EXTENSIONS = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm")
)
"""File name extensions, in small letters, that make a file an image."""


class ShardError(ValueError):
    """A whole shard cannot be read: it is missing, or is not what its name says. Another attempt may help."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(redact(url), redact(shorten(reason)))

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One unit of work, cheap to send to another process.

    Attributes:
        name: safe as a file name, unique in its source, and recognisable.
        url: of the tar or Parquet file; of the folder for ``images``. May hold a signature: show ``redact(url)``.
        kind: how to read it.
        files: for ``images``, the paths of the files below ``url``, in order.
    """

    name: str
    url: str
    kind: Literal["tar", "parquet", "images"]
    files: tuple[str, ...] = ()

    def digest(self) -> str:
        """16 hexadecimal digits of what the shard is made of: its files where it is a group of them, else its name."""
        return short_digest("\n".join(self.files or (self.name,)).encode("utf-8", "surrogateescape"))

    def __repr__(self) -> str:
        return f"Shard(name={self.name!r}, kind={self.kind!r}, url={redact(self.url)!r}, {len(self.files)} files)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sample as it was stored.

    Attributes:
        index: its place in the shard, from 0.
        key: its own key, unchanged (bytes that are not UTF-8 are written as ``\\xNN``). Never to be used as a path.
        image: the encoded image, None unless ``status`` is ``ok``.
        meta: a JSON object of its JSON and text fields, "" when it has none.
        status: one of ``STATUSES``.
        error: for people, "" when ``status`` is ``ok``.
    """

    index: int
    key: str
    image: bytes | None
    meta: str = ""
    status: str = "ok"
    error: str = ""


def utf8(name: str) -> str:
    """``name`` as valid UTF-8: bytes that were not (Python's surrogate escapes) become ``\\xNN``."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def shorten(text: str, limit: int = MAX_MESSAGE_CHARACTERS) -> str:
    """``text`` for a message: what is beyond ``limit`` characters is left out, and counted."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit} more characters)"


def bounded_key(key: str) -> tuple[str, str]:
    """(``key``, "") or, above ``MAX_KEY_BYTES``, (its beginning and a digest of all of it, what is wrong with it)."""
    if len(key) <= MAX_KEY_BYTES // 4:  # a character has at most four bytes
        return key, ""
    encoded = key.encode()
    if len(encoded) <= MAX_KEY_BYTES:
        return key, ""
    start = encoded[: MAX_KEY_BYTES - 80].decode("utf-8", "ignore")
    digest = hashlib.sha256(encoded).hexdigest()
    return f"{start}…sha256:{digest}", f"the key has {len(encoded)} bytes; at most {MAX_KEY_BYTES} are carried"


class FirstSeen:
    """The first place of each key in a shard, in bounded memory a key."""

    def __init__(self) -> None:
        self._places: dict[str | bytes, int] = {}

    def __call__(self, key: str, index: int) -> int:
        """The place of the first sample with this key: ``index``, or an earlier one."""
        short = key if len(key) <= 64 else hashlib.blake2b(key.encode(), digest_size=16).digest()
        return self._places.setdefault(short, index)

    def __bool__(self) -> bool:
        return bool(self._places)


def meta_text(fields: Mapping[str, Any], size: int = 0) -> str:
    """``fields`` as the text of a JSON object with sorted keys, "" when there are none.

    Args:
        fields: values that JSON knows.
        size: bytes of what was found, for the note that stands in the place of fields above ``MAX_META_BYTES``.
    """
    if not fields and not size:
        return ""
    if size > MAX_META_BYTES:
        return _note(size)
    try:
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        return json.dumps({"__note__": "left out: the JSON is nested too deeply"})
    # A lone surrogate from "\ud800" in somebody's JSON is no UTF-8; as an escape it is JSON again.
    encoded = text.encode("utf-8", "backslashreplace")
    return _note(len(encoded)) if len(encoded) > MAX_META_BYTES else encoded.decode("utf-8")


def _note(size: int) -> str:
    return json.dumps({"__note__": f"left out: {size} bytes of JSON and text; at most {MAX_META_BYTES} are carried"})
