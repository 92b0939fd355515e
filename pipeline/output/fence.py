"""The fence between runs in one OUT: a worker commits a shard only while run.json still belongs to its own run.

No store can compare run.json and write a label shard in one step, so a worker that is paused between the two may write
late. The order of the steps in `publication` keeps that harmless. A late writer always announces its files first and
looks at run.json again afterwards; a run that takes over writes run.json first and looks for announced files at its end
(`pipeline.output.reconcile`). One of the two therefore notices the other. docs/reliability.md goes through the cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.errors import RunTakenOver
from pipeline.output.commit import FOLDER, parse_name
from pipeline.output.intents import Intent, declare, withdraw
from pipeline.output.listing import Listing, read_listing, write_listing
from pipeline.output.manifest import (
    Manifest,
    check_same_run,
    create_manifest,
    read_manifest,
    require_manifest,
    write_manifest,
)
from pipeline.output.writer import output_paths
from pipeline.storage import Storage


@dataclass(frozen=True, kw_only=True, slots=True)
class Fence:
    """What run.json says as long as OUT belongs to a run.

    Attributes:
        fingerprint: Fingerprint of the run.
        listing: Digest of its listing of SRC.
    """

    fingerprint: str
    listing: str

    def check(self, out: Storage) -> None:
        """Raise RunTakenOver if OUT does not belong to this run any longer."""
        _refuse_other(out, read_manifest(out), self)


def _refuse_other(out: Storage, now: Manifest | None, fence: Fence) -> None:
    if now is None:
        raise RunTakenOver(f"{out.redacted}: run.json has been deleted, so this run stops")
    if now.fingerprint != fence.fingerprint:
        raise RunTakenOver(f"{out.redacted}: another run with other settings has taken over OUT, so this run stops")
    if now.listing != fence.listing:
        raise RunTakenOver(
            f"{out.redacted}: another run with a newer listing of SRC has taken over OUT, so this run stops. "
            "Once that run has ended, run the same command again to check that nothing is missing"
        )


def take_over(out: Storage, *, before: Manifest | None, now: Manifest, listing: Listing) -> list[str]:
    """Write run.json, so that OUT belongs to this run and to runs with the same settings and the same listing.

    Args:
        out: OUT.
        before: run.json as it was before this run listed SRC; None if there was none.
        now: run.json of this run.
        listing: The listing of this run.

    Returns:
        Differences of the environment for the user, as `check_same_run` returns them.

    Raises:
        RunRefused: OUT belongs to a run with other settings.
        RunTakenOver: Another run has taken over OUT since this one listed SRC, so its listing may be the newer one.
    """
    current = read_manifest(out)
    if current is None:
        if before is not None:
            raise RunTakenOver(f"{out.redacted}: run.json was deleted while this run was starting")
        if create_manifest(out, now):  # first, because a folder without run.json belongs to somebody else
            write_listing(out, listing)
            return []
        current = require_manifest(out)  # another run was started at the same moment
    differences = check_same_run(current, now, out)
    if current.listing not in (now.listing, now.listing if before is None else before.listing):
        raise RunTakenOver(
            f"{out.redacted}: another run with another listing of SRC was started at the same time; "
            "once it has ended, run the same command again"
        )
    write_listing(out, listing)
    write_manifest(out, now)
    if read_listing(out, now.listing) != listing:  # a run that was ending has deleted it, before run.json named it
        write_listing(out, listing)
    return differences


@contextmanager
def publication(out: Storage, shard: str, tag: str, fence: Fence) -> Iterator[None]:
    """Guard the writing of a shard's files and of its record, which happen inside the block.

    The block itself calls `fence.check` between the files and the record.

    Args:
        out: OUT.
        shard: Name of the shard.
        tag: The tag of its files and of its record.
        fence: The fence of the run.

    Raises:
        RunTakenOver: OUT belongs to another run. What this call has written does not count.
    """
    intent = Intent(shard, tag)
    declare(out, intent)
    try:
        fence.check(out)
    except RunTakenOver:
        withdraw(out, intent)  # nothing was written
        raise
    try:
        yield
        fence.check(out)
    except RunTakenOver:
        # The run that took over may have deleted the intent, before these files were written.
        declare(out, intent)
        _take_back(out, intent)
        raise
    withdraw(out, intent)


def _take_back(out: Storage, late: Intent) -> None:
    """Make sure that files which were written too late do not count.

    They may have replaced the files of the run that took over, so the shard counts as not done. The intent stays, so
    that a record which that run writes after this is compared with the files.
    """
    manifest = read_manifest(out)
    listing = None if manifest is None else read_listing(out, manifest.listing)
    if manifest and listing and listing.accepts(late.shard, late.tag, manifest.fingerprint):
        return  # the other run would write the same files
    for path, _ in out.files(FOLDER):
        name = parse_name(path)
        if name is not None and name.shard == late.shard:
            out.delete(path)
    if listing is not None and late.shard not in listing:
        delete_label_shard(out, late.shard)


def delete_label_shard(out: Storage, shard: str) -> None:
    """Delete the files of a label shard whose record is gone, the Parquet file last.

    The Parquet file names its run, so that the rest of an interrupted deletion can be recognised.
    """
    paths = output_paths(shard, ("parquet", "webdataset"))
    out.delete(paths["webdataset"])
    out.delete(paths["parquet"])
