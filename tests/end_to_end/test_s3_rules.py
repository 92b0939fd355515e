"""Uploads in parts, encryption with the user's key and rights without listing, on a real S3 server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import s3fs.core
from faulty_proxy import FaultyProxy
from object_store import LABELS, PHOTOGRAPHS, ObjectStore
from store_faults import StoreFaults

from pipeline.readers.find import find_shards
from pipeline.storage import SourceError, Storage, StoreUnavailable

PART_BYTES = 5 * 2**20  # the smallest that S3 accepts


@pytest.fixture
def big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is uploaded in four parts, as small as S3 allows. Those of s3fs have at least 50 MiB."""
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda size, chunksize=None: PART_BYTES)
    path = tmp_path / "big"
    path.write_bytes(os.urandom(4 * PART_BYTES))
    return path


def test_a_part_that_fails_for_good_leaves_no_object_and_no_parts(
    big: Path, out: str, proxy: FaultyProxy, object_store: ObjectStore
) -> None:
    storage = Storage(url=out, options=object_store.options(endpoint=proxy.endpoint), retry_timeout=0.5)
    storage.write_bytes("labels/a", b"the previous content")
    proxy.inject(StoreFaults(cut=0.75))
    with pytest.raises(StoreUnavailable, match=f"{out}/labels/big: the store has not answered"):
        storage.write_file("labels/big", big)
    with pytest.raises(StoreUnavailable):
        storage.write_file("labels/a", big)
    proxy.inject(StoreFaults())
    assert [file.path for file in storage.list_files()] == ["labels/a"]
    assert storage.read_bytes("labels/a") == b"the previous content"
    assert object_store.unfinished_uploads(LABELS, out) == []


def test_an_upload_in_parts_is_repeated_until_it_is_complete(
    big: Path, out: str, proxy: FaultyProxy, object_store: ObjectStore
) -> None:
    storage = Storage(url=out, options=object_store.options(endpoint=proxy.endpoint))
    proxy.inject(StoreFaults(cut=0.1, slow_down=0.1, reset=0.05))
    storage.write_file("labels/big", big)
    assert sum(proxy.counts[fault] for fault in ("cut", "slow_down", "reset")) > 0
    assert storage.read_bytes("labels/big") == big.read_bytes()
    assert object_store.unfinished_uploads(LABELS, out) == []


def test_storage_options_encrypt_every_object_with_the_key_of_the_user(
    big: Path, out: str, object_store: ObjectStore
) -> None:
    key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}
    encrypted = Storage(url=out, options=object_store.options() | {"s3_additional_kwargs": key})
    encrypted.write_bytes("small", b"1")
    encrypted.write_file("in-parts", big)
    assert encrypted.create_bytes("run.json", b"{}")
    assert not encrypted.create_bytes("run.json", b"[]")
    assert encrypted.read_small(["small", "run.json"]) == [b"1", b"{}"]
    assert encrypted.read_bytes("in-parts") == big.read_bytes()
    without_key = Storage(url=out, options=object_store.options(), retry_timeout=0.0)
    for path in ("small", "in-parts", "run.json"):
        with pytest.raises(OSError, match="Bad Request"):
            without_key.read_bytes(path)


def test_files_that_are_named_are_read_where_listing_is_forbidden(object_store: ObjectStore, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(b"%d" % number)
    object_store.upload(tmp_path, PHOTOGRAPHS, "unlisted")
    storage = Storage(url=f"s3://{PHOTOGRAPHS}/unlisted", options=object_store.options("unlisted"))
    assert [shard.name for shard in find_shards(f"{storage.url}/{{0..1}}.tar", storage)] == ["0", "1"]
    assert storage.read_bytes("1.tar") == b"1"
    with pytest.raises(SourceError, match=r"unlisted: access is denied .* SRC needs s3:ListBucket and s3:GetObject"):
        find_shards(storage.url, storage)
