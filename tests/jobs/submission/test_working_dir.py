"""Tests of the packing of a job's working directory."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from jobs.submission.working_dir import LIMIT_BYTES, pack_folder
from pipeline.storage.urls import SourceError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder like a checkout in use, with caches, ignored files, a pipe and a link to itself."""
    files = {
        "jobs/label.py": 10,
        "jobs/__pycache__/label.pyc": 10,
        ".git/objects/pack": 10,
        ".venv/lib/torch.so": 10,
        ".gitignore": 0,
        "data/.gitignore": 0,
        "data/kept.txt": 10,
        "data/photo.jpg": 10,
        "tests/test_label.py": 10,
        "docs/images/picture.png": 10,
        "jobs/docs/page.md": 10,
        "shard.tar": 10,
        "ignored/a": 10,
    }
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / ".gitignore").write_text("ignored/\n# and nothing else\n")
    (tmp_path / "data" / ".gitignore").write_text("*\n!kept.txt\n")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path)
    return tmp_path


def packed(folder: Path, target: Path, *exclude: str) -> list[str]:
    """Pack a folder and return the names in the zip."""
    pack_folder(folder, target, exclude=exclude)
    with zipfile.ZipFile(target) as archive:
        return archive.namelist()


def test_files_that_a_job_does_not_need_are_left_out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = tmp_path_factory.mktemp("zip") / "a.zip"
    assert packed(folder, target) == [".gitignore", "data/kept.txt", "jobs/docs/page.md", "jobs/label.py"]
    assert packed(folder, target, "*.txt", "/.gitignore") == ["jobs/docs/page.md", "jobs/label.py"]
    (folder / ".rayignore").write_text("data\n")
    assert packed(folder, target) == [".gitignore", ".rayignore", "jobs/docs/page.md", "jobs/label.py"]
    before = target.read_bytes()
    pack_folder(folder, target)
    assert target.read_bytes() == before, "the same bytes have the same name in Ray, so they are not sent again"


def test_a_folder_that_is_too_large_is_not_packed_and_the_largest_files_are_named(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path_factory.mktemp("zip") / "a.zip"
    (folder / "weights" / "unet").mkdir(parents=True)
    for name in ("weights/unet/a.bin", "weights/unet/b.bin"):
        with (folder / name).open("wb") as file:
            file.truncate(LIMIT_BYTES // 2 + 1)
    with pytest.raises(SourceError) as raised:
        pack_folder(folder, target)
    message = str(raised.value)
    assert "100.0 MiB at most" in message
    assert [line.split()[-1] for line in message.splitlines()[1:4]] == [
        "weights/",
        "weights/unet/",
        "weights/unet/a.bin",
    ]
    assert not target.exists()
    assert "weights/unet/a.bin" in packed(folder, target, "b.bin")
    with pytest.raises(SourceError, match="no such folder"):
        pack_folder(folder / "missing", target)


def test_a_checkout_is_packed_with_its_packages_and_checkpoints_but_without_tests_and_pages(tmp_path: Path) -> None:
    names = packed(ROOT, tmp_path / "a.zip", "/evaluate-sd")
    folders = {name.partition("/")[0] for name in names}
    assert {"diffseg", "pipeline", "jobs", "pyproject.toml"} <= folders
    assert not {"tests", "docs", ".git", ".venv"} & folders
    sources = [path for package in ("diffseg", "pipeline", "jobs") for path in (ROOT / package).rglob("*.py")]
    assert {path.relative_to(ROOT).as_posix() for path in sources} <= set(names)
    assert [name for name in names if name.startswith("diffseg/tiny/checkpoint/") and name.endswith(".safetensors")]
