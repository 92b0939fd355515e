"""The end of a run: OUT is brought in line with SRC, and the run checks that nobody has undone its shards."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pipeline.errors import RunFailed
from pipeline.executor.recorder import RunRecorder
from pipeline.output.fence import Fence
from pipeline.output.kept import keep_gone
from pipeline.output.listing import Listing, delete_other_listings, read_listing, write_listing
from pipeline.output.manifest import Manifest, write_manifest
from pipeline.output.reconcile import GoneShards, check_records, remove_gone
from pipeline.output.records import SortedRecords
from pipeline.readers.kinds import without_query
from pipeline.readers.samples import Shard, utf8

log = logging.getLogger(__name__)

MAX_ROUNDS = 5
"""How often a run labels shards again that other runs undo."""


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Ends a run whose shards have all been labelled or have failed.

    Attributes:
        recorder: The recorder of the run.
        shards: The shards of SRC.
        skipped: Folders of SRC that could not be listed. If there are any, nothing is removed.
        keep_removed: Keep the rows of images that are no longer in SRC.
        label: Labels shards, and returns when each of them is done or has failed.
    """

    recorder: RunRecorder
    shards: Sequence[Shard]
    skipped: Collection[str]
    keep_removed: bool
    label: Callable[[list[Shard]], None]

    def run(self) -> GoneShards | None:
        """Finish the run, and return what became of the shards that are no longer in SRC."""
        recorder = self.recorder
        out = recorder.job.out
        manifest = recorder.manifest or recorder.resume_without_worker()
        records = self._label_undone(manifest)
        fence = Fence(fingerprint=manifest.fingerprint, listing=manifest.listing)
        listing = self._listing()
        gone = {**records.gone, **{name: [records.done[name]] for name in listing.kept if name in records.done}}
        reason = self._reason_to_keep()
        kept: Collection[str] = listing.kept
        if not reason:
            remove_gone(out, listing, fence)
        elif self._may_reduce():
            present = frozenset(utf8(without_query(path)) for shard in self.shards for path in shard.files)
            kept = keep_gone(out, gone, present, fence, recorder.job.settings.formats)
        self._write(listing.with_kept(kept), manifest, fence)
        return GoneShards.of(gone, reason=reason)

    def _label_undone(self, manifest: Manifest) -> SortedRecords:
        """Label the shards again whose rows another run has overwritten. Returns the records of OUT."""
        recorder = self.recorder
        for _ in range(MAX_ROUNDS):
            expected = {name.shard: name.path for name in recorder.plan.done} | recorder.committed
            undone, records = check_records(recorder.job.out, self._listing(), manifest.fingerprint, expected)
            if not undone:
                return records
            names = ", ".join(sorted(undone)[:5])
            log.warning("%d shards were overwritten by another run and are labelled again: %s", len(undone), names)
            recorder.forget(undone)
            self.label([shard for shard in self.shards if shard.name in undone])
        raise RunFailed(
            f"{recorder.job.out.redacted}: other runs have overwritten shards {MAX_ROUNDS} times; end them, and then "
            "run the same command again"
        )

    def _reason_to_keep(self) -> str:
        """Return why shards that are gone are kept, or "" if they are to be removed."""
        if self.skipped:
            return f"SRC could not be listed completely ({', '.join(sorted(self.skipped)[:3])})"
        if not self._is_complete():
            return "not every shard of SRC is done"
        return "--keep-removed" if self.keep_removed else ""

    def _is_complete(self) -> bool:
        """Return True if every shard of SRC is done."""
        done = {name.shard for name in self.recorder.plan.done} | self.recorder.committed.keys()
        return done >= self.recorder.listing.inputs.keys()

    def _may_reduce(self) -> bool:
        """Return True if gone groups of image files are to be reduced to the rows of the files that are gone."""
        return self._is_complete() and not self.skipped and self.shards[0].kind == "images"

    def _listing(self) -> Listing:
        """Return the listing with the inputs that workers have really read."""
        listing = self.recorder.listing
        return dataclasses.replace(listing, inputs={**listing.inputs, **self.recorder.inputs_read})

    def _write(self, listing: Listing, manifest: Manifest, fence: Fence) -> None:
        """Write the final listing if it is another one, and delete those of earlier starts."""
        out, digest = self.recorder.job.out, listing.digest()
        if read_listing(out, digest) != listing:
            fence.check(out)
            write_listing(out, listing)
        if digest != manifest.listing:
            write_manifest(out, dataclasses.replace(manifest, listing=digest))
        delete_other_listings(out, digest, lambda: dataclasses.replace(fence, listing=digest).check(out))
