"""Learn affinity from the labels of a run, with its model frozen; see `diffseg.affinity.state`.

    FOLDER/NAME.parts/<shard>.safetensors   what the model shows of the images of a label shard
    FOLDER/NAME                             the state, once all parts are there
    FOLDER/NAME.json                        what was learned and how well it tells; written last

Parts are made by workers, one label shard at a time, and each is whole or not there: the same command goes on with
those that are missing. From them the state is learned in one go, always the same.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np

from pipeline.digest import short_digest
from pipeline.output.commit import read_run_commits
from pipeline.output.manifest import Manifest
from pipeline.output.reader import label_rows
from pipeline.output.rows import decode_mask
from pipeline.output.source_images import read_source_images
from pipeline.readers.samples import Shard
from pipeline.settings import LabelSettings, RunSettings
from pipeline.storage import SourceError, Storage
from pipeline.weights import find_weights

Kind = Literal["heads", "features"]
HELD_OUT = 5
"""One image of so many is held out, to tell how well what was learned tells on others."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """All that determines what is learned, apart from the run itself."""

    kind: Kind
    images: int = 300
    confidence: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind {self.kind!r}: expected {' or '.join(get_args(Kind))}")
        if self.images < 2 or not 0 <= self.confidence <= 1:
            raise ValueError(
                f"images {self.images}, confidence {self.confidence}: expected 2 or more, and a number from 0 to 1"
            )


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some images of one label shard. source: the shard that was labelled. first: how many images other parts have."""

    shard: str
    source: Shard
    first: int
    count: int


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """All that a worker must be told. parts: their folder. source: how the model's store is reached."""

    settings: FitSettings
    model: LabelSettings
    timestep: int
    resolution: int
    fingerprint: str
    out: Storage
    parts: Storage
    source: Storage
    image_field: str | None
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What was learned. auc: how often a held-out pair that is alike has the higher affinity; 0.5 at chance,
    None without held-out pairs of both kinds.

    images, held_out: how many there were to learn from, and to tell on. problems: why others were left out.
    """

    fingerprint: str
    kind: str
    model: str
    model_sha256: str
    images: int
    held_out: int
    auc: float | None
    layout: Mapping[str, int]
    settings: Mapping[str, Any]
    problems: Sequence[str] = field(default_factory=list)


class Observer:
    """A worker: the model, and what it shows of the images of one part after another."""

    def __init__(self, job: FitJob) -> None:
        weights = find_weights(job.model, job.source)

        import torch

        from diffseg.model.backbone import Backbone
        from diffseg.model.checkpoint import load_checkpoint

        torch.set_num_threads(job.threads)
        with weights.named():
            checkpoint = load_checkpoint(
                weights.model, vae=weights.vae, device=job.device, dtype=getattr(torch, job.model.dtype)
            )
        self.job, self.backbone, self.kind = job, Backbone(checkpoint), kind_of(job.settings.kind)

    def observe(self, part: Part) -> str:
        """Write a part; its shard's name."""
        from safetensors.torch import save

        tensors: dict[str, Any] = {}
        problems: list[str] = []
        for number, image, labels in self._images(part, problems):
            pixels = self._pixels(image)
            found = self.kind.collect(
                self.backbone, pixels, labels, timestep=self.job.timestep, seed=self.job.settings.seed + number
            )
            if found is not None:
                tensors |= {f"{number}.{name}": value.contiguous() for name, value in found.items()}
        told = {"fingerprint": self.job.fingerprint, "problems": json.dumps(problems)}
        self.job.parts.write_bytes(_path(part.shard), save(tensors, metadata=told))
        return part.shard

    def _pixels(self, image: np.ndarray) -> Any:
        from diffseg.images.canvas import fit_image

        return fit_image(image, self.job.resolution, "resize", antialias=True).pixels[None]

    def _images(self, part: Part, problems: list[str]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Number, uint8 [H, W, 3] and int32 [H, W] labels of the images of a part that can be read."""
        rows = label_rows(self.job.out, part.shard, ("key", "index", "status", "mask", "segments"))
        good = (row for row in rows if row["status"] == "ok")
        wanted = {row["index"]: row for row in itertools.islice(good, part.count)}
        numbers = {place: part.first + count for count, place in enumerate(wanted)}
        keys = {place: row["key"] for place, row in wanted.items()}
        for place, image in read_source_images(part.source, keys, self.job.out, self.job.image_field):
            if isinstance(image, str):
                problems.append(image)
            else:
                yield numbers[place], image, labels_of(wanted[place], self.job.settings.confidence)


def kind_of(name: Kind) -> ModuleType:
    """The module that observes, learns and tells."""
    from diffseg.affinity import features as featureaffinity
    from diffseg.affinity import heads as headaffinity

    return {"heads": headaffinity, "features": featureaffinity}[name]


def labels_of(row: Mapping[str, Any], confidence: float) -> np.ndarray:
    """int32 [H, W] of a row: 0 is background, below 0 what is ignored or in a segment that is less sure than that.

    Classes where the run has names, so that two segments of one class are alike, else segments.
    """
    from diffseg.affinity.state import UNKNOWN

    mask = decode_mask(row["mask"])
    table = np.full(2**16, UNKNOWN, dtype=np.int32)
    for segment in row["segments"]:
        own = segment.get("class_id")
        if segment["confidence"] >= confidence:
            table[segment["id"]] = segment["id"] + 1 if own is None else own
    return table[mask]


def plan_parts(job: FitJob, manifest: Manifest, sources: Mapping[str, Shard]) -> list[Part]:
    """Label shards in a drawn order, as many as have the images that are asked for. Raises SourceError without any."""
    commits = read_run_commits(job.out, manifest).done
    done = {shard: commit.counts.get("ok", 0) for shard, commit in commits.items()}
    names = sorted(name for name, ok in done.items() if ok and name in sources)
    parts: list[Part] = []
    first = 0
    for place in np.random.default_rng(job.settings.seed).permutation(len(names)):
        if first >= job.settings.images:
            break
        name = names[place]
        count = min(done[name], job.settings.images - first)
        parts.append(Part(shard=name, source=sources[name], first=first, count=count))
        first += count
    if first < 2:
        raise SourceError(f"{job.out.redacted}: has {first} labelled images that can be found; 2 are the least")
    return parts


def fit(
    job: FitJob,
    parts: Sequence[Part],
    state: Storage,
    name: str,
    *,
    run: RunSettings,
    workers: int = 1,
    on_part: Callable[[], None] = lambda: None,
) -> FitReport:
    """Make the parts that are missing, learn from all of them, and write the state and the report.

    state, name: the folder and the file. Raises AffinityError or ValueError where there is nothing to learn from.
    """
    if (before := read_report(state, name)) is not None and before.fingerprint == job.fingerprint:
        return before
    missing = [part for part in parts if _read_part(job, part) is None]
    for _ in range(len(parts) - len(missing)):
        on_part()
    for _ in _observed(job, missing, run, workers):
        on_part()
    report, data = _learned(job, parts)
    state.write_bytes(name, data)
    state.write_bytes(f"{name}.json", json.dumps(asdict(report), indent=1, sort_keys=True).encode() + b"\n")
    for part in parts:
        job.parts.delete(_path(part.shard))
    return report


def read_report(state: Storage, name: str) -> FitReport | None:
    """What an earlier command has learned; None where it has not ended, or the state is not there."""
    try:
        told = json.loads(state.read_bytes(f"{name}.json"))
        return FitReport(**told) if state.is_file(name) else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def fingerprint_of(settings: FitSettings, manifest: Manifest) -> str:
    """16 hexadecimal digits of the run and of what is to be learned from it."""
    told = json.dumps([asdict(settings), manifest.fingerprint, manifest.shards], sort_keys=True)
    return short_digest(told)


def _observed(job: FitJob, parts: Sequence[Part], run: RunSettings, workers: int) -> Iterator[str]:
    if run.no_ray or not parts:
        observer = Observer(job) if parts else None
        yield from (observer.observe(part) for part in parts if observer is not None)
        return
    import ray
    from ray.util import ActorPool

    from pipeline.executor.cluster import connected

    with connected(run, ()):
        gpus = run.gpus_per_worker if job.device.startswith("cuda") else 0
        # an actor that dies is started again, and does its part again
        remote = ray.remote(Observer).options(num_cpus=job.threads, num_gpus=gpus, max_restarts=3, max_task_retries=3)
        pool = ActorPool([remote.remote(job) for _ in range(min(workers, len(parts)))])
        yield from pool.map_unordered(lambda actor, part: actor.observe.remote(part), list(parts))


def _learned(job: FitJob, parts: Sequence[Part]) -> tuple[FitReport, bytes]:
    import torch

    from diffseg.affinity.state import AffinityError, AffinityState, area_under_curve

    images: dict[int, dict[str, Any]] = {}
    problems: list[str] = []
    for part in parts:
        found = _read_part(job, part)
        assert found is not None
        tensors, told = found
        problems += json.loads(told["problems"])
        for key in tensors:
            number, _, own = key.partition(".")
            images.setdefault(int(number), {})[own] = tensors[key]
    held_out = [images[number] for number in sorted(images) if number % HELD_OUT == HELD_OUT - 1]
    seen = [images[number] for number in sorted(images) if number % HELD_OUT != HELD_OUT - 1]
    if not seen:
        raise AffinityError(
            f"no image has two labels near one another; {len(problems)} could not be read{_some(problems)}"
        )
    torch.set_num_threads(job.threads)  # the sums, and so the state, depend on it
    kind = kind_of(job.settings.kind)
    tensors, layout = kind.fit(seen, job.device)
    pairs = [kind.predict(tensors, each) for each in held_out]
    auc = area_under_curve(*(np.concatenate(each) for each in zip(*pairs, strict=True))) if pairs else math.nan
    weights = find_weights(job.model, job.source)
    state = AffinityState(
        kind=job.settings.kind,
        model=job.model.model,
        model_sha256=weights.fingerprint(),
        timestep=job.timestep,
        resolution=job.resolution,
        layout=layout,
        tensors=tensors,
    )
    report = FitReport(
        fingerprint=job.fingerprint,
        kind=state.kind,
        model=state.model,
        model_sha256=state.model_sha256,
        images=len(seen),
        held_out=len(held_out),
        auc=None if math.isnan(auc) else auc,
        layout=layout,
        settings=asdict(job.settings),
        problems=problems,
    )
    return report, state.to_bytes()


def _some(problems: Sequence[str]) -> str:
    return f", such as {problems[0]}" if problems else ""


def _path(shard: str) -> str:
    return f"{shard}.safetensors"


def _read_part(job: FitJob, part: Part) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Tensors and metadata of a part; None where it is not there, or was made of something else."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = job.parts.read_bytes(_path(part.shard))
        told = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        return (load(data), told) if told["fingerprint"] == job.fingerprint else None
    except (FileNotFoundError, SafetensorError, ValueError, KeyError):
        return None
