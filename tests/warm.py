"""Commands in processes of their own that need not import torch and diffusers first, which takes seconds.

A fork server imports them once; a command is a child of it, with its own environment, output and exit code. The command
as a process that begins with nothing is what the tests start whose subject is the start, a kill, or Ray.
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

# None of the modules that are commands: they are run as `__main__`, as `python -m` does.
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
    """`python -m` with these words, begun at once; `variables` are its whole environment."""

    def __init__(self, *words: str | Path, variables: Mapping[str, str]) -> None:
        self._words = [str(word) for word in words]
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self._outputs = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        self.process = _server.Process(target=_run, args=(self._words, dict(variables), self._outputs))
        self.process.start()

    def ended(self, seconds: float) -> subprocess.CompletedProcess[str]:
        """Wait for its end; one that takes longer is killed. Raises subprocess.TimeoutExpired then."""
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
    """In the child: become the command."""
    for place, path in enumerate(outputs, start=1):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, place)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(variables)
    constants.HF_HUB_OFFLINE = variables.get("HF_HUB_OFFLINE") == "1"  # read when it was imported
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
