"""Commands in their own processes that do not import torch and diffusers again, which takes seconds.

A fork server imports the libraries once, and each command is a fork of it with its own environment, output and exit
code. Tests of the start of a process, of kills and of Ray start the command as a new process instead.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import constants

# Without the modules of commands, which are run as `__main__` like `python -m` does.
PRELOADED = [
    "torch",
    "diffusers.models.unets.unet_2d_condition",
    "ray",
    "s3fs",
    "pipeline.executor.driver",
    "pipeline.label",
    "warm",
]

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(PRELOADED)


class WarmCommand:
    """A running `python -m` with the given words."""

    def __init__(self, *words: str | Path, variables: Mapping[str, str]) -> None:
        """Start the command; `variables` are its whole environment."""
        self._words = [str(word) for word in words]
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self._outputs = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        self.process = _server.Process(target=_run, args=(self._words, dict(variables), self._outputs))
        self.process.start()

    def wait(self, seconds: float) -> subprocess.CompletedProcess[str]:
        """Wait for the command. Kills it and raises subprocess.TimeoutExpired if it takes longer than `seconds`."""
        with self._folder:
            self.process.join(seconds)
            if self.process.exitcode is None:
                self.process.kill()
                self.process.join()
                raise subprocess.TimeoutExpired(self._words, seconds)
            stdout, stderr = (path.read_text() for path in self._outputs)
            code = self.process.exitcode
            self.process.close()
        return subprocess.CompletedProcess(self._words, code, stdout, stderr)


def _run(words: list[str], variables: dict[str, str], outputs: list[Path]) -> None:
    """Become the command, in the forked process."""
    for target, path in enumerate(outputs, start=1):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(variables)
    constants.HF_HUB_OFFLINE = variables.get("HF_HUB_OFFLINE") == "1"  # the library reads the variable at its import
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
