"""Settings, one dataclass a component, and what refuses or ends a run. Light to import: the CLI is made of these."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from diffseg.settings import NAMING, Dtype, SegmenterSettings
from pipeline.readers.names import NameSettings
from pipeline.storage.redaction import redact
from pipeline.storage.urls import scheme
from pipeline.worker_pools import WorkerSpec, parse_worker_specs

Format = Literal["parquet", "webdataset"]


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """All that determines the labels, apart from what `environment` records."""

    model: str = "tiny"
    """`tiny` (embedded), or a Stable Diffusion with 4 latent channels: a diffusers folder, a hub id, or a URL such as
    s3://bucket/sd15, which each node copies once (into DIFFSEG_CACHE, else ~/.cache/diffseg)."""
    revision: str | None = None
    """Branch, tag or commit of the hub id."""
    vae: str | None = None
    """Autoencoder of the same latents in the place of the model's own, whose encoder is most of the work: a folder,
    hub id or URL, such as madebyollin/taesd."""
    clip: str | None = None
    """A CLIP of the transformers layout to name segments by (stage clip): a folder, hub id or URL, such as
    openai/clip-vit-large-patch14. None comes with this program."""
    affinity: str | None = None
    """File or URL that `diffseg fit` wrote: of heads for stage affinity, of features for stage walk."""
    dtype: Dtype = "float32"
    """Of the model's weights; attention is float32 always."""
    method: SegmenterSettings = field(default_factory=SegmenterSettings)
    """How an image becomes a label map."""
    naming: NameSettings = field(default_factory=NameSettings)
    """What segments may be called."""
    format: str = "parquet"
    """parquet, or parquet,webdataset to write tar shards as well."""
    include_image: bool = False
    """Put the photographs into the WebDataset shards too."""
    image_field: str | None = None
    """Extension (tar) or column (Parquet) of the image where a sample has several."""
    samples_per_shard: int = 256
    """How many image files of a folder make a virtual shard."""
    max_pixels: int = 2**26
    """Larger images are not decoded and get the status too_large."""

    def __post_init__(self) -> None:
        if self.format not in ("parquet", "parquet,webdataset"):
            raise ValueError(f"format {self.format!r}: expected parquet or parquet,webdataset")
        if self.samples_per_shard < 1 or self.max_pixels < 1:
            raise ValueError(
                f"samples_per_shard {self.samples_per_shard}, max_pixels {self.max_pixels}: expected 1 or more of each"
            )
        self._check_naming()
        for place in filter(None, (self.model, self.vae, self.clip)):
            # run.json and every row name the model
            if scheme(place) and redact(place) != place:
                raise ValueError(
                    f"{redact(place)}: a model's URL with a user name, a password or a query is refused; give "
                    "credentials by the store's environment variables or --storage-options"
                )
        if self.revision is not None and scheme(self.model):
            raise ValueError(f"revision {self.revision!r}: {self.model} has none, as it is no hub id")

    def _check_naming(self) -> None:
        stages = self.method.method
        if stages is not None and ("clip" in stages) != (self.clip is not None):
            raise ValueError(
                f"method {','.join(stages)}, clip {self.clip and redact(self.clip)}: stage clip names by a CLIP; "
                "give both, the stage and its checkpoint (a folder, hub id or URL), or neither"
            )
        if self.clip is not None and not self.naming:
            raise ValueError(f"clip {redact(self.clip)} names segments: give names, or a caption field")
        names_segments = stages is not None and any(stage in NAMING for stage in stages)
        if stages is not None and names_segments and not self.naming:
            raise ValueError(f"method {','.join(stages)} names segments: give names, or a caption field")
        if stages is not None and self.naming and not names_segments:
            raise ValueError(
                f"method {','.join(stages)} names no segments, but names are given: add {' or '.join(NAMING)}"
            )

    def plain(self) -> dict[str, Any]:
        """Return all settings as plain values, as run.json and the fingerprint hold them, with a flat `method`."""
        return dataclasses.asdict(self) | {"method": self.method.flat()}

    @property
    def formats(self) -> tuple[Format, ...]:
        """`format` as a tuple."""
        return ("parquet",) if self.format == "parquet" else ("parquet", "webdataset")


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How a worker runs. These may change the last bits of a float and are recorded in run.json as its environment."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: cuda where the cluster or this machine has it, else cpu."""
    batch_size: int = 1
    """Images in one pass of the model; short batches are padded."""
    threads: int = 1
    """CPU threads of the model in each worker."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.threads < 1:
            raise ValueError(f"batch size {self.batch_size}, threads {self.threads}: expected 1 or more of each")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run is carried out; none of it changes a label."""

    workers: int | str | None = None
    """Actors: a number; or MIN:MAX, up to MAX while shards wait, so that an autoscaler sees what is wanted, and an
    error where fewer than MIN come. Pools of several kinds: "1:8 gpus=1 ray.io/accelerator-type=A100; 0:32 gpus=0.5
    batch=4", where other numbers are Ray resources and other words labels of Ray nodes. Default: one per GPU, else one
    for every `threads` CPU cores, of all nodes that are there."""
    no_ray: bool = False
    """Label in this process, without Ray, workers and deadlines."""
    address: str | None = None
    """Of a Ray cluster, or local; default: the one that Ray finds, else a local Ray on this machine."""
    gpus_per_worker: float = 1.0
    """Of Ray's GPUs where the device is cuda; a fraction lets workers share one."""
    shard_timeout: float = 7200.0
    """Seconds for one attempt at a shard; then its worker is killed and the shard is tried again."""
    start_timeout: float = 600.0
    """Seconds without any worker, or with fewer than MIN, until the run fails; and for one that has a place, to load
    its model."""
    store_timeout: float = 300.0
    """Seconds for which a store may fail to answer; it is asked again and again meanwhile."""
    retry_failed: bool = False
    """Do again what failed for reasons that may have passed (a store, a lost worker, a file that could not be opened),
    and nothing else."""
    log_format: Literal["text", "json"] = "text"
    """Of the lines that workers log in Ray's session logs and the driver on standard error: with json, an object a
    line with shard, attempt, host and process, no bar, and a line for each shard."""
    overwrite: bool = False
    """Delete what an earlier run left in OUT and start over."""

    def __post_init__(self) -> None:
        parse_worker_specs(self.workers, WorkerSpec())  # raises what is wrong with them, before anything has begun
