"""OUT on a disk that is full or read-only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelled_runs import write_png
from mounts import remount, small_disk
from runs import BOTH, command, differences, label

from pipeline.storage import Storage, StorageUnwritable

IMAGES = 6


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images that do not compress, so that a few fill a small disk."""
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        write_png(tmp_path / "in" / f"{number}.png", random.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    return tmp_path / "in"


def test_a_full_out_stops_the_run_and_the_same_command_resumes(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--no-ray", "--samples-per-shard", "1", *BOTH, "--include-image")
    with small_disk(tmp_path / "disk", 96) as disk:
        assert label(images, disk / "out", *flags) == 1
        text = " ".join(capsys.readouterr().err.split())
        assert text.count("no space is left on the device") == 1
        assert f"{disk}/out" in text
        assert " are free)" in text
        assert "run the same command again" in text
        assert not list(disk.glob("out/failures/*"))
        done = len(list(disk.glob("out/commits/*")))
        assert 0 < done < IMAGES
        remount(disk, "size=10m")
        assert label(images, disk / "out", *flags) == 0
        assert label(images, tmp_path / "whole", *flags) == 0
        assert differences(disk / "out", tmp_path / "whole") == []


@pytest.mark.cluster
def test_workers_on_ray_stop_when_out_is_full(images: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 40) as disk:
        result = command("jobs.label", images, disk / "out", "--samples-per-shard", "1", "--workers", "1", *BOTH)
        assert result.returncode == 1
        assert "no space is left on the device" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_read_only_out_is_refused_before_a_model_is_loaded(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", 1000) as disk:
        remount(disk, "ro")
        assert label(images, disk / "out", "--no-ray", "--model", str(tmp_path / "no such model")) == 1
    assert f"{disk}/out: the file system is read-only" in capsys.readouterr().err.replace("\n", "")


def test_a_finished_run_on_a_read_only_disk_can_be_looked_at(images: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 10_000) as disk:
        assert label(images, disk / "out", "--no-ray") == 0
        remount(disk, "ro")
        assert label(images, disk / "out", "--no-ray") == 0
        assert command("jobs.status", disk / "out").returncode == 0


def test_every_write_names_its_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16) as disk:
        storage = Storage(url=str(disk))
        for write in (storage.write_bytes, storage.create_bytes):
            with pytest.raises(StorageUnwritable, match=f"{disk}/file: no space is left on the device"):
                write("file", bytes(100_000))
        storage.write_bytes("small", b"1")
        with pytest.raises(StorageUnwritable, match="are free"):
            storage.write_bytes("filler", bytes(20_000))
        remount(disk, "ro")
        with pytest.raises(StorageUnwritable, match="read-only"):
            storage.write_bytes("small", b"2")
        with pytest.raises(StorageUnwritable, match="read-only"):
            storage.at(f"{disk}/a/b").check_writable()
