"""Scratch folders: a later process removes those of killed processes."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.storage.scratch import ScratchFolder


def test_scratch_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import time; from pipeline.storage.scratch import ScratchFolder\n"
        "folder = ScratchFolder(); open(folder.path + '/half', 'w').close()\n"
        "print(folder.path, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True) as other:
        path = other.stdout.readline().strip()
        folder = ScratchFolder()
        assert os.path.isfile(f"{path}/half"), "the folder of a living process stays"
        folder.remove()
        other.send_signal(signal.SIGKILL)
    folder = ScratchFolder()
    assert os.listdir(tmp_path) == [os.path.basename(folder.path)]
    folder.remove()
    assert os.listdir(tmp_path) == []
