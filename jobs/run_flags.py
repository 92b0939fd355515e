"""Flags that several commands share when they read a finished or unfinished run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import tyro

from diffseg.levels import Cut
from jobs.common import storage_options
from pipeline.errors import RunFailed
from pipeline.output.keep import read_kept
from pipeline.output.manifest import Manifest, require_manifest
from pipeline.output.selection import RowSelection, read_keys
from pipeline.readers.samples import Shard
from pipeline.settings import RunSettings
from pipeline.storage import SourceError, Storage

MOVED_IMAGES_ADVICE = "if the source images have moved, use --images"


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """The flags of every command that reads a run."""

    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder or URL of a run, as given to `diffseg label` or `diffseg generate`."""
    storage_options: str = ""
    """JSON object with options for fsspec, such as credentials or an endpoint."""
    json: bool = False
    """Print JSON instead of text."""

    def open(self) -> tuple[Storage, Manifest]:
        """Return the folder of the run, and its run.json.

        Raises:
            SourceError: The folder holds no run.
        """
        out = Storage(url=self.out, options=storage_options(self.storage_options))
        return out, require_manifest(out)

    def store(self) -> Storage:
        """Return a storage for other paths and URLs, with the same options."""
        return Storage(url=".", options=storage_options(self.storage_options))


@dataclass(frozen=True, kw_only=True)
class SourceImageFlags(RunFlags):
    """The flag of a command that reads the source images of a run."""

    images: str | None = None
    """Where the images of SRC are now; default: the place that run.json names."""

    def source_shards(self, manifest: Manifest) -> dict[str, Shard]:
        """Return the shards that the run labelled, by name.

        Raises:
            RunFailed: They cannot be listed. The message names --images, and the cause is a SourceError or OSError.
        """
        from pipeline.output.source_images import find_source_shards

        try:
            return find_source_shards(manifest, self.store(), self.images, out=self.store().at(self.out))
        except (SourceError, OSError) as error:
            raise RunFailed(f"{error}; {MOVED_IMAGES_ADVICE}") from error


@dataclass(frozen=True, kw_only=True)
class SelectionFlags(RunFlags):
    """The flags of a command that uses only some rows of a run."""

    where: str = ""
    """Use only rows for which this Python expression is true, such as "confidence > 0.5 and 'road' in names".
    It may use the columns of a row, and stem, names (of the segments) and split (from 0 to 1, by the stem alone)."""
    keys: str | None = None
    """Use only rows whose key or stem is a line of this file or URL."""
    filter: bool = False
    """Use only rows that `diffseg filter` kept."""

    def selection(self, *, split: tuple[float, float] = (0.0, 1.0)) -> RowSelection:
        """Return the rows to use.

        Args:
            split: Lowest value of `split` that is used, and the bound below which it must be.

        Raises:
            ValueError: The expression of --where is not valid, or the file of --keys cannot be read.
            SourceError: There is no table of `diffseg filter` for these labels.
        """
        keys = None if self.keys is None else read_keys(self.store(), self.keys)
        kept = read_kept(*self.open()) if self.filter else None
        return RowSelection(where=self.where, keys=keys, split=split, kept=kept)


@dataclass(frozen=True, kw_only=True)
class CutFlags:
    """The flags that choose a level of a run with levels."""

    tau: float | None = None
    """Level of a run that was labelled with --levels: merge segments closer than this, in nats, as --tau of `diffseg
    label` does."""
    segments: int | None = None
    """Level of a run with levels: merge until each image has at most this many segments."""
    stable: bool = False
    """Level of a run with levels, chosen for each image: many segments, as far as they are confident."""

    def cut(self) -> Cut | None:
        """Return the level; None for the label maps of the run. Raises ValueError if several are given."""
        if self.tau is None and self.segments is None and not self.stable:
            return None
        return Cut(tau=self.tau, segments=self.segments, stable=self.stable)


def check_val_share(share: float) -> None:
    """Raise ValueError if a value of --val-share is not in [0, 1)."""
    if not 0 <= share < 1:
        raise ValueError(f"--val-share is {share}; expected at least 0 and less than 1")


@dataclass(frozen=True, kw_only=True)
class RayFlags:
    """The flags of a command whose workers are Ray actors."""

    no_ray: bool = False
    """Work in this process, without Ray."""
    address: str | None = None
    """Address of a Ray cluster, HOST:PORT, or `auto` or `local`. Default: RAY_ADDRESS, else a cluster that the same
    user started with `ray start` on this machine, else a private Ray."""

    def run_settings(self) -> RunSettings:
        """Return where the workers run."""
        return RunSettings(no_ray=self.no_ray, address=self.address)


@dataclass(frozen=True, kw_only=True)
class ParallelFlags:
    """The flags of a command that spreads its work over processes or over a Ray cluster."""

    processes: int | None = None
    """Processes on this machine; default: one per core."""
    address: str | None = None
    """Address of a Ray cluster that does the work instead; default: RAY_ADDRESS if it is set, else this machine."""

    @property
    def process_count(self) -> int:
        """How many processes to use on this machine."""
        return self.processes or os.cpu_count() or 1

    @property
    def ray_address(self) -> str | None:
        """The address of the Ray cluster to use, if any."""
        return self.address or os.environ.get("RAY_ADDRESS")
