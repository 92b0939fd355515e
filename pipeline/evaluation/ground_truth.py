"""Find the ground truth that a user names, and read it: files in a layout, or a field of shards."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.layouts import LAYOUTS, Layout, LayoutName, Segments, TruthError, recognise
from pipeline.output.manifest import PATH as RUN_PATH
from pipeline.prefetch import map_ahead
from pipeline.readers.find import find_shards, split_url
from pipeline.readers.read import read_shard
from pipeline.readers.samples import MAX_SAMPLE_BYTES, Shard
from pipeline.storage import SourceError, Storage

Maps = list[np.ndarray]
"""uint16 [H, W], 65535 where it says nothing; one for each annotator."""

FILES_AT_ONCE = 8
_EVERY_FILE = 10**9  # a truth's files are one list, whatever a run makes of its images


@dataclass(frozen=True, kw_only=True)
class TruthPlace:
    """Where one truth lies. shard: that holds it; None: it is a file. name: its path, or its key in the shard.

    segments: of a panoptic PNG, what the JSON says of it.
    """

    name: str
    shard: Shard | None = None
    segments: Segments | None = None


@dataclass(frozen=True, kw_only=True)
class Truth:
    """All truths that were found: where each lies, by its key. Cheap to send but for `places`, of which send a part.

    storage: of the files; of shards, how they are reached. layout: by its name in `LAYOUTS`. field: of the shards'
    samples. ignore: ids; None: the layout's own.
    """

    storage: Storage
    layout_name: LayoutName
    field: str | None
    ignore: tuple[int, ...] | None
    places: dict[str, TruthPlace]

    @property
    def layout(self) -> Layout:
        """How the bytes of a truth are read."""
        return LAYOUTS[self.layout_name].ignoring(self.ignore)

    def read(self, places: Mapping[int, TruthPlace]) -> Iterator[tuple[int, Maps | TruthError]]:
        """The label maps of each by its number, or what is wrong with it; those of shards in their order there."""
        files = [(number, place) for number, place in places.items() if place.shard is None]
        yield from map_ahead(self._read_file, files, threads=FILES_AT_ONCE, ahead=FILES_AT_ONCE)
        by_shard: defaultdict[str, dict[str, int]] = defaultdict(dict)
        shards = {place.shard.name: place.shard for place in places.values() if place.shard}
        for number, place in places.items():
            if place.shard:
                by_shard[place.shard.name][place.name] = number
        for name, numbers in by_shard.items():
            yield from self._read_shard(shards[name], numbers)

    def _read_shard(self, shard: Shard, numbers: dict[str, int]) -> Iterator[tuple[int, Maps | TruthError]]:
        for sample in read_shard(shard, self.storage, image_field=self.field):
            shown = f"{shard.name}: {sample.key}"
            if sample.key not in numbers:
                continue
            number = numbers.pop(sample.key)
            if sample.image is None:
                yield number, TruthError(f"{shown}: {sample.error}")
            else:
                yield number, self._decoded(shown, sample.image)
        for key, number in numbers.items():
            yield number, TruthError(f"{shard.name}: {key}: is no longer there")

    def _read_file(self, one: tuple[int, TruthPlace]) -> tuple[int, Maps | TruthError]:
        number, place = one
        shown = self.storage.joined(place.name)
        try:
            with self.storage.open(place.name) as file:
                data = file.read(MAX_SAMPLE_BYTES + 1)
        except (FileNotFoundError, PermissionError) as error:
            return number, TruthError(f"{shown}: cannot be opened ({type(error).__name__})")
        if len(data) > MAX_SAMPLE_BYTES:
            return number, TruthError(f"{shown}: has more than the {MAX_SAMPLE_BYTES} bytes that are read")
        return number, self._decoded(shown, data, place.segments)

    def _decoded(self, shown: str, data: bytes, segments: Segments | None = None) -> Maps | TruthError:
        try:
            return self.layout.decode(data, segments)
        except TruthError as error:
            return TruthError(f"{shown}: {error}")


def find_truth(
    url: str,
    store: Storage,
    *,
    layout: LayoutName | None = None,
    field: str | None = None,
    ignore: tuple[int, ...] | None = None,
) -> Truth:
    """Every truth at a folder, glob or URL of files, tars or Parquet files; at the OUT of another run; at a JSON.

    store: how its store is reached; its URL does not matter. layout: None: what the paths tell. field: the member
    extension (tar) or column (Parquet) of the truth; ignore: ids that count for nothing, None for the layout's own.
    Raises SourceError.
    """
    if store.at(url).is_file(RUN_PATH):
        return find_truth(f"{store.at(url).url}/labels", store, field="mask", ignore=ignore)
    panoptic = _panoptic_json(url, store, layout)
    if panoptic:
        places = _panoptic_places(store.at(split_url(panoptic)[0]), split_url(panoptic)[1])
        root, layout = panoptic.removesuffix(".json"), "coco-panoptic"
    elif layout == "bsds500" or (layout is None and _matlab_files(store.at(url))):
        root, layout = url, "bsds500"
        places = _file_places(store.at(url), _matlab_files(store.at(url)), layout)
    else:
        shards = find_shards(url, store, samples_per_shard=_EVERY_FILE)
        root = shards[0].url
        if shards[0].kind == "images":
            layout = recognise(_full_paths(root, shards[0].files)) if layout is None else layout
            places = _file_places(store.at(root), list(shards[0].files), layout)
        else:
            layout = "labels" if layout is None else layout
            places = _shard_places(shards, store, field)
    if not places:
        raise SourceError(f"{store.at(url).redacted}: holds no truths of the layout {layout}; name another --layout")
    return Truth(storage=store.at(root), layout_name=layout, field=field, ignore=ignore, places=places)


def _full_paths(root: str, files: Iterable[str]) -> list[str]:
    """With the last part of the root, which may be what tells the layout."""
    name = root.rstrip("/").rpartition("/")[2]
    return [f"{name}/{path}" for path in files]


def _matlab_files(folder: Storage) -> list[str]:
    return [path for path, _ in folder.files() if path.endswith(".mat")]


def _file_places(folder: Storage, files: list[str], layout: LayoutName) -> dict[str, TruthPlace]:
    """Those whose paths are known, else all with the layout's extension."""
    plan = LAYOUTS[layout]
    known = [f for f, full in zip(files, _full_paths(folder.url, files), strict=True) if re.search(plan.known, full)]
    taken = known or [path for path in files if path.endswith(f".{plan.extension}")]
    return {path: TruthPlace(name=path) for path in taken}


