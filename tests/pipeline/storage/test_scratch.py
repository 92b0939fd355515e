"""Scratch folders: a later process removes those of killed processes, and other users cannot get in the way."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from mounts import small_disk

from diffseg.private_folder import private_folder
from pipeline.output.rows import Row
from pipeline.output.writer import LabelShardWriter
from pipeline.storage import Storage
from pipeline.storage.locks import locked, open_lock
from pipeline.storage.scratch import ScratchFolder

OTHER_USER = 12345
ROOT = str(Path(__file__).parents[3])


@pytest.fixture(autouse=True)
def shared_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of all users."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_scratch_folders_of_killed_processes_are_removed(shared_tmp: Path) -> None:
    code = (
        "import time; from pipeline.storage.scratch import ScratchFolder\n"
        "folder = ScratchFolder(); open(folder.path + '/half', 'w').close()\n"
        "print(folder.path, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": ROOT, "TMPDIR": str(shared_tmp)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True) as other:
        assert other.stdout is not None
        path = other.stdout.readline().strip()
        folder = ScratchFolder()
        assert os.path.isfile(f"{path}/half"), "the folder of a living process stays"
        folder.remove()
        other.send_signal(signal.SIGKILL)
    folder = ScratchFolder()
    private = Path(private_folder())
    assert os.listdir(shared_tmp) == [private.name]
    assert os.listdir(private) == [os.path.basename(folder.path)]
    folder.remove()
    assert os.listdir(private) == []


def test_the_private_folder_is_shared_by_the_processes_of_a_user_alone(shared_tmp: Path) -> None:
    folder = Path(private_folder())
    assert folder == Path(private_folder())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert Path(private_folder()) == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["folder", "link", "file", "fifo"])
def test_a_name_that_somebody_else_has_taken_is_not_used(kind: str, shared_tmp: Path, tmp_path: Path) -> None:
    taken = shared_tmp / f"diffseg-{os.geteuid()}"
    if kind == "folder":
        taken.mkdir()
        os.chown(taken, OTHER_USER, OTHER_USER)
    elif kind == "link":
        (tmp_path / "target").mkdir()
        taken.symlink_to(tmp_path / "target")
    elif kind == "file":
        taken.touch()
    else:
        os.mkfifo(taken)
    folder = private_folder()
    assert folder != str(taken)
    assert private_folder() == folder, "every process of the user takes the same name"
    scratch = ScratchFolder()
    assert scratch.path.startswith(f"{folder}/")
    scratch.remove()


def test_a_fifo_or_a_link_in_place_of_a_lock_blocks_nobody(shared_tmp: Path, tmp_path: Path) -> None:
    (shared_tmp / "diffseg-scratch-x").mkdir()
    os.mkfifo(shared_tmp / "diffseg-scratch-x/lock")
    inside = Path(private_folder()) / "scratch-x"
    inside.mkdir()
    os.mkfifo(inside / "lock")
    ScratchFolder().remove()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for path in (inside / "lock", tmp_path / "link", tmp_path):
        for create in (False, True):
            with pytest.raises(OSError, match=rf"{path}"):
                open_lock(path, create=create).close()
    assert not (tmp_path / "target").exists()
    with locked(tmp_path / "lock"), open_lock(tmp_path / "lock") as file:
        assert file.read() == b""


def test_a_foreign_compiler_cache_does_not_stop_a_run(shared_tmp: Path) -> None:
    """torch would use this folder by its name, and diffusers imports torch's compiler."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"PYTHONPATH": ROOT, "TMPDIR": str(shared_tmp), "USER": "somebody", "LOGNAME": "somebody"}
    (shared_tmp / "torchinductor_somebody").touch()  # root could enter a folder of another user
    code = "import diffseg.model.layout, diffusers.models, torch._dynamo.package"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    code = "import pipeline.training, torch._dynamo.package"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_full_disk_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        with pytest.raises(OSError, match="no space is left for temporary files; set TMPDIR") as caught:
            write_large_shard(tmp_path / "out")
        assert caught.value.errno == errno.ENOSPC
        assert str(disk) in str(caught.value.filename)
        assert os.listdir(private_folder()) == []


def write_large_shard(out: Path) -> None:
    with LabelShardWriter("s", formats=("parquet",), metadata={}) as writer:
        writer.add(Row(key="a", shard="s", index=0, status="ok", mask=os.urandom(200_000)))
        writer.publish(Storage(url=str(out)))
