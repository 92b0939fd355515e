"""Versions of inputs in a store: a listing and a reading worker see the same one, and other content has another one."""

from __future__ import annotations

from pathlib import Path

import pytest
from blank_worker import BlankWorker, all_rows, blank_run, keys_of
from changing_source import write_images, write_tar
from object_store import LABELS, PHOTOGRAPHS, ObjectStore

from pipeline.storage import Storage


@pytest.fixture
def place(object_store: ObjectStore, tmp_path: Path) -> tuple[Storage, str]:
    """Upload two tars and three images to a bucket. Return their storage, which may write there, and the URL of OUT."""
    source = Storage(url=f"s3://{PHOTOGRAPHS}/{tmp_path.name}", options=object_store.options("admin"))
    write_tar(tmp_path / "tars" / "a.tar", "ab")
    write_tar(tmp_path / "tars" / "c.tar", "cd")
    write_images(tmp_path / "images", "e.png", "f.png", "g.png")
    for path in sorted(tmp_path.rglob("*.*")):
        source.write_file(path.relative_to(tmp_path).as_posix(), path)
    return source, f"s3://{LABELS}/{tmp_path.name}"


@pytest.mark.parametrize("kind", ["tars", "images"])
def test_only_what_was_replaced_in_a_store_is_labelled_again(
    kind: str, place: tuple[Storage, str], object_store: ObjectStore, tmp_path: Path
) -> None:
    source, out = place
    options = object_store.options()

    def run() -> tuple[int, list[str]]:
        images = blank_run(f"{source.url}/{kind}", out, options=options, label={"samples_per_shard": 1}).images
        return images, keys_of(all_rows(out, options))

    everything = list("abcd") if kind == "tars" else ["e.png", "f.png", "g.png"]
    assert run() == (len(everything), everything)
    assert run() == (0, everything)
    if kind == "tars":
        write_tar(tmp_path / "tars" / "c.tar", "cx")
        source.write_file("tars/c.tar", tmp_path / "tars" / "c.tar")
        assert run() == (2, list("abcx"))
    else:
        source.write_bytes("images/f.png", (tmp_path / "images" / "g.png").read_bytes())
        assert run() == (1, everything)
    assert run()[0] == 0


def test_a_tar_that_is_uploaded_again_while_it_is_read_is_read_again(
    place: tuple[Storage, str], object_store: ObjectStore, tmp_path: Path
) -> None:
    source, out = place
    options = object_store.options()
    write_tar(tmp_path / "tars" / "a.tar", "xyz")
    uploads = [tmp_path / "tars" / "a.tar"]

    class Uploading(BlankWorker):
        def on_sample(self) -> None:  # type: ignore[override]
            if uploads:
                source.write_file("tars/a.tar", uploads.pop())

    summary = blank_run(f"{source.url}/tars", out, options=options, worker_class=Uploading)
    assert summary.failed == {}
    assert keys_of(all_rows(out, options)) == list("cdxyz")
    assert blank_run(f"{source.url}/tars", out, options=options).images == 0
