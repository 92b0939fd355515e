"""Refuses shards whose names differ only in capitals where OUT cannot tell them apart, as on vfat and exFAT."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.errors import RunRefused
from pipeline.storage import Storage

_PROBE = ".diffseg-letter-case"


def refuse_names_that_collide(out: Storage, names: Iterable[str]) -> None:
    """Check that OUT can hold the files of every shard. It is written to only where two names differ in capitals alone.

    Args:
        out: OUT.
        names: Names of the shards of SRC.

    Raises:
        RunRefused: The file system of OUT ignores capitals, so two shards would share their files.
    """
    seen: dict[str, str] = {}
    pair = next(((other, name) for name in names if (other := seen.setdefault(name.lower(), name)) != name), None)
    if pair is None or not _ignores_capitals(out):
        return
    raise RunRefused(
        f"{out.redacted}: its file system ignores capitals, so the shards {pair[0]!r} and {pair[1]!r} would have the "
        "same files. Rename one of their sources, or name an OUT on another file system"
    )


def _ignores_capitals(out: Storage) -> bool:
    out.write_bytes(_PROBE, b"")
    try:
        return out.is_file(_PROBE.upper())
    finally:
        out.delete(_PROBE)
