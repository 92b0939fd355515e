"""Find and read ground truth: files in a known layout, or a field of tar or Parquet shards."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.decoders import GroundTruthError, Segments
from pipeline.evaluation.layouts import LAYOUTS, Layout, LayoutName, recognise
from pipeline.output.manifest import is_run
from pipeline.output.writer import LABELS_FOLDER
from pipeline.prefetch import prefetch_map
from pipeline.readers.find import find_files, shards_of
from pipeline.readers.read import read_shard
from pipeline.readers.samples import DEFAULT_LIMITS, Shard
from pipeline.storage import SourceError, Storage
from pipeline.storage.urls import split_url

LabelMaps = list[np.ndarray]
"""Class ids, uint16 [H, W], 65535 where pixels are not scored; one label map for each annotator."""

READ_THREADS = 8
"""Ground-truth files that are read in parallel."""


@dataclass(frozen=True, kw_only=True)
class GroundTruthLocation:
    """Where the ground truth of one image is stored.

    Attributes:
        name: Path of the file, or key of the sample in `shard`.
        shard: Shard that holds the sample; None for a file.
        segments: Categories of the segments of a panoptic PNG, from its JSON file.
    """

    name: str
    shard: Shard | None = None
    segments: Segments | None = None


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """Ground truth of many images, located but not read. Cheap to pickle once `locations` is empty.

    Attributes:
        storage: Storage of the files; for shards, the storage options to read them with.
        layout_name: Key in `LAYOUTS`.
        field: Extension (tar) or column (Parquet) that holds the ground truth in a sample.
        ignore: Ids that are not scored; None for the layout's own.
        locations: Location of each ground-truth map by path or sample key.
        merges: Class of a protocol for each class of the layout; None keeps the classes. See `Layout.merges`.
    """

    storage: Storage
    layout_name: LayoutName
    field: str | None
    ignore: tuple[int, ...] | None
    locations: dict[str, GroundTruthLocation]
    merges: np.ndarray | None = None

    @property
    def layout(self) -> Layout:
        """The layout that decodes the ground truth, with `ignore` and `merges` applied."""
        layout = LAYOUTS[self.layout_name].with_ignored_ids(self.ignore)
        return layout if self.merges is None else layout.merged(self.merges)

    def read(self, locations: Mapping[int, GroundTruthLocation]) -> Iterator[tuple[int, LabelMaps | GroundTruthError]]:
        """Read ground truth, files first, then shard by shard in the order of the samples.

        Args:
            locations: What to read, by row number.

        Yields:
            Each row number with the label maps of all annotators, or with the error that made them unreadable.
        """
        files = [(number, location) for number, location in locations.items() if location.shard is None]
        yield from prefetch_map(self._read_file, files, threads=READ_THREADS, ahead=READ_THREADS)
        numbers_by_shard: defaultdict[str, dict[str, int]] = defaultdict(dict)
        shards = {location.shard.name: location.shard for location in locations.values() if location.shard}
        for number, location in locations.items():
            if location.shard:
                numbers_by_shard[location.shard.name][location.name] = number
        for name, numbers in numbers_by_shard.items():
            yield from self._read_shard(shards[name], numbers)

    def _read_shard(self, shard: Shard, numbers: dict[str, int]) -> Iterator[tuple[int, LabelMaps | GroundTruthError]]:
        for sample in read_shard(shard, self.storage, image_field=self.field):
            shown = f"{shard.name}: {sample.key}"
            if sample.key not in numbers:
                continue
            number = numbers.pop(sample.key)
            if sample.image is None:
                yield number, GroundTruthError(f"{shown}: {sample.error}")
            else:
                yield number, self._decode(shown, sample.image)
        for key, number in numbers.items():
            yield number, GroundTruthError(f"{shard.name}: {key}: no longer exists")

    def _read_file(
        self, numbered_location: tuple[int, GroundTruthLocation]
    ) -> tuple[int, LabelMaps | GroundTruthError]:
        number, location = numbered_location
        shown = self.storage.joined(location.name)
        try:
            with self.storage.open(location.name) as file:
                data = file.read(DEFAULT_LIMITS.max_sample_bytes + 1)
        except (FileNotFoundError, PermissionError) as error:
            return number, GroundTruthError(f"{shown}: cannot be opened ({type(error).__name__})")
        if len(data) > DEFAULT_LIMITS.max_sample_bytes:
            return number, GroundTruthError(
                f"{shown}: is larger than the limit of {DEFAULT_LIMITS.max_sample_bytes} bytes"
            )
        return number, self._decode(shown, data, location.segments)

    def _decode(self, shown: str, data: bytes, segments: Segments | None = None) -> LabelMaps | GroundTruthError:
        try:
            return self.layout.decode(data, segments)
        except GroundTruthError as error:
            return GroundTruthError(f"{shown}: {error}")


def find_ground_truth(
    url: str,
    store: Storage,
    *,
    layout: LayoutName | None = None,
    field: str | None = None,
    ignore: tuple[int, ...] | None = None,
) -> GroundTruth:
    """Locate all ground truth at a URL.

    Args:
        url: Folder, glob or URL of files, tars or Parquet files; a panoptic JSON file; or OUT of another run.
        store: Supplies the storage options; its URL is not used.
        layout: Layout of the files; None to recognise it by their paths.
        field: Extension (tar) or column (Parquet) that holds the ground truth in a sample.
        ignore: Ids that are not scored; None for the layout's own.

    Raises:
        SourceError: Nothing was found, or the panoptic JSON is missing, ambiguous or malformed.
    """
    if is_run(store.at(url)):
        return find_ground_truth(f"{store.at(url).url}/{LABELS_FOLDER}", store, field="mask", ignore=ignore)
    panoptic = _panoptic_json(url, store, layout)
    if panoptic:
        locations = _panoptic_locations(store.at(split_url(panoptic)[0]), split_url(panoptic)[1])
        root, layout = panoptic.removesuffix(".json"), "coco-panoptic"
    elif layout == "bsds500" or (layout is None and _matlab_files(store.at(url))):
        root, layout = url, "bsds500"
        locations = _file_locations(store.at(url), _matlab_files(store.at(url)), layout)
    else:
        files = find_files(url, store)
        if files.kind == "images":
            folder, listed = files.single_root()
            root, paths = store.at(folder).url, [file.path for file in listed]
            layout = recognise(_with_root_name(root, paths)) if layout is None else layout
            locations = _file_locations(store.at(root), paths, layout)
        else:
            shards = shards_of(files, store, url, samples_per_shard=1)
            root = shards[0].url
            layout = "labels" if layout is None else layout
            locations = _sample_locations(shards, store, field)
    if not locations:
        raise SourceError(
            f"{store.at(url).redacted}: no ground truth in the layout {layout} was found. Looked for "
            f"{_expected(layout)}; found {_summary(store.at(root))}. Set another --layout, or name another folder"
        )
    return GroundTruth(storage=store.at(root), layout_name=layout, field=field, ignore=ignore, locations=locations)


def _expected(layout_name: LayoutName) -> str:
    """Describe the files of a layout for a message."""
    layout = LAYOUTS[layout_name]
    return " or ".join(f"*{layout.suffix}.{extension}" for extension in layout.extensions)


def _summary(folder: Storage) -> str:
    """Count the files of a folder by extension for a message."""
    counts = Counter(path.rpartition(".")[2].lower() for path, _ in folder.files())
    return ", ".join(f"{count} .{extension}" for extension, count in counts.most_common(5)) or "no files"


def _with_root_name(root: str, files: Iterable[str]) -> list[str]:
    """Prefix paths with the last component of the root, which can be what identifies the layout."""
    name = root.rstrip("/").rpartition("/")[2]
    return [f"{name}/{path}" for path in files]


def _matlab_files(folder: Storage) -> list[str]:
    return [path for path, _ in folder.files() if path.endswith(".mat")]


def _file_locations(folder: Storage, files: list[str], layout_name: LayoutName) -> dict[str, GroundTruthLocation]:
    """Locate the files whose paths match the layout, or else all files with its extensions.

    Raises:
        SourceError: No path matches the layout, and the paths follow another one.
    """
    layout = LAYOUTS[layout_name]
    full_paths = _with_root_name(folder.url, files)
    matching = [file for file, path in zip(files, full_paths, strict=True) if re.search(layout.path_pattern, path)]
    other = recognise(full_paths)
    if not matching and files and other not in ("labels", layout_name):
        raise SourceError(
            f"{folder.redacted}: holds no files of the layout {layout_name}, but files of the layout {other} "
            f"({files[0]} …); set --layout {other}"
        )
    used = matching or [path for path in files if path.lower().endswith(tuple(f".{end}" for end in layout.extensions))]
    return {path: GroundTruthLocation(name=path) for path in used}


def _sample_locations(shards: list[Shard], store: Storage, field: str | None) -> dict[str, GroundTruthLocation]:
    """Locate the samples that have the field, by key; a key that was seen before is prefixed with its shard's name."""
    locations: dict[str, GroundTruthLocation] = {}
    for shard in shards:
        for sample in read_shard(shard, store, image_field=field):
            if sample.status != "no_image":
                key = f"{shard.name}/{sample.key}" if sample.key in locations else sample.key
                locations[key] = GroundTruthLocation(name=sample.key, shard=shard)
    return locations


