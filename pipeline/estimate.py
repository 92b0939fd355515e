"""Estimates of a run before it is started: how much it reads and writes, how long it takes, and what it costs.

Every quantity says what it rests on. Shards are counted, images are counted or extrapolated from a few shards, and the
speed is measured on a few images of SRC, by the same code that labels a run, unless it is given.
"""

from __future__ import annotations

import dataclasses
import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.errors import RunFailed
from pipeline.output.commit import read_commits
from pipeline.readers.find import find_files, shards_of
from pipeline.readers.read import read_shard
from pipeline.readers.samples import Sample, Shard, ShardKind
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import Storage
from pipeline.storage.remote_file import BLOCK_BYTES
from pipeline.storage.urls import split_url
from pipeline.wording import counted

SHARDS_SAMPLED = 3
"""Tar or Parquet files that are opened to estimate the number of images."""
SAMPLES_PER_TAR, BYTES_PER_TAR = 100, 2**24
"""A tar is read until both numbers are reached, or to its end."""
REQUESTS_PER_SHARD, REQUESTS_PER_FILE, KEYS_PER_LISTING = 14, 2, 1000
"""Requests for a shard in addition to those for its bytes, requests for an image file, and keys in one page of a
listing."""
LABEL_BYTES, RECORD_BYTES = 5500, 700
"""Bytes of OUT for each image if no image is labelled here, and for each shard; docs/cluster.md says how the first was
measured."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number of the estimate.

    Attributes:
        value: The number; None if it is not known.
        basis: What it rests on, for people: whether it was counted, listed, measured, extrapolated, given, computed or
            assumed, or is not known.
    """

    value: float | None
    basis: str


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a listing of SRC and the first samples of a few shards show.

    Attributes:
        kind: The kind of the shards.
        shards: Number of shards.
        files: Number of files.
        bytes: Size of the files in bytes.
        images: Number of images.
        samples: A few images.
    """

    kind: ShardKind
    shards: int
    files: int
    bytes: Quantity
    images: Quantity
    samples: Sequence[Sample]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The speed of one worker.

    Attributes:
        images_per_second: Images per second and worker.
        out_bytes: Bytes of OUT for an image.
    """

    images_per_second: Quantity
    out_bytes: Quantity


