"""Keeps the rows of images that are no longer in SRC, for --keep-removed.

A tar or Parquet file that is gone keeps its label shard. A group of image files that is gone may have lost only some of
its files; the rows of the others are in new groups. Its label shard is then replaced by one that holds the rows of the
lost files alone, so that no image has two rows.
"""

from __future__ import annotations

import dataclasses
import io
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.digest import short_digest
from pipeline.output.commit import Commit, CommitName, LabelShard, read_records, tag_of, write_commit
from pipeline.output.fence import Fence, delete_label_shard, publication
from pipeline.output.reader import label_metadata, label_rows
from pipeline.output.rows import FEATURE_COLUMNS, GENERATED_FIELDS, QUALITY_COLUMNS, Row, schema_of
from pipeline.output.writer import LabelShardWriter, member_key, output_paths
from pipeline.settings import Format
from pipeline.storage import Storage


def keep_gone(
    out: Storage,
    gone: Mapping[str, Sequence[CommitName]],
    present: Collection[str],
    fence: Fence,
    formats: tuple[Format, ...],
) -> set[str]:
    """Reduce the label shards of gone groups of image files to the rows of the files that are gone.

    Args:
        out: OUT.
        gone: Names of the records of each gone shard.
        present: Keys of the image files that are in SRC.
        fence: The fence of the run.
        formats: The formats of the run.

    Returns:
        The names of the label shards that are kept.
    """
    kept: set[str] = set()
    seen: set[str] = set()
    for shard, names in sorted(gone.items()):
        commit = read_records(out, [names[0].path]).get(names[0].path) if len(names) == 1 else None
        if commit is not None:
            keys = [row["key"] for row in label_rows(out, LabelShard(shard, commit.tag), ("key",))]
            lost = [index for index, key in enumerate(keys) if key not in present and key not in seen]
            seen.update(keys)
            if len(lost) == len(keys):
                kept.add(shard)
                continue
            if lost:
                kept.add(_write_lost(out, commit, lost, [keys[index] for index in lost], fence, formats))
        fence.check(out)
        for name in names:
            out.delete(name.path)
        delete_label_shard(out, shard)
    return kept


def _write_lost(
    out: Storage, commit: Commit, lost: list[int], keys: list[str], fence: Fence, formats: tuple[Format, ...]
) -> str:
    """Write a label shard of some rows of another one, and return its name."""
    shard = f"images-{short_digest(chr(0).join(keys))[:12]}"
    inputs = short_digest(f"{commit.inputs} {shard}")
    tag = tag_of(commit.fingerprint, inputs)
    source = LabelShard(commit.shard, commit.tag)
    counts: Counter[str] = Counter()
    stored = _schema(out, source)
    metadata = dict(label_metadata(stored)) | {"tag": tag}
    further = {
        "levels": "merges" in stored.names,
        "features": FEATURE_COLUMNS[0] in stored.names,
        "quality": QUALITY_COLUMNS[0] in stored.names,
        "generated": GENERATED_FIELDS[0].name in stored.names,
    }
    with LabelShardWriter(shard, formats=formats, metadata=metadata, **further) as writer:
        images = _images(out, commit.shard) if "webdataset" in formats else {}
        wanted = frozenset(lost)
        columns = schema_of(**further).names
        rows = (row for row in label_rows(out, source, columns) if row["index"] in wanted)
        for index, fields in enumerate(rows):
            old = Row.of(fields)
            row = dataclasses.replace(old, shard=shard, index=index)
            counts[row.status] += 1
            writer.add(row, image=images.get(member_key(old)))
        with publication(out, shard, tag, fence):
            files = writer.publish(out)
            fence.check(out)
            kept = dataclasses.replace(commit, shard=shard, inputs=inputs, rows=counts.total(), counts=dict(counts))
            write_commit(out, dataclasses.replace(kept, files=files))
    return shard


def _schema(out: Storage, shard: LabelShard) -> pa.Schema:
    with out.open(output_paths(shard, ("parquet",))["parquet"]) as file:
        return pq.read_schema(file)


def _images(out: Storage, shard: str) -> dict[str, tuple[str, bytes]]:
    """Return the extension and the bytes of the source images in a label shard's tar, by the key of their members."""
    data = out.read_bytes(output_paths(shard, ("webdataset",))["webdataset"])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return dict(_image_members(tar))


def _image_members(tar: tarfile.TarFile) -> Iterator[tuple[str, tuple[str, bytes]]]:
    for member in tar:
        folder, slash, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        file = tar.extractfile(member)
        if extension == "jpg" and file is not None:
            yield f"{folder}{slash}{stem}", (extension, file.read())
