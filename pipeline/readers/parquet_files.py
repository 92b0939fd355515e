"""Tell Parquet files of images from those of metadata, which many tools write beside the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pipeline.prefetch import prefetch_map
from pipeline.readers.kinds import kind_of, path_without_extension
from pipeline.readers.left_out import LeftOut
from pipeline.storage import SourceError, Storage
from pipeline.storage.backend import ListedFile

if TYPE_CHECKING:
    import pyarrow as pa

WITHOUT_IMAGES = "Parquet file without an image column"
_THREADS = 16


def leave_out_metadata(
    by_root: Mapping[str, list[ListedFile]], store: Storage, image_field: str | None, left_out: LeftOut
) -> dict[str, list[ListedFile]]:
    """Return the files without Parquet files that have no image column, and count those as left out.

    Schemas are read only where they can matter: where there are files of other kinds as well, and where the first
    Parquet file of the source has no image column. Of the files that lie beside a tar or a folder of the same name, as
    img2dataset writes them, the schema of the first in each folder stands for all.

    Args:
        by_root: The data files of a source by their root.
        store: The storage options.
        image_field: The name of the image column, if it is given.
        left_out: Receives the files without an image column.

    Raises:
        SourceError: There are only Parquet files, and none has an image column. The message says what can be done.
    """
    parquet = [
        (root, file.path) for root, files in by_root.items() for file in files if kind_of(file.path) == "parquet"
    ]
    if not parquet:
        return dict(by_root)
    is_mixed = len(parquet) < sum(map(len, by_root.values()))
    first = _schema(store, *parquet[0])
    if not is_mixed and (first is None or _has_images(first, image_field)):
        return dict(by_root)
    without = set(_without_images(by_root, parquet, store, image_field))
    if first is not None and not is_mixed and len(without) == len(parquet):
        from pipeline.readers.parquet_columns import no_image_message

        root, path = parquet[0]
        raise SourceError(f"{store.at(root).joined(path)}: {no_image_message(first, path)}")
    for _, path in sorted(without):
        left_out.add(WITHOUT_IMAGES, path)
    return {root: [file for file in files if (root, file.path) not in without] for root, files in by_root.items()}


def _without_images(
    by_root: Mapping[str, list[ListedFile]], parquet: list[tuple[str, str]], store: Storage, image_field: str | None
) -> Iterator[tuple[str, str]]:
    """Yield the root and the path of each file that has no image column."""
    names = {
        root: {part for file in files if kind_of(file.path) != "parquet" for part in _names(file.path)}
        for root, files in by_root.items()
    }
    representatives: dict[tuple[str, str, bool], tuple[str, str]] = {}
    group_of: dict[tuple[str, str], tuple[str, str]] = {}
    for root, path in parquet:
        has_companion = path_without_extension(path) in names[root]
        group = (root, path.rpartition("/")[0] if has_companion else path, has_companion)
        group_of[root, path] = representatives.setdefault(group, (root, path))
    checked = list(representatives.values())
    schemas = prefetch_map(lambda place: _schema(store, *place), checked, threads=_THREADS, ahead=_THREADS)
    answers = {
        place: schema is not None and not _has_images(schema, image_field)
        for place, schema in zip(checked, schemas, strict=True)
    }
    yield from (place for place in parquet if answers[group_of[place]])


def _names(path: str) -> tuple[str, str]:
    """Return the path of a file without its extension, and its folder."""
    return path_without_extension(path), path.rpartition("/")[0]


def _schema(store: Storage, root: str, path: str) -> pa.Schema | None:
    """Return the schema of a file, or None if it cannot be read; the attempt to label it then says why."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with store.at(root).open(path) as file:
            return pq.read_schema(file)
    except (pa.ArrowException, OSError, ValueError, MemoryError, IndexError):
        return None


def _has_images(schema: pa.Schema, image_field: str | None) -> bool:
    from pipeline.readers.parquet_columns import has_image_column

    return has_image_column(schema) or image_field in schema.names
