"""Compares the shards of a run with SRC as it is now, for `status` and `verify`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.output.listing import Listing
from pipeline.output.manifest import REWRITTEN, Manifest, is_generated
from pipeline.output.records import SortedRecords
from pipeline.readers.find import find_files, shards_of
from pipeline.readers.samples import Shard
from pipeline.storage import SourceError, Storage
from pipeline.wording import counted

RETRY_TIMEOUT_SECONDS = 10.0
"""How long requests to a store of SRC that does not answer are retried."""


@dataclass(frozen=True, kw_only=True)
class SourceChanges:
    """How SRC differs from what OUT holds.

    Attributes:
        new: Names of shards that SRC has got since the run was last started.
        stale: Names of done shards whose source has changed since they were labelled.
        gone: Names of label shards whose source is no longer in SRC, and which are not kept on purpose.
        unknown: Why SRC could not be compared, or not completely; "" if it was.
    """

    new: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    unknown: str = ""

    def __bool__(self) -> bool:
        return bool(self.new or self.stale or self.gone)

    def lines(self) -> list[str]:
        """Return a sentence with advice for each kind of difference, and why SRC could not be compared."""
        texts = {
            "new in SRC": self.new,
            "changed in SRC after labelling": self.stale,
            "no longer in SRC": self.gone,
        }
        lines = [
            f"{counted(len(names), 'shard')} {text} ({_shortened(names)}); run the same `diffseg label` again"
            for text, names in texts.items()
            if names
        ]
        return lines + ([f"SRC was not compared with this run: {self.unknown}"] if self.unknown else [])


def compare_with_source(
    manifest: Manifest, listing: Listing | None, records: SortedRecords, store: Storage
) -> SourceChanges:
    """List SRC and compare it with the records of a run.

    Args:
        manifest: run.json of the run.
        listing: The listing of the run; None if it is unknown.
        records: The records of the run.
        store: Options for the store of SRC.
    """
    store = dataclasses.replace(store, retry_timeout=RETRY_TIMEOUT_SECONDS)
    settings = manifest.settings
    if any(name in settings for name in REWRITTEN):
        return SourceChanges(unknown="its rows come from those of another run, which can be compared")
    if is_generated(settings):
        return SourceChanges(unknown="its images were generated; the same `diffseg generate` compares its prompts")
    try:
        files = find_files(manifest.source, store, image_field=settings.get("image_field"))
        found = shards_of(
            files,
            store,
            manifest.source,
            samples_per_shard=int(settings["samples_per_shard"]),
            key_field=settings.get("key_field"),
        )
    except (SourceError, OSError) as error:
        return SourceChanges(unknown=str(error))
    shards = {shard.name: shard for shard in found}
    kept = frozenset(listing.kept if listing else ())
    known = listing.inputs if listing else records.done
    done = {name: tag.tag for name, tag in records.done.items() if name not in kept}
    now = _listing_now(shards, listing)
    return SourceChanges(
        new=tuple(sorted(shards.keys() - known.keys())),
        stale=tuple(
            sorted(
                name
                for name, tag in done.items()
                if name in shards and not now.accepts(name, tag, manifest.fingerprint)
            )
        ),
        # What lies in a folder that cannot be listed is not gone.
        gone=() if files.skipped else tuple(sorted((records.gone.keys() | done.keys()) - shards.keys() - kept)),
        unknown=f"these places cannot be listed: {_shortened(files.skipped)}" if files.skipped else "",
    )


def _listing_now(shards: Mapping[str, Shard], listing: Listing | None) -> Listing:
    """Return the listing of SRC as it is now; it ignores the versions of inputs if the run does."""
    ignores = listing is not None and bool(listing.inputs) and not any(listing.inputs.values())
    return Listing.of(shards.values(), ignore_changes=ignores)


def _shortened(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
