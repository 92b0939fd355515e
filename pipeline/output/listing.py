"""The listing of a run: the shards of SRC, with their inputs, when the run was last started.

run.json names the current listing by its digest. Workers compare the digest with their own before they commit, and
readers count only records that agree with the listing, so that both agree about which record of a shard counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from pipeline.digest import short_digest
from pipeline.output.commit import settings_tag, tag_of
from pipeline.readers.samples import Shard
from pipeline.storage import Storage

FOLDER = "listings"
ANY_INPUTS = ""
"""Stands for inputs whose version is unknown, or is to be ignored: every record of the shard counts."""

_LINE = re.compile(r"(?P<inputs>[0-9a-f]{16}|any|kept) (?P<shard>[^\s/][^\n/]{0,249})")
_PATH = re.compile(rf"{FOLDER}/(?P<digest>[0-9a-f]{{16}})\.txt")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The shards whose rows belong to a run.

    Attributes:
        inputs: `Shard.digest` of each shard of SRC by name, or `ANY_INPUTS`.
        kept: Names of shards that are no longer in SRC and whose rows are kept nevertheless.
    """

    inputs: Mapping[str, str]
    kept: Collection[str] = frozenset()

    @classmethod
    def of(cls, shards: Iterable[Shard], *, ignore_changes: bool = False) -> Listing:
        """Return the listing of the shards of SRC; on request it accepts records of every version of a shard."""
        return cls(
            inputs={
                shard.name: shard.digest() if shard.version and not ignore_changes else ANY_INPUTS for shard in shards
            }
        )

    def with_kept(self, names: Iterable[str]) -> Listing:
        """Return the listing with label shards that count although their source is gone."""
        return replace(self, kept=frozenset(names) - self.inputs.keys())

    def __contains__(self, shard: str) -> bool:
        return shard in self.inputs or shard in self.kept

    def accepts(self, shard: str, tag: str, fingerprint: str) -> bool:
        """Return True if a tag stands for the listed inputs of a shard and for the settings of the run."""
        inputs = self.inputs.get(shard, ANY_INPUTS)
        if shard not in self or not tag.startswith(settings_tag(fingerprint)):
            return False
        return inputs == ANY_INPUTS or tag == tag_of(fingerprint, inputs)

    def digest(self) -> str:
        """Return 16 hexadecimal digits for the shards of SRC and their inputs."""
        return short_digest(self._source_lines())

    def to_text(self) -> bytes:
        """Return the content of the listing's file: one shard a line."""
        kept = "".join(f"kept {shard}\n" for shard in sorted(self.kept))
        return (self._source_lines() + kept).encode()

    def _source_lines(self) -> str:
        return "".join(f"{inputs or 'any'} {shard}\n" for shard, inputs in sorted(self.inputs.items()))

    @classmethod
    def from_text(cls, text: bytes) -> Listing:
        """Read the content of a listing's file. Raises ValueError if it is no listing."""
        inputs: dict[str, str] = {}
        kept = set()
        for line in text.decode().splitlines():
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError(f"{line[:80]!r} is no line of a listing")
            if match["inputs"] == "kept":
                kept.add(match["shard"])
            else:
                inputs[match["shard"]] = ANY_INPUTS if match["inputs"] == "any" else match["inputs"]
        return cls(inputs=inputs, kept=kept)


def write_listing(out: Storage, listing: Listing) -> None:
    """Write the file of a listing atomically."""
    out.write_bytes(_path(listing.digest()), listing.to_text())


def read_listing(out: Storage, digest: str) -> Listing | None:
    """Read a listing by its digest; None if it is unknown, because the file is missing or damaged."""
    if _PATH.fullmatch(_path(digest)) is None:
        return None
    try:
        listing = Listing.from_text(out.read_bytes(_path(digest)))
    except (FileNotFoundError, ValueError):
        return None
    return listing if listing.digest() == digest else None


def listing_paths(out: Storage) -> list[str]:
    """Return the paths of all listings in OUT."""
    return [path for path, _ in out.files(FOLDER) if _PATH.fullmatch(path)]


def delete_other_listings(out: Storage, digest: str, check: Callable[[], None]) -> None:
    """Delete the listings of earlier starts.

    Args:
        out: OUT.
        digest: Digest of the listing that stays.
        check: Raises an error if OUT belongs to another run, whose listing may be among those that were found.
    """
    others = [path for path in listing_paths(out) if path != _path(digest)]
    if others:
        check()
    for path in others:
        out.delete(path)


def _path(digest: str) -> str:
    return f"{FOLDER}/{digest}.txt"
