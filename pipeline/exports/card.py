"""The dataset card of an export to Hugging Face: YAML for the Hub, and a text for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.exports.items import Export
from pipeline.exports.tally import Part
from pipeline.output.manifest import PACKAGES
from pipeline.storage import redact

SPLITS: Mapping[Part, str] = {"train": "train", "val": "validation"}
"""Names of the parts on the Hub."""
UNNAMED_WARNING = (
    "The segments have no names: an id means something within its image only, and means nothing across images. Do not "
    "train a semantic segmentation network on these ids"
)
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")
_CLASSES_SHOWN = 1000


def dataset_card(export: Export, images_by_part: Mapping[Part, int]) -> str:
    """Return README.md of a data set with these numbers of images."""
    images = sum(images_by_part.values())
    names = [SPLITS[part] for part, count in images_by_part.items() if count]
    splits = "".join(f"  - split: {name}\n    path: data/{name}-*.parquet\n" for name in names)
    head = (
        f"---\nlicense: {json.dumps(export.license)}\ntask_categories:\n- image-segmentation\nsize_categories:\n"
        f"- {size_category(images)}\ntags:\n- diffseg\n- pseudo-labels\nconfigs:\n- config_name: default\n"
        f"  data_files:\n{splits}---\n"
    )
    return head + "\n".join(_paragraphs(export, images)) + "\n"


def size_category(images: int) -> str:
    """Return the Hub's name for the size of a data set."""
    return _SIZES[min(len(_SIZES) - 1, max(0, len(str(images)) - 3))]


def _paragraphs(export: Export, images: int) -> Iterator[str]:
    yield "# Segmentation labels made by diffseg\n"
    yield f"{images:,} images were labelled by a program, without a human label.\n"
    ignored = "255 in 8 bit, 65535 in 16 bit"
    if export.is_named:
        yield (
            "`label` is a PNG of class ids of the size of `image`: 0 is the background, the others are listed below "
            f"and in `id2label.json`, and the largest value of its type ({ignored}) is to be ignored. `instances` is a "
            "PNG of segment ids, which mean something within their image only."
        )
    else:
        yield (
            f"`label` is a PNG of segment ids of the size of `image`; the largest value of its type ({ignored}) marks "
            f"pixels in no segment. **{UNNAMED_WARNING}.**"
        )
    yield (
        "`segments` has the id, area, box (x, y, width, height), confidence and category of each segment. `stem` is "
        "the key without its extension, and the same for runs over a folder and over tars of that folder.\n"
    )
    yield "## How the labels were made\n"
    yield "| setting | value |\n|---|---|"
    yield from (f"| {name} | `{value}` |" for name, value in _settings(export))
    if export.is_named:
        yield "\n## Classes\n"
        yield "| id | name |\n|---|---|"
        shown = export.class_names[:_CLASSES_SHOWN]
        yield from (f"| {number} | {_cell(name)} |" for number, name in enumerate(shown))
        if len(export.class_names) > len(shown):
            yield f"\n`id2label.json` has the other {len(export.class_names) - len(shown):,} classes."


def _settings(export: Export) -> Iterator[tuple[str, str]]:
    manifest = export.manifest
    yield "fingerprint of the run", manifest.fingerprint
    yield "model", _cell(manifest.settings["model"])
    yield "sha256 of the model", manifest.model_sha256 or "unknown"
    version = manifest.environment.get("versions", {}).get(PACKAGES[0])
    if version:
        yield PACKAGES[0], version
    selection = {"where": export.selection.where, "min confidence": export.min_confidence or ""}
    selection["min segment confidence"] = export.min_segment_confidence or ""
    selection["filter"] = "" if export.selection.kept is None else "rows kept by diffseg filter"
    settings = {**manifest.settings, "naming": {**manifest.settings.get("naming", {}), "names": ""}, "model": ""}
    for name, value in (*_flatten(settings), *_flatten(manifest.resolved), *selection.items()):
        if value not in ("", None, (), []):
            yield name, _cell(value)


def _flatten(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name} {inner}", each) for inner, each in _flatten(value))
        else:
            yield name.replace("_", " "), value


def _cell(value: Any) -> str:
    """Return a text for a cell of a table: in one line, without secrets, and without characters that end the cell."""
    return redact(" ".join(str(value).split())).replace("|", "\\|").replace("`", "'")
