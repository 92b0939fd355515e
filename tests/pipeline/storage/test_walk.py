"""Listings of local folders that hold what cannot be listed, and folders within folders."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.storage import Storage, is_within, walk


def survey_as_nobody(folder: Path) -> str:
    """Return what a user without privileges finds in a folder."""
    code = (
        "import os, sys\n"
        "from pipeline.storage import Storage\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "files, skipped = Storage(url=sys.argv[1]).survey()\n"
        "print([file.path for file in files], [tuple(entry) for entry in skipped])"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    return answer.stdout + answer.stderr


def open_to_others(folder: Path) -> None:
    """Let other users search a folder and the folders above it."""
    for place in (folder, *folder.parents):
        if place.owner() == "root" and place != Path("/"):
            place.chmod(place.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)


def skipped(folder: Path) -> list[tuple[str, str, bool]]:
    return [tuple(entry) for entry in Storage(url=str(folder)).survey().skipped]


def test_broken_links_links_to_themselves_and_special_files_are_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "gone.jpg").symlink_to("/nowhere/x.jpg")
    (tmp_path / "disk").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert [file.path for file in Storage(url=str(tmp_path)).survey().files] == ["a.jpg"]
    assert skipped(tmp_path) == [
        ("disk", walk.BROKEN_LINK, True),
        ("gone.jpg", walk.BROKEN_LINK, False),
        ("pipe.jpg", walk.SPECIAL_FILE, False),
        ("self.jpg", walk.BROKEN_LINK, False),
    ]


def test_loops_are_named_and_never_followed(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").write_bytes(b"1")
        (tmp_path / name / "link").symlink_to(tmp_path / other)
    paths = [file.path for file in Storage(url=str(tmp_path)).survey().files]
    assert paths == ["a/a.jpg", "a/link/b.jpg", "b/b.jpg", "b/link/a.jpg"]
    assert skipped(tmp_path) == [("a/link/link", walk.LOOP, False), ("b/link/link", walk.LOOP, False)]


def test_an_unreadable_folder_is_named_and_skipped(tmp_path):
    open_to_others(tmp_path)
    for name in ("lost+found", "private", "names"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "b.jpg").write_bytes(b"1")
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "lost+found").chmod(0o700)
    (tmp_path / "private").chmod(0o700)
    (tmp_path / "names").chmod(0o744)  # the names may be listed, but the files may not be looked up
    assert survey_as_nobody(tmp_path).strip() == str(["a.jpg"]) + " " + str(
        [
            ("lost+found", walk.UNREADABLE_FOLDER, False),
            ("names/b.jpg", walk.UNREADABLE_FILE, True),
            ("private", walk.UNREADABLE_FOLDER, True),
        ]
    )
    tmp_path.chmod(0o700)
    assert "PermissionError" in survey_as_nobody(tmp_path)


@pytest.mark.parametrize("missing", ["is_dir", "stat"])
def test_files_that_disappear_during_the_listing_are_left_out(tmp_path, monkeypatch, missing):
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").write_bytes(b"1")
    real = os.scandir

    def scandir(path):
        entries = list(real(path))
        for entry in entries:
            if missing == "stat" and entry.name == "b.jpg":
                os.remove(entry.path)
            if missing == "is_dir" and entry.name == "b":
                os.remove(f"{entry.path}/b.jpg")
                os.rmdir(entry.path)
        monkeypatch.setattr(os, "scandir", real if missing == "is_dir" else scandir)
        from contextlib import nullcontext

        return nullcontext(entries)

    monkeypatch.setattr(os, "scandir", scandir)
    files, skipped_entries = Storage(url=str(tmp_path)).survey()
    assert ([file.path for file in files], skipped_entries) == (["a/a.jpg", "c/c.jpg"], [])


def test_folders_are_left_out_also_through_links(tmp_path):
    out, source = tmp_path / "src" / "out", tmp_path / "src"
    (out / "labels").mkdir(parents=True)
    (out / "labels" / "x.parquet").write_bytes(b"1")
    (source / "a.parquet").write_bytes(b"1")
    (source / "link").symlink_to(out)
    (source / "deep").symlink_to(out / "labels")
    (source / "b.parquet").symlink_to(out / "labels" / "x.parquet")
    files = Storage(url=str(source)).survey(without=[Storage(url=str(out))]).files
    assert [file.path for file in files] == ["a.parquet"]


def test_places_within_folders(tmp_path):
    (tmp_path / "real" / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    root = Storage(url=str(tmp_path))

    def within(inner: str, outer: str) -> bool:
        return is_within(root.at(inner), root.at(outer))

    link, real = f"{tmp_path}/link", f"{tmp_path}/real"
    assert within(link, real)
    assert within(real, link)
    assert within(f"{link}/in/new", real)
    assert within(f"file://{real}/in", link)
    assert not within(real, f"{real}/in")
    assert not within(f"{real}x", real)
    assert within("s3://bucket/a/b", "s3a://bucket/a/")
    assert within("memory://x/y", "memory://x")
    assert not within("s3://bucket/ab", "s3://bucket/a")
    assert not within("s3://bucket/a", "memory://bucket/a")
    assert not within("s3://bucket/a", real)
