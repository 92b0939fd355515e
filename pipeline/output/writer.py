"""Writes a label shard: Parquet always, WebDataset on request. The same rows give the same bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.digest import file_sha256
from pipeline.output.rows import FEATURE_COLUMNS, Row, schema_of
from pipeline.settings import Format
from pipeline.storage import Storage
from pipeline.storage.scratch import ScratchFolder

LABELS_FOLDER = "labels"
"""Folder of the Parquet label shards below OUT."""
ROW_GROUP_BYTES = 32 * 2**20
ROW_GROUP_ROWS = 4096
COMPRESSION = "zstd"
METADATA_KEY = "diffseg"
"""Key of the metadata in the footer of a label shard's Parquet file."""
BINARY_COLUMNS = ("mask", "leaf_mask", "image", *FEATURE_COLUMNS)
"""Columns that the JSON of a WebDataset sample leaves out."""
MAY_REPEAT = ("duplicate_key", "truncated", "damaged")
"""Statuses of rows that may share their key with another row of the shard."""

_UNSAFE = re.compile(r"[\x00-\x1f\x7f%\\]")


def output_paths(shard: str, formats: tuple[Format, ...]) -> dict[Format, str]:
    """Return the paths of a label shard's files below OUT by format."""
    paths: dict[Format, str] = {"parquet": f"{LABELS_FOLDER}/{shard}.parquet", "webdataset": f"webdataset/{shard}.tar"}
    return {name: paths[name] for name in formats}


def member_key(row: Row) -> str:
    """Return the name of a row's members in a tar: safe to unpack, unique, and not split by webdataset at a dot.

    webdataset takes everything after the first dot of the last path part for the extension. Therefore dots of the last
    part, empty and dot-only parts, control characters, backslashes and '%' are percent-encoded. ``<key>.json`` holds
    the original key.
    """
    parts = _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", row.key).split("/")
    parts = [part.replace(".", "%2E") if part.strip(".") == "" else part for part in parts]
    parts[-1] = parts[-1].replace(".", "%2E")
    key = "/".join(part or "%2F" for part in parts)
    return f"{key}%row{row.index}" if row.status in MAY_REPEAT or not row.key else key


def _columns(values: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return a list of objects as an object of lists, which takes half the bytes in JSON."""
    return {name: [value[name] for value in values] for name in (values[0] if values else ())}


class LabelShardWriter:
    """Collects the rows of a shard in local scratch files until `publish` copies them to OUT.

    Use it as a context manager, which removes the scratch files.

    Args:
        shard: Name of the shard.
        formats: Formats to write.
        metadata: Written as JSON into the Parquet footer. Its "tag" is that of the commit record.
        levels: Whether the rows have levels.
        features: Whether the rows have features. Tars do not hold them.
        quality: Whether the rows have a score of quality.
        generated: Whether the rows have generated images.
    """

    def __init__(
        self,
        shard: str,
        *,
        formats: tuple[Format, ...],
        metadata: Mapping[str, Any],
        levels: bool = False,
        features: bool = False,
        quality: bool = False,
        generated: bool = False,
    ) -> None:
        self._shard = shard
        self._levels = levels
        self._further = {"levels": levels, "features": features, "quality": quality, "generated": generated}
        self._formats = formats
        self._folder = ScratchFolder()
        schema = schema_of(**self._further)
        schema = schema.with_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._parquet = pq.ParquetWriter(self._local("parquet"), schema, compression=COMPRESSION)
        self._tar: Any = None
        if "webdataset" in formats:
            import webdataset  # loads torch, which reading label shards does not need

            # A fixed owner and time, so that the bytes depend on the rows alone.
            self._tar = webdataset.TarWriter(
                str(self._local("webdataset")), encoder=False, mtime=0, user="diffseg", group="diffseg"
            )

    def _local(self, name: str) -> Path:
        return Path(self._folder.path) / name

    def add(self, row: Row, *, image: tuple[str, bytes] | None = None) -> None:
        """Append a row.

        Args:
            row: The row.
            image: Extension and bytes of the source image, to be stored in the tar beside its label map.
        """
        with self._folder.writing():
            self._add(row, image)

    def _add(self, row: Row, image: tuple[str, bytes] | None) -> None:
        fields = row.fields(**self._further)
        self._rows.append(fields)
        self._bytes += len(row.key) + len(row.meta) + len(row.error) + 1024
        self._bytes += sum(len(fields.get(name) or b"") for name in BINARY_COLUMNS)
        if self._bytes >= ROW_GROUP_BYTES or len(self._rows) >= ROW_GROUP_ROWS:
            self._flush()
        if self._tar is not None:
            described = {name: value for name, value in fields.items() if name not in BINARY_COLUMNS}
            if self._levels:
                described |= {name: _columns(described[name]) for name in ("leaves", "merges")}
            separators = (",", ":") if self._levels else None
            text = json.dumps(described, sort_keys=True, ensure_ascii=False, separators=separators)
            sample: dict[str, Any] = {"__key__": member_key(row), "json": text.encode()}
            if row.mask is not None:
                sample["png"] = row.mask
            if row.leaf_mask is not None:
                sample["leaves.png"] = row.leaf_mask
            if image is not None:
                sample["jpg" if image[0] == "jpg" else f"image.{image[0]}"] = image[1]
            self._tar.write(sample)

    def _flush(self) -> None:
        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0

    def publish(self, out: Storage) -> dict[str, dict[str, Any]]:
        """Copy the files to OUT. Returns ``{"bytes": …, "sha256": …}`` of each file by its path below OUT."""
        with self._folder.writing():
            self._flush()
            self._parquet.close()
            if self._tar is not None:
                self._tar.close()
        files = {}
        for name, path in output_paths(self._shard, self._formats).items():
            local = self._local(name)
            files[path] = {"bytes": local.stat().st_size, "sha256": file_sha256(local)}
            out.write_file(path, local)
        return files

    def __enter__(self) -> LabelShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # A full disk fails here once more; the error that ends the block says more about it.
            with suppress(OSError) if kind is not None else self._folder.writing():
                self._parquet.close()
                if self._tar is not None:
                    self._tar.close()
        finally:
            self._folder.remove()
