"""Faults of the source in a chaos round: it grows between starts, or while a run with the older listing is paused."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from runs import DEADLINE, environment

SourceFault = Literal["", "source grows", "older run"]
SOURCE_FAULTS: tuple[SourceFault, ...] = ("", "source grows", "older run")
PAUSED_LABEL = Path(__file__).with_name("paused_label.py")
TAKEN_OVER = "another run with a newer listing of SRC has taken over OUT"


def draw_source_fault(rng: random.Random) -> SourceFault:
    """Draw what happens to the source in a round, if anything."""
    return rng.choice(SOURCE_FAULTS)


class GrowingSource:
    """A folder of tars that can grow: some are replaced by longer ones, and some are added.

    Its states are the same in every round, down to the times of the files, and so are the outputs of runs over it.
    """

    def __init__(self, source: Path, original: Path, added: Path) -> None:
        """Describe a source.

        Args:
            source: SRC.
            original: The tars with which each round begins.
            added: The tars that are renamed into SRC when it grows.
        """
        self._source, self._original, self._added = source, original, added

    def reset(self) -> None:
        shutil.rmtree(self._source, ignore_errors=True)
        shutil.copytree(self._original, self._source)  # with the times of the files

    def grow(self) -> None:
        for path in sorted(self._added.iterdir()):
            aside = self._source / f".{path.name}.aside"
            shutil.copy2(path, aside)
            aside.rename(self._source / path.name)


class OlderRun:
    """A second run, which listed SRC before it grew, and which pauses itself while it writes the first shard."""

    def __init__(self, source: Path, out: Path, log: Path, flags: Sequence[str]) -> None:
        """Start the run, and wait until it has paused itself.

        Args:
            source: SRC.
            out: OUT.
            log: The file for its output.
            flags: Flags of `diffseg label`.
        """
        self._log = log
        words = [str(PAUSED_LABEL), f"*/labels/{first_shard(source)}.parquet", "1", str(source), str(out), *flags]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, *words, "--no-ray"], stdout=file, stderr=subprocess.STDOUT, env=environment()
            )
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise RuntimeError(f"the older run ended before it paused: {log.read_text()[-2000:]}")

    def finish(self) -> str:
        """Let the run continue to its end. Return an error message, or "" if it stopped as it should."""
        self._process.send_signal(signal.SIGCONT)
        code = self._process.wait(DEADLINE)
        text = " ".join(self._log.read_text().split())
        return "" if code == 1 and TAKEN_OVER in text else f"the older run ended with {code}: {text[-600:]}"

    def close(self) -> None:
        """Kill the run if it is still there."""
        self._process.kill()
        self._process.wait()


def first_shard(source: Path) -> str:
    """Return the name of the shard that a run labels first."""
    return min(path.stem for path in source.iterdir())