def _panoptic_json(url: str, store: Storage, layout: LayoutName | None) -> str | None:
    """Return the URL of the panoptic JSON file; its PNGs are in a folder of the same name beside it."""
    if layout not in (None, "coco-panoptic"):
        return None
    url = url.rstrip("/")
    if url.endswith(".json"):
        return url
    folder, name = split_url(url)
    may_be_panoptic = layout == "coco-panoptic" or name.startswith("panoptic_")
    if may_be_panoptic and store.at(folder).is_file(f"{name}.json"):
        return f"{url}.json"
    files = [path for path, _ in store.at(url).files(depth=1) if re.fullmatch(r"panoptic_\w+\.json", path)]
    if len(files) > 1:
        raise SourceError(f"{store.at(url).redacted}: holds {', '.join(files)}; pass one of them as TRUTH")
    if not files and layout == "coco-panoptic":
        raise SourceError(
            f"{store.at(url).redacted}: no panoptic_….json in it or beside it; it holds the segments' categories"
        )
    return f"{url}/{files[0]}" if files else None


def _panoptic_locations(folder: Storage, name: str) -> dict[str, GroundTruthLocation]:
    try:
        annotations = json.loads(folder.read_bytes(name))["annotations"]
        segments_by_file = {
            annotation["file_name"]: {
                int(segment["id"]): int(segment["category_id"]) for segment in annotation["segments_info"]
            }
            for annotation in annotations
        }
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{folder.joined(name)}: is not a panoptic JSON (annotations with file_name and segments_info): {error!r}"
        ) from error
    return {path: GroundTruthLocation(name=path, segments=segments) for path, segments in segments_by_file.items()}
