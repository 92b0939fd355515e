"""WebDataset tars as samples.

Members are grouped as webdataset groups them: the key is the path up to the first dot of its last part, and consecutive
members with the same key are one sample. Members without a dot, hidden ones (a last part that starts with a dot) and
``__name__`` ones belong to no sample, as do folders. A link or device holds no data: it counts as a member, so that a
sample of nothing else still has its row, but never as an image.
"""

from __future__ import annotations

import json
import logging
import re
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import IO, Any

from pipeline.readers import samples
from pipeline.readers.samples import (
    IMAGE_EXTENSIONS,
    FirstSeen,
    Sample,
    ShardError,
    bounded_key,
    meta_text,
    shorten,
    utf8,
)
from pipeline.readers.tar_stream import DamagedTar, NotTar, TarStream
from pipeline.storage import redact

logger = logging.getLogger(__name__)

_TEXT_EXTENSIONS = frozenset(("txt", "text", "transcript", "caption", "cls"))
_SKIPPED = re.compile(r"__[^/]*__($|/)")  # webdataset's own rule


_MAX_MEMBERS = 10_000
"""Of one sample. Further ones are passed over; a sample is never as many files."""

_MAX_EXTENSION = 200  # characters; the rest is cut


@dataclass(kw_only=True, slots=True)
class _Group:
    """The members of one sample so far."""

    key: str
    image_field: str | None = None
    members: dict[str, str] = field(default_factory=dict)  # extension → "file", or what else it is
    plain: list[str] = field(default_factory=list)  # the extensions that are an image's, or the image field
    compound: list[str] = field(default_factory=list)  # those that end in an image's, such as seg.png
    images: dict[str, bytes | int] = field(default_factory=dict)  # extension → data, or the size when that is too large
    fields: dict[str, Any] = field(default_factory=dict)
    fields_bytes: int = 0
    damage: str = ""

    def add(self, extension: str, kind: str) -> None:
        """Note a member, and whether it could be the image."""
        self.members[extension] = kind
        if kind != "file":
            return
        if extension == self.image_field or (self.image_field is None and extension in IMAGE_EXTENSIONS):
            self.plain.append(extension)
        elif self.image_field is None and extension.rpartition(".")[2] in IMAGE_EXTENSIONS:
            self.compound.append(extension)

    @property
    def candidates(self) -> list[str]:
        """The extensions that could be the image: plain ones, or else compound ones."""
        return self.plain or self.compound


def read_tar(file: IO[bytes], url: str, image_field: str | None = None) -> Iterator[Sample]:
    """Stream the samples of a tar or tar.gz, one in memory at a time.

    Args:
        file: opened for binary reading, at its start.
        url: for messages.
        image_field: the extension that holds the image, for samples with several.

    Raises:
        ShardError: when the file is no tar. A broken one gives its whole samples, then a ``truncated`` one.
    """
    image_field = image_field.lower() if image_field is not None else None
    first_seen = FirstSeen()
    try:
        stream = TarStream(file, redact(url))
    except NotTar as error:
        raise ShardError(url, str(error)) from error
    with closing(stream):
        for index, group in enumerate(_groups(stream, image_field)):
            first = first_seen(group.key, index)
            # The row that tells of damage between samples has no key, so it repeats none.
            yield _sample(index, first if group.members else index, group)
    if not first_seen:
        logger.warning("%s: the tar holds no samples; members must be named <key>.<extension>", redact(url))


def _groups(stream: TarStream, image_field: str | None) -> Iterator[_Group]:
    group: _Group | None = None
    try:
        for member in stream.members():
            key, extension = _split(member)
            if key is None:
                stream.skip(member)
                continue
            if group is None or key != group.key or extension in group.members:
                if group is not None:
                    yield group
                group = _Group(key=key, image_field=image_field)
            try:
                _add(stream, member, extension, group)
            except DamagedTar as damage:
                group.damage = str(damage)
                yield group
                return
    except DamagedTar as damage:
        # The break lies between members. A sample that has its image is as whole as can be known.
        if group is not None and group.candidates:
            yield group
            group = None
        group = group or _Group(key="")
        group.damage = str(damage)
    if group is not None:
        yield group


def _split(member: tarfile.TarInfo) -> tuple[str | None, str]:
    """(key, extension), or (None, "") for what belongs to no sample."""
    folder, slash, name = member.name.rpartition("/")
    base, dot, extension = name.partition(".")
    if member.isdir() or not base or not dot or _SKIPPED.match(member.name):
        return None, ""
    return utf8(folder + slash + base), utf8(extension.lower())[:_MAX_EXTENSION]


def _kind(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "a sparse file"  # a few bytes can claim any size
    if member.isreg():
        return "file"
    return "a symbolic link" if member.issym() else "a hard link" if member.islnk() else "a device"


def _add(stream: TarStream, member: tarfile.TarInfo, extension: str, group: _Group) -> None:
    if len(group.members) >= _MAX_MEMBERS:
        stream.skip(member)
        return
    group.add(extension, _kind(member))
    if group.members[extension] != "file":
        return
    last = extension.rpartition(".")[2]
    if extension in group.candidates[:1]:
        # Of several candidates no data is wanted, and a plain extension takes the place of a compound one.
        group.images.clear()
        if member.size > samples.MAX_SAMPLE_BYTES:
            group.images[extension] = member.size
            stream.skip(member)
        else:
            group.images[extension] = stream.read(member)
    elif last == "json" or last in _TEXT_EXTENSIONS:
        group.fields_bytes += member.size
        if group.fields_bytes > samples.MAX_META_BYTES:
            stream.skip(member)
        else:
            group.fields[extension] = _field(stream.read(member), is_json=last == "json")
    else:
        stream.skip(member)


def _field(data: bytes, *, is_json: bool) -> Any:
    text = data.decode("utf-8", "replace")
    if is_json:
        try:
            value = json.loads(text)
            json.dumps(value, allow_nan=False)  # Python reads NaN and 1e999; no other JSON reader does
            return value
        except (ValueError, RecursionError):
            pass
    return text


def _sample(index: int, first: int, group: _Group) -> Sample:
    key, too_long = bounded_key(group.key)
    image, status, error = _image(index, first, group, too_long)
    return Sample(
        index=index,
        key=key,
        image=image,
        meta=meta_text(group.fields, group.fields_bytes),
        status=status,
        error=shorten(error),
    )


def _image(index: int, first: int, group: _Group, too_long: str) -> tuple[bytes | None, str, str]:
    """The image, or None with the status and the message that tell why there is none."""
    if group.damage:
        return None, "truncated", f"the tar cannot be read beyond this place: {group.damage}"
    if first != index:
        return None, "duplicate_key", f"sample {first} of this shard has the key {group.key!r} already"
    if too_long:
        return None, "too_large", too_long
    candidates = group.candidates
    if len(candidates) > 1:
        found = ", ".join(candidates)
        return None, "several_images", f"{found}: which of them is the image must be said (--image-field)"
    if not candidates:
        wanted = f"a member {group.image_field!r}" if group.image_field is not None else "an image"
        found = ", ".join(ext if kind == "file" else f"{ext} ({kind})" for ext, kind in sorted(group.members.items()))
        return None, "no_image", f"{wanted} is missing; the sample has {found}"
    image = group.images[candidates[0]]
    if isinstance(image, int):
        return None, "too_large", f"{candidates[0]} has {image} bytes; at most {samples.MAX_SAMPLE_BYTES} are read"
    return image, "ok", ""