def _shard_places(shards: list[Shard], store: Storage, field: str | None) -> dict[str, TruthPlace]:
    """By key. Samples without the field have no truth; a key of several shards is told by its shard's name too."""
    places: dict[str, TruthPlace] = {}
    for shard in shards:
        for sample in read_shard(shard, store, image_field=field):
            if sample.status != "no_image":
                key = f"{shard.name}/{sample.key}" if sample.key in places else sample.key
                places[key] = TruthPlace(name=sample.key, shard=shard)
    return places


def _panoptic_json(url: str, store: Storage, layout: LayoutName | None) -> str | None:
    """The JSON of panoptic PNGs, which lie in a folder of its name beside it."""
    if layout not in (None, "coco-panoptic"):
        return None
    url = url.rstrip("/")
    if url.endswith(".json"):
        return url
    folder, name = split_url(url)
    is_named = layout == "coco-panoptic" or name.startswith("panoptic_")
    if is_named and store.at(folder).is_file(f"{name}.json"):
        return f"{url}.json"
    there = [path for path, _ in store.at(url).files(depth=1) if re.fullmatch(r"panoptic_\w+\.json", path)]
    if len(there) > 1:
        raise SourceError(f"{store.at(url).redacted}: holds {', '.join(there)}; name one of them as TRUTH")
    if not there and layout == "coco-panoptic":
        raise SourceError(
            f"{store.at(url).redacted}: no panoptic_….json beside or in it, which tells the categories of the segments"
        )
    return f"{url}/{there[0]}" if there else None


def _panoptic_places(folder: Storage, name: str) -> dict[str, TruthPlace]:
    try:
        annotations = json.loads(folder.read_bytes(name))["annotations"]
        segments = {
            one["file_name"]: {int(part["id"]): int(part["category_id"]) for part in one["segments_info"]}
            for one in annotations
        }
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{folder.joined(name)}: is no panoptic JSON (annotations of file_name and segments_info): {error!r}"
        ) from error
    return {path: TruthPlace(name=path, segments=found) for path, found in segments.items()}
