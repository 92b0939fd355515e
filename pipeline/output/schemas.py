"""The schemas of the JSON files in OUT, DEST and MODEL: one validated reader for each of them.

The bounds exclude only values that no run can write. Fields that were added to a file later have defaults, so that the
files of earlier versions are read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from pipeline.bounded_json import MAX_INTEGER, InvalidFile, check_schema, parse_checked, parse_json

RECORD_BYTES = 2**20
"""Largest commit or failure record; `Storage.read_small` reads no more."""
DOCUMENT_BYTES = 2**24
"""Largest run.json, progress.json, export.json or train.json: a run may have names for 100,000 classes."""

Count = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
Time = Annotated[float, Meta(ge=0, le=2.5e11)]
"""Seconds since the epoch, up to the year 9892."""
Share = Annotated[float, Meta(ge=0, le=1)]
Name = Annotated[str, Meta(min_length=1, max_length=1024)]
ShardName = Annotated[str, Meta(pattern=r"\A[^/\x00\n]{1,255}\Z")]
"""Name of a shard. It becomes part of paths that are read and deleted."""
LabelPath = Annotated[str, Meta(pattern=r"\A(?:labels/[^/\x00]{1,255}\.parquet|webdataset/[^/\x00]{1,255}\.tar)\Z")]
"""Path of a label shard's file below OUT."""


class CommittedFile(Struct, forbid_unknown_fields=True, frozen=True):
    """A file that a commit record names."""

    bytes: Count
    sha256: Annotated[str, Meta(max_length=64)]


class RecordSchema(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A commit record or the record of a failed shard; `pipeline.output.commit.Commit` describes its fields."""

    shard: ShardName
    state: Literal["done", "failed"]
    fingerprint: Annotated[str, Meta(max_length=64)]
    attempt: Count
    inputs: Annotated[str, Meta(max_length=64)] = ""
    rows: Count = 0
    counts: dict[Name, Count] = {}
    files: dict[LabelPath, CommittedFile] = {}
    error: str = ""
    transient: bool = msgspec.field(default=False, name="passing")
    seconds: dict[Name, Seconds] = {}
    started: Time = 0.0
    finished: Time = 0.0
    worker: str = ""
    batch_size: Count = 0
    notes: Annotated[tuple[str, ...], Meta(max_length=100)] = ()


class LeftOutSchema(Struct, forbid_unknown_fields=True, frozen=True):
    """Files of SRC that were not read, in run.json."""

    count: Count
    examples: Annotated[list[str], Meta(max_length=10)]


class ManifestSchema(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """run.json; `pipeline.output.manifest.Manifest` describes its fields."""

    source: Annotated[str, Meta(min_length=1)]
    settings: dict[str, Any]
    model_sha256: Annotated[str, Meta(max_length=256)]
    resolved: dict[str, Any]
    environment: dict[str, Any]
    fingerprint: Annotated[str, Meta(max_length=64)]
    shards: Count = 0
    listing: Annotated[str, Meta(max_length=64)] = ""
    left_out: Annotated[dict[Name, LeftOutSchema], Meta(max_length=100)] = {}


class NamingSchema(Struct, frozen=True):
    """The settings of a run's names, as far as readers of the run use them."""

    names: list[str] = []


class SettingsSchema(Struct, frozen=True, kw_only=True):
    """The settings in run.json. Settings that this version does not know are kept as they are."""

    model: Name
    revision: str | None
    image_field: str | None
    samples_per_shard: Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
    vae: str | None = None
    clip: str | None = None
    affinity: str | None = None
    network: str | None = None
    references: str | None = None
    key_field: str | None = None
    dtype: str = "float32"
    method: dict[str, Any] = {}
    naming: NamingSchema = NamingSchema()
    format: str = "parquet"
    include_image: bool = False
    max_pixels: Annotated[int, Meta(ge=1, le=MAX_INTEGER)] = 1


class ResolvedSchema(Struct, frozen=True, kw_only=True):
    """What the checkpoint of a run filled in, as far as readers of the run use it."""

    timestep: Annotated[int, Meta(ge=0, le=100_000)] = 0
    resolution: Annotated[int, Meta(ge=1, le=65_536)] = 1
    tau: list[float] = []
    method: list[str] = []
    affinity: str = ""
    references: str = ""


class ShardInFlightSchema(Struct, forbid_unknown_fields=True, frozen=True):
    """A shard in flight in progress.json."""

    shard: str
    attempt: Count
    worker: str
    seconds: Seconds
    samples: Count
    waiting: str


class NodeSchema(Struct, forbid_unknown_fields=True, frozen=True):
    """The workers of a host in progress.json."""

    workers: Count
    gpu: str


class ProgressSchema(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """progress.json; `pipeline.executor.progress_file.ProgressReport` describes its fields."""

    state: Literal["running", "ended", "stopped"]
    written: Time
    started: Time
    host: str
    pid: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    todo: Count
    done: Count
    failed: Count
    waiting: Count
    images: Count
    rate: Seconds | None
    rate_seconds: Seconds
    left: Annotated[float, Meta(ge=0)] | None
    workers_ready: Count
    workers_asked: Count
    in_flight: list[ShardInFlightSchema] = msgspec.field(name="in_hand")
    driver_rss: Count
    worker_rss: Count
    gpu_memory: Count
    gpu_utilisation: Share | None = None
    gpu_memory_share: Share | None = None
    startup_seconds: Seconds | None = None
    nodes: dict[str, NodeSchema] = {}


class IntentSchema(Struct, frozen=True):
    """An intent; `pipeline.output.intents` describes it."""

    host: str
    pid: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    process_started: Time
    written: Time


class NetworkSchema(Struct, frozen=True):
    """config.json of a trained network."""

    target: Literal["segments", "classes"]
    dimensions: Annotated[int, Meta(ge=1, le=100_000)]
    size: Annotated[int, Meta(ge=32, le=16_384, multiple_of=32)]
    width: Annotated[int, Meta(ge=8, le=4096, multiple_of=8)] = 24
    class_names: list[str] = []
    network: Literal["unet", "segformer", "dinov2-linear", "vit", "denseclip"] = "unet"
    text_model: str | None = None
    text_sha256: str | None = None


class TrainingSchema(Struct, frozen=True):
    """The progress of a training, in the metadata of its checkpoint."""

    step: Count
    history: list[dict[str, float]]


def parse_record(data: bytes) -> RecordSchema:
    """Read the content of a commit or failure record. Raises InvalidFile."""
    if len(data) >= RECORD_BYTES:
        raise InvalidFile(f"is larger than {RECORD_BYTES} bytes")
    return parse_checked(data, RecordSchema)


def parse_manifest(data: bytes) -> ManifestSchema:
    """Read the content of run.json. Raises InvalidFile."""
    manifest = parse_checked(data, ManifestSchema)
    check_schema(manifest.settings, SettingsSchema, "settings")
    check_schema(manifest.resolved, ResolvedSchema, "resolved")
    return manifest


def parse_progress(data: bytes) -> ProgressSchema:
    """Read the content of progress.json. Raises InvalidFile."""
    return parse_checked(data, ProgressSchema)


def parse_network(data: bytes) -> NetworkSchema:
    """Read the config.json of a trained network. Raises InvalidFile."""
    return parse_checked(data, NetworkSchema)


def parse_training(text: str) -> TrainingSchema:
    """Read the progress of a training. Losses may be NaN. Raises InvalidFile."""
    return check_schema(parse_json(text, allow_nan=True), TrainingSchema)


def parse_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object with any keys. Raises InvalidFile."""
    return check_schema(parse_json(data), dict[str, Any])
