"""PROMPTS: prompts with their classes and numbers of images, from a file of text, CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bounded_json import InvalidFile, read_bounded
from pipeline.readers.samples import shorten
from pipeline.storage import SourceError, Storage, redact
from pipeline.storage.urls import split_url

MAX_BYTES = 2**28
"""Largest PROMPTS file, in bytes."""
MAX_UNPACKED_BYTES = 2**30
"""Largest uncompressed size of a Parquet file of prompts, in bytes, as its footer declares it."""
COLUMNS = ("prompt", "classes", "count", "key")
"""Columns that are read; others are ignored."""
EXTENSIONS = {
    **dict.fromkeys((".txt",), "text"),
    **dict.fromkeys((".csv",), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".parquet",), "parquet"),
}
"""Format of a file by its extension."""


@dataclass(frozen=True, kw_only=True)
class PromptSource:
    """Where the prompts of a run come from.

    Attributes:
        url: Path or URL of PROMPTS; None to make a prompt for each name from the template.
        template: The prompt for each name, which replaces the {}.
        count: Number of images for each prompt whose row gives no count, at least 1.
    """

    url: str | None = None
    template: str = "a photo of a {}"
    count: int = 1

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise ValueError(f"template {self.template!r}: expected one {{}}, which each name replaces")
        if self.count < 1:
            raise ValueError(f"count {self.count}: expected 1 or more images for each prompt")

    def shown(self, store: Storage) -> str:
        """Return the source of the images for run.json and for messages, without secrets."""
        return f"prompts by the template {self.template!r}" if self.url is None else store.at(self.url).redacted


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRow:
    """A row of PROMPTS. Its values are not checked yet.

    Attributes:
        place: Where the row is, for messages, such as ``line 3``.
        prompt: Its prompt.
        classes: Its classes: a list, or a text with commas; None if it lists no classes.
        count: Number of its images; None for the number that the run gives.
        key: What the keys of its images begin with; None to derive it from the prompt.
    """

    place: str
    prompt: Any
    classes: Any = None
    count: Any = None
    key: Any = None


def read_prompts(url: str, store: Storage) -> list[PromptRow]:
    """Read the rows of a PROMPTS file.

    Args:
        url: Path or URL. Its extension gives the format: .txt, .csv, .jsonl, .ndjson or .parquet.
        store: Storage with the options for the store of the file.

    Raises:
        SourceError: The file is missing, has another format than its extension says, or holds no prompt.
        OSError: The store fails.
    """
    folder, name = split_url(url)
    extension = "." + name.partition("?")[0].rpartition(".")[2].lower()
    if extension not in EXTENSIONS:
        raise SourceError(f"{redact(url)}: expected a file of prompts with the ending {', '.join(EXTENSIONS)}")
    try:
        data = read_bounded(store.at(folder), name, MAX_BYTES)
        rows = list(_READERS[EXTENSIONS[extension]](data))
    except FileNotFoundError:
        raise SourceError(f"{redact(url)}: there is no such file; expected a file of prompts") from None
    except (InvalidFile, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise SourceError(f"{redact(url)}: cannot be read as {EXTENSIONS[extension]}: {error}") from error
    if not rows:
        raise SourceError(f"{redact(url)}: holds no prompt")
    return rows


def _text_rows(data: bytes) -> Iterator[PromptRow]:
    for number, line in enumerate(data.decode("utf-8-sig").split("\n"), start=1):
        if line.strip():
            yield PromptRow(place=f"line {number}", prompt=line)


def _csv_rows(data: bytes) -> Iterator[PromptRow]:
    csv.field_size_limit(2**24)
    lines = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    _check_columns(lines.fieldnames or ())
    for values in lines:
        yield _row(f"line {lines.line_num}", {name: value or None for name, value in values.items()})


def _json_rows(data: bytes) -> Iterator[PromptRow]:
    for number, line in enumerate(data.decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidFile(f"line {number} is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise InvalidFile(f"line {number} holds {shorten(line.strip(), 60)}; expected an object")
        yield _row(f"line {number}", values)


def _parquet_rows(data: bytes) -> Iterator[PromptRow]:
    file = pq.ParquetFile(io.BytesIO(data))
    _check_columns(file.schema_arrow.names)
    metadata, number = file.metadata, 0
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if size > MAX_UNPACKED_BYTES:
        raise InvalidFile(f"unpacks to {size} bytes; expected at most {MAX_UNPACKED_BYTES}")
    for batch in file.iter_batches(1024, columns=[name for name in COLUMNS if name in file.schema_arrow.names]):
        for values in batch.to_pylist():
            yield _row(f"row {number}", values)
            number += 1


def _check_columns(names: Iterable[str]) -> None:
    if "prompt" not in names:
        raise InvalidFile(f"there is no column prompt; the columns are {shorten(', '.join(map(str, names)), 300)}")


def _row(place: str, values: Mapping[str | None, Any]) -> PromptRow:
    return PromptRow(place=place, **{name: values.get(name) for name in COLUMNS})


_READERS = {"text": _text_rows, "csv": _csv_rows, "json": _json_rows, "parquet": _parquet_rows}
