"""Group the members of a WebDataset tar into samples.

The key of a member is its path up to the first dot of the last part, and consecutive members with the same key form a
sample, as in webdataset. Members without a dot, hidden members (whose last part starts with a dot), members named
`__name__` and folders belong to no sample. A link or device has no data: it counts as a member, so that a sample of
links still gets a row, but never as an image.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.readers.samples import COMMON_EXTENSIONS, IMAGE_EXTENSIONS, RARE_EXTENSIONS, ReadLimits, utf8
from pipeline.readers.tar_source import DamagedTar
from pipeline.readers.tar_stream import TarStream

_TEXT_EXTENSIONS = frozenset(("txt", "text", "transcript", "caption", "cls"))
_SKIPPED = re.compile(r"__[^/]*__($|/)")  # the rule of webdataset

_MAX_MEMBERS = 10_000
"""Members read per sample; any beyond this are skipped. No real sample has this many."""

_MAX_EXTENSION = 200
"""Longest extension that is kept, in characters; the rest is cut."""


@dataclass(kw_only=True, slots=True)
class TarGroup:
    """The members of a sample, as far as they have been read.

    Attributes:
        key: The key of the sample, "" for a group that only reports damage.
        members: Extension → "file", or the kind of member without data.
        plain: The extensions that are those of an image, or the image field if it is given.
        rare: The extensions of images that are copies of other images in some data sets, such as `avif`.
        compound: The extensions that end in that of an image, such as `seg.png`.
        images: Extension → the encoded image, or its size in bytes if it is too large.
        fields: Extension → the JSON value or text.
        fields_bytes: The size of all JSON and text members, in bytes.
        damage: A description of the damage at which the group ends, or "".
    """

    key: str
    members: dict[str, str] = field(default_factory=dict)
    plain: list[str] = field(default_factory=list)
    rare: list[str] = field(default_factory=list)
    compound: list[str] = field(default_factory=list)
    images: dict[str, bytes | int] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    fields_bytes: int = 0
    damage: str = ""

    @property
    def candidates(self) -> list[str]:
        """The extensions that could be the image: the plain ones, else the rare ones, else the compound ones."""
        return self.plain or self.rare or self.compound


class TarGrouper:
    """Reads the members of a tar as groups."""

    def __init__(self, stream: TarStream, image_field: str | None, limits: ReadLimits) -> None:
        """Set up for a stream at its start.

        Args:
            stream: The members.
            image_field: The extension of the image, in lower case, or None for any extension of an image.
            limits: The size limits.
        """
        self._stream = stream
        self._image_field = image_field
        self._limits = limits

    def groups(self) -> Iterator[TarGroup]:
        """Yield the groups in order. If the archive is damaged, the last group says so in `damage`."""
        group: TarGroup | None = None
        try:
            for member in self._stream.members():
                key, extension = _split_name(member)
                if key is None:
                    self._stream.skip(member)
                    continue
                if group is None or key != group.key or extension in group.members:
                    if group is not None:
                        yield group
                    group = TarGroup(key=key)
                try:
                    self._add(member, extension, group)
                except DamagedTar as damage:
                    group.damage = str(damage)
                    yield group
                    return
        except DamagedTar as damage:
            # The damage is between two members, so a sample that has its image is taken as complete.
            if group is not None and group.candidates:
                yield group
                group = None
            group = group or TarGroup(key="")
            group.damage = str(damage)
        if group is not None:
            yield group

    def _add(self, member: tarfile.TarInfo, extension: str, group: TarGroup) -> None:
        """Add a member to its group, and read or skip its data."""
        if len(group.members) >= _MAX_MEMBERS:
            self._stream.skip(member)
            return
        self._note(extension, _kind(member), group)
        if group.members[extension] != "file":
            return
        last = extension.rpartition(".")[2]
        if extension in group.candidates[:1]:
            self._read_image(member, extension, group)
        elif last == "json" or last in _TEXT_EXTENSIONS:
            group.fields_bytes += member.size
            if group.fields_bytes > self._limits.max_meta_bytes:
                self._stream.skip(member)
            else:
                group.fields[extension] = _field(self._stream.read(member), is_json=last == "json")
        else:
            self._stream.skip(member)

    def _note(self, extension: str, kind: str, group: TarGroup) -> None:
        """Note a member, and whether it could be the image."""
        group.members[extension] = kind
        if kind != "file":
            return
        if self._image_field is not None:
            if extension == self._image_field:
                group.plain.append(extension)
        elif extension in COMMON_EXTENSIONS:
            group.plain.append(extension)
        elif extension in RARE_EXTENSIONS:
            group.rare.append(extension)
        elif extension.rpartition(".")[2] in IMAGE_EXTENSIONS:
            group.compound.append(extension)

    def _read_image(self, member: tarfile.TarInfo, extension: str, group: TarGroup) -> None:
        # A plain extension replaces the image of a compound one. Further candidates are not read.
        group.images.clear()
        if member.size > self._limits.max_sample_bytes:
            group.images[extension] = member.size
            self._stream.skip(member)
        else:
            group.images[extension] = self._stream.read(member)


def _split_name(member: tarfile.TarInfo) -> tuple[str | None, str]:
    """Return the key and the extension of a member, or (None, "") if it belongs to no sample."""
    folder, slash, name = member.name.rpartition("/")
    base, dot, extension = name.partition(".")
    if member.isdir() or not base or not dot or _SKIPPED.match(member.name):
        return None, ""
    return utf8(folder + slash + base), utf8(extension.lower())[:_MAX_EXTENSION]


def _kind(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "a sparse file"  # its few bytes can claim any size
    if member.isreg():
        return "file"
    return "a symbolic link" if member.issym() else "a hard link" if member.islnk() else "a device"


def _field(data: bytes, *, is_json: bool) -> Any:
    """Return the value of a JSON member, or the text of any other member and of invalid JSON."""
    text = data.decode("utf-8", "replace")
    if is_json:
        try:
            value = json.loads(text)
            json.dumps(value, allow_nan=False)  # Python accepts NaN and 1e999; other JSON readers do not
            return value
        except (ValueError, RecursionError):
            pass
    return text