def survey_source(source: str, store: Storage, settings: LabelSettings, *, samples: int) -> Survey:
    """List SRC, and look into a few of its shards.

    Args:
        source: SRC.
        store: Options for the store of SRC.
        settings: The settings of the run.
        samples: Number of images to return.
    """
    files = find_files(source, store, image_field=settings.image_field)
    shards = shards_of(files, store, source, samples_per_shard=settings.samples_per_shard, key_field=settings.key_field)
    sizes = [file.size for listed in files.by_root.values() for file in listed]
    drawn = [shards[index * len(shards) // SHARDS_SAMPLED] for index in range(SHARDS_SAMPLED)]
    drawn = list({shard.name: shard for shard in drawn}.values())
    per_shard = -(-samples // len(drawn))
    taken = [sample for shard in drawn for sample in islice(_readable(shard, store, settings), per_shard)]
    total, images = _count(files.kind, shards, drawn, sizes, store, settings)
    return Survey(
        kind=files.kind, shards=len(shards), files=len(sizes), bytes=total, images=images, samples=taken[:samples]
    )


def _readable(shard: Shard, store: Storage, settings: LabelSettings) -> Iterator[Sample]:
    with closing(read_shard(shard, store, image_field=settings.image_field)) as samples:  # type: ignore[type-var]
        yield from (sample for sample in samples if sample.image is not None)


def _count(
    kind: ShardKind,
    shards: Sequence[Shard],
    drawn: Sequence[Shard],
    sizes: Sequence[int],
    store: Storage,
    settings: LabelSettings,
) -> tuple[Quantity, Quantity]:
    """Return the bytes and the images of all shards."""
    if kind == "images":
        return Quantity(value=sum(sizes), basis="listed"), Quantity(value=len(sizes), basis="counted")
    counts = [_look_into(shard, store, settings) for shard in drawn]
    images, read = sum(count.images for count in counts), sum(count.bytes for count in counts)
    is_complete = len(drawn) == len(shards) and all(count.is_complete for count in counts)
    basis = "counted" if is_complete else f"extrapolated from {counted(len(drawn), 'shard')}"
    known = all(sizes)  # the files of a brace range are not listed, so their sizes are 0
    total = sum(sizes) if known else sum(count.size for count in counts) * len(shards) // len(drawn)
    size = Quantity(value=total, basis="listed" if known else f"extrapolated from {counted(len(drawn), 'shard')}")
    return size, Quantity(value=round(images * total / read) if read else 0, basis=basis)


@dataclass(frozen=True, kw_only=True)
class _ShardCount:
    """Images in the first bytes of a shard, the number of those bytes, and the size of the shard."""

    images: int
    bytes: int
    size: int
    is_complete: bool


def _look_into(shard: Shard, store: Storage, settings: LabelSettings) -> _ShardCount:
    """Count the rows of a Parquet file, or the samples in the beginning of a tar."""
    folder, name = split_url(shard.url)
    size = store.at(folder).stat(name).size
    with store.at(folder).open(name) as file:
        if shard.kind == "parquet":
            import pyarrow.parquet as pq  # imported late, as the readers do

            return _ShardCount(images=pq.ParquetFile(file).metadata.num_rows, bytes=size, size=size, is_complete=True)
        from pipeline.readers.tar import read_tar

        images = 0
        with closing(read_tar(file, shard.url, settings.image_field)) as samples:  # type: ignore[type-var]
            for _ in samples:
                images += 1
                if images >= SAMPLES_PER_TAR and file.tell() >= BYTES_PER_TAR:
                    return _ShardCount(images=images, bytes=file.tell(), size=size, is_complete=False)
        return _ShardCount(images=images, bytes=size, size=size, is_complete=True)


def measure_speed(
    survey: Survey, settings: LabelSettings, worker: WorkerSettings, options: Mapping[str, Any] | None
) -> Speed:
    """Label the images of the survey into a temporary folder in this process, and return the speed.

    The first image is labelled in a shard of its own before, so that loading the model and warming up do not count.

    Raises:
        RunFailed: No image of the survey can be labelled.
    """
    from pipeline.executor.driver import label_run

    plain = dataclasses.replace(settings, image_field=None, key_field=None)
    with tempfile.TemporaryDirectory(prefix="diffseg-estimate-") as folder:
        source, out = Path(folder) / "in", Path(folder) / "out"
        source.mkdir()
        _write_tar(source / "0.tar", survey.samples[:1], survey.kind)
        _write_tar(source / "1.tar", survey.samples, survey.kind)
        run = RunSettings(no_ray=True)
        label_run(str(source), str(out), settings=plain, worker=worker, run=run, source_options=options)
        record = read_commits(Storage(url=str(out))).get("1")
    if record is None or not record.counts.get("ok"):
        raise RunFailed(f"none of {counted(len(survey.samples), 'image')} of SRC could be labelled")
    basis = f"measured on {counted(record.rows, 'image')} here"
    out_bytes = sum(file["bytes"] for file in record.files.values()) / record.rows
    return Speed(
        images_per_second=Quantity(value=record.rows / record.seconds["total"], basis=basis),
        out_bytes=Quantity(value=out_bytes, basis=basis),
    )


def given_speed(images_per_second: float | None) -> Speed:
    """Return the speed that the user gives, or none, with the assumed size of label maps."""
    basis = "not known" if images_per_second is None else "given"
    return Speed(
        images_per_second=Quantity(value=images_per_second, basis=basis),
        out_bytes=Quantity(value=LABEL_BYTES, basis="assumed, as of COCO's photographs"),
    )


def _write_tar(path: Path, samples: Sequence[Sample], kind: ShardKind) -> None:
    """Write samples to a WebDataset tar, with their text fields, because --names may read one of these."""
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            fields = json.loads(sample.meta) if sample.meta else {}
            texts = fields if kind == "tar" else {"json": fields}
            members = {name: value if isinstance(value, str) else json.dumps(value) for name, value in texts.items()}
            contents = {"jpg": sample.image or b""} | {name: text.encode() for name, text in members.items() if text}
            for extension, data in contents.items():
                member = tarfile.TarInfo(f"{number:06d}.{extension}")
                member.size = len(data)
                tar.addfile(member, BytesIO(data))


def estimate(survey: Survey, speed: Speed, *, workers: int, price: float | None) -> dict[str, Quantity]:
    """Return the quantities of a run by name, the sizes in bytes.

    Args:
        survey: What SRC holds.
        speed: The speed of one worker.
        workers: Number of workers.
        price: Price of one worker for an hour; None if it is not known.
    """
    images, rate = survey.images.value or 0, speed.images_per_second.value
    worker_hours = images / rate / 3600 if rate else None
    listings = 2 * -(-survey.files // KEYS_PER_LISTING)
    files = survey.files * REQUESTS_PER_FILE if survey.kind == "images" else (survey.bytes.value or 0) / BLOCK_BYTES
    out_bytes = images * (speed.out_bytes.value or 0) + survey.shards * RECORD_BYTES
    computed = "computed" if rate else "not known"
    return {
        "shards": Quantity(value=survey.shards, basis="counted"),
        "images": survey.images,
        "source_bytes": survey.bytes,
        "requests": Quantity(value=listings + survey.shards * REQUESTS_PER_SHARD + round(files), basis="computed"),
        "out_bytes": Quantity(value=round(out_bytes), basis=speed.out_bytes.basis),
        "images_per_second": speed.images_per_second,
        "worker_hours": Quantity(value=worker_hours, basis=computed),
        "seconds": Quantity(
            value=None if worker_hours is None else 3600 * worker_hours / min(workers, max(1, survey.shards)),
            basis=f"{computed} for {counted(workers, 'worker')}, without start-up" if rate else computed,
        ),
        "cost": Quantity(
            value=None if worker_hours is None or price is None else worker_hours * price,
            basis="not known" if price is None else f"{computed} at {price:g} an hour",
        ),
    }
