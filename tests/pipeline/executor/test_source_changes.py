"""OUT agrees with SRC as it is now: rows are labelled again, removed or kept, and every summary says so."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from blank_worker import BlankWorker, all_rows, blank_run, file_rows, keys_of
from changing_source import ChangingSource, write_images, write_tar
from runs import differences

import jobs.status
import jobs.verify
from pipeline.output.commit import read_commits
from pipeline.storage import Storage


def status(out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    return jobs.status.main([str(out), "--json"]), json.loads(capsys.readouterr().out)


def tar_members(out: Path) -> dict[str, bytes]:
    """Return the members of all tars of OUT by name."""
    members = {}
    for path in (out / "webdataset").iterdir():
        with tarfile.open(path) as tar:
            members |= {member.name: file.read() for member in tar if (file := tar.extractfile(member))}
    return members


@pytest.mark.parametrize("kind", ["images", "tars"])
@pytest.mark.parametrize("seed", range(3))
def test_after_random_changes_the_output_is_that_of_a_fresh_run(kind: Any, seed: int, tmp_path: Path) -> None:
    """`make proof NAME=source-changes` makes more changes."""
    source = ChangingSource(tmp_path / "in", kind, seed, files=12)
    blank_run(source.folder, tmp_path / "out")
    for number in range(4):
        source.change()
        blank_run(source.folder, tmp_path / "out")
        fresh = tmp_path / f"fresh-{number}"
        blank_run(source.folder, fresh)
        assert differences(tmp_path / "out", fresh) == [], source.changes
        assert all_rows(tmp_path / "out") == all_rows(fresh) == file_rows(fresh), source.changes


def test_a_removed_image_loses_its_row_and_no_other_image_has_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_images(source, *(f"{number}.png" for number in range(8)))
    before = blank_run(source, out)
    assert before.gone is None
    (source / "0.png").unlink()
    code, facts = status(out, capsys)
    assert (code, len(facts["source_changes"]["gone"]), len(facts["source_changes"]["new"])) == (1, 1, 1)
    assert jobs.verify.main([str(out)]) == 1
    assert "no longer in SRC" in capsys.readouterr().out
    summary = blank_run(source, out)
    assert summary.gone is not None
    assert (summary.gone.shards, summary.gone.removed) == (1, True)
    assert keys_of(all_rows(out)) == keys_of(file_rows(out)) == [f"{number}.png" for number in range(1, 8)]
    code, facts = status(out, capsys)
    assert (code, facts["gone"], facts["done"], facts["shards"]) == (0, [], summary.shards, summary.shards)
    assert jobs.verify.main([str(out)]) == 0


def test_one_added_image_changes_at_most_two_shards(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_images(source, *(f"{number:03d}.png" for number in range(60)))
    blank_run(source, out)
    write_images(source, "!first.png")
    summary = blank_run(source, out)
    assert summary.shards - summary.done_before <= 2
    assert summary.images < 30
    assert len(all_rows(out)) == 61


def test_a_removed_tar_loses_its_rows(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name, keys in (("a", "wx"), ("b", "yz")):
        write_tar(source / f"{name}.tar", keys)
    blank_run(source, out, label={"format": "parquet,webdataset"})
    (source / "a.tar").unlink()
    summary = blank_run(source, out, label={"format": "parquet,webdataset"})
    assert summary.gone is not None
    assert (summary.gone.first, summary.gone.rows, summary.images) == (("a",), 2, 0)
    assert keys_of(all_rows(out)) == ["y", "z"]
    assert [path.name for path in (out / "webdataset").iterdir()] == ["b.tar"]


@pytest.mark.parametrize("kind", ["images", "tars"])
def test_a_replaced_file_is_labelled_again_unless_a_flag_ignores_it(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_images(source, "a.png") if kind == "images" else write_tar(source / "a.tar", "a")
    for out in ("out", "ignoring"):
        blank_run(source, tmp_path / out)
    before = all_rows(tmp_path / "out")
    write_images(source, "a.png", seed=1) if kind == "images" else write_tar(source / "a.tar", "b", time=1_800_000_000)
    assert blank_run(source, tmp_path / "ignoring", ignore_source_changes=True).images == 0
    assert blank_run(source, tmp_path / "out").images == 1
    assert all_rows(tmp_path / "ignoring") == before != all_rows(tmp_path / "out")
    assert blank_run(source, tmp_path / "out").images == 0
    assert blank_run(source, tmp_path / "ignoring").images == 1  # the flag is not remembered
    assert all_rows(tmp_path / "ignoring") == all_rows(tmp_path / "out")


def test_removed_images_can_be_kept_and_no_image_has_two_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    both = {"samples_per_shard": 10**9, "format": "parquet,webdataset", "include_image": True}
    write_images(source, "a.png", "b.png", "c.png", "d.png")
    blank_run(source, out, label=both)
    rows = {row["key"]: row for row in all_rows(out)}
    images = tar_members(out)
    (source / "b.png").unlink()
    (source / "d.png").unlink()
    summary = blank_run(source, out, label=both, keep_removed=True)
    assert summary.gone is not None
    assert (summary.gone.removed, summary.gone.reason) == (False, "--keep-removed")
    kept = {row["key"]: row for row in all_rows(out)}
    assert kept.keys() == set(keys_of(file_rows(out))) == rows.keys()
    for key in ("b.png", "d.png"):
        assert kept[key] == rows[key] | {"shard": kept[key]["shard"], "index": kept[key]["index"]}
    assert [kept[key]["index"] for key in ("b.png", "d.png")] == [0, 1]
    assert {name: data for name, data in tar_members(out).items() if not name.endswith(".json")} == {
        name: data for name, data in images.items() if not name.endswith(".json")
    }
    assert jobs.verify.main([str(out)]) == 0
    code, facts = status(out, capsys)
    assert (code, facts["kept"], facts["gone"]) == (0, [kept["b.png"]["shard"]], [])

    # A second removal, and a file that comes back.
    write_images(source, "b.png", seed=1)
    (source / "c.png").unlink()
    blank_run(source, out, label=both, keep_removed=True)
    assert keys_of(all_rows(out)) == keys_of(file_rows(out)) == sorted(rows)
    # Without the flag the rows are removed.
    removed = blank_run(source, out, label=both).gone
    assert removed is not None
    assert removed.removed
    assert keys_of(all_rows(out)) == keys_of(file_rows(out)) == ["a.png", "b.png"]


def test_a_removed_tar_can_be_kept(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name, keys in (("a", "wx"), ("b", "yz")):
        write_tar(source / f"{name}.tar", keys)
    blank_run(source, out)
    (source / "a.tar").unlink()
    for _ in range(2):
        summary = blank_run(source, out, keep_removed=True)
        assert summary.gone is not None
        assert (summary.gone.shards, summary.gone.rows, summary.gone.removed) == (1, 2, False)
        assert keys_of(all_rows(out)) == ["w", "x", "y", "z"]
    write_tar(source / "a.tar", "v", time=1_800_000_000)
    assert blank_run(source, out, keep_removed=True).gone is None
    assert keys_of(all_rows(out)) == ["v", "y", "z"]


def test_nothing_is_removed_while_a_shard_of_the_source_has_failed(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_tar(source / "a.tar", "ab")
    write_tar(source / "c.tar", "c")
    blank_run(source, out)
    (source / "a.tar").unlink()
    (source / "broken.tar").write_bytes(b"this is no tar")
    summary = blank_run(source, out)
    assert list(summary.failed) == ["broken"]
    assert summary.gone is not None
    assert (summary.gone.removed, summary.gone.reason) == (False, "not every shard of SRC is done")
    assert keys_of(file_rows(out)) == ["a", "b", "c"]
    (source / "broken.tar").unlink()
    assert blank_run(source, out).gone is not None
    assert keys_of(file_rows(out)) == keys_of(all_rows(out)) == ["c"]
    assert list((out / "failures").iterdir()) == []


@pytest.mark.parametrize("kind", ["images", "tars"])
def test_nothing_is_removed_while_a_place_of_the_source_cannot_be_listed(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, disk = tmp_path / "in", tmp_path / "out", tmp_path / "disk"
    if kind == "images":
        write_images(source, "a.png", "b.png")
        write_images(disk, "c.png", "d.png")
    else:
        write_tar(source / "a.tar", "ab")
        write_tar(disk / "b.tar", "cd")
    (source / "disk").symlink_to(disk)
    blank_run(source, out)
    before = keys_of(all_rows(out))
    disk.rename(tmp_path / "not mounted")
    summary = blank_run(source, out)
    assert summary.gone is not None
    assert not summary.gone.removed
    assert "SRC could not be listed completely" in summary.gone.reason
    assert f"{source}/disk" in summary.gone.reason
    assert set(keys_of(file_rows(out))) == set(before)
    # Rows of tars still count. A group of images may have lost only some of its files, whose rows are in a new group.
    assert keys_of(all_rows(out)) == (before if kind == "tars" else ["a.png", "b.png"])
    _, facts = status(out, capsys)
    assert (facts["source_changes"]["gone"], "disk" in facts["source_changes"]["unknown"]) == ([], True)
    (tmp_path / "not mounted").rename(disk)
    assert blank_run(source, out).images == 0
    assert keys_of(all_rows(out)) == keys_of(file_rows(out)) == before


def test_a_truncated_tar_is_named_every_time_and_labelled_again_when_it_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_tar(source / "a.tar", "abcdef")
    whole = (source / "a.tar").read_bytes()
    (source / "a.tar").write_bytes(whole[:5000])
    for _ in range(2):
        assert blank_run(source, out).broken == {"a": "truncated"}
    code, facts = status(out, capsys)
    assert (code, facts["broken"]) == (1, {"a": "truncated"})
    (source / "a.tar").write_bytes(whole)
    code, facts = status(out, capsys)
    assert (code, facts["source_changes"]["stale"]) == (1, ["a"])
    assert jobs.verify.main([str(out)]) == 1
    summary = blank_run(source, out, retry_failed=True)
    assert (summary.broken, summary.images) == ({}, 6)
    assert status(out, capsys)[0] == 0
    assert keys_of(all_rows(out)) == list("abcdef")


def test_a_tar_that_grows_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_tar(source / "a.tar", "abcdef")
    whole = (source / "a.tar").read_bytes()
    (source / "a.tar").write_bytes(whole[:5000])

    class Uploading(BlankWorker):
        """The upload goes on when the first row has been read."""

        def on_sample(self) -> None:  # type: ignore[override]
            if (source / "a.tar").stat().st_size < len(whole):
                (source / "a.tar").write_bytes(whole)

    summary = blank_run(source, out, worker_class=Uploading)
    assert (summary.broken, summary.failed) == ({}, {})
    (record,) = read_commits(Storage(url=str(out))).values()
    assert (record.attempt, record.rows) == (2, 6)
    assert blank_run(source, out).images == 0  # the record holds the version that was read, not the listed one


def test_a_tar_that_never_stops_growing_fails_and_is_tried_again_by_the_next_run(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_tar(source / "a.tar", "ab")

    class Growing(BlankWorker):
        def on_sample(self) -> None:  # type: ignore[override]
            with (source / "a.tar").open("ab") as file:
                file.write(bytes(512))

    summary = blank_run(source, out, worker_class=Growing)
    assert "changed while it was read" in summary.failed["a"]
    assert file_rows(out) == []
    assert blank_run(source, out, retry_failed=True).images == 2
