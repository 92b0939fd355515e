"""What the commands share: storage options, errors as exit codes, tables."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from setproctitle import getproctitle, setproctitle

from pipeline.errors import RunFailed
from pipeline.output.manifest import Manifest, read_manifest
from pipeline.storage import SourceError, Storage, redact
from pipeline.storage.redaction import MASK

OK, SOME_FAILED, REFUSED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

Command = TypeVar("Command")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The flags of commands that look at a run."""

    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder or URL of a run."""
    storage_options: str = ""
    """JSON object for fsspec (credentials, endpoint)."""
    json: bool = False
    """Print JSON."""

    def open(self) -> tuple[Storage, Manifest]:
        """The folder and its run.json. Raises SourceError where there is no run."""
        out = Storage(url=self.out, options=storage_options(self.storage_options))
        manifest = read_manifest(out)
        if manifest is None:
            raise SourceError(f"{out.redacted}: no run.json here; expected the OUT of `diffseg label`")
        return out, manifest


def storage_options(text: str) -> dict[str, Any]:
    """The JSON object of --storage-options. Raises SourceError, without repeating what may be a secret."""
    # The command line is for everybody to see: `ps` shows it, and Ray's dashboard as the job's entry point.
    shown = getproctitle()
    masked = redact(shown.replace(text, MASK) if text else shown)
    if masked != shown:
        setproctitle(masked)
    try:
        options = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise SourceError(f"--storage-options is not JSON ({error.msg} at character {error.pos})") from None
    if not isinstance(options, dict):
        raise SourceError(f"--storage-options is a JSON {type(options).__name__}; expected an object")
    return options


def parsed(kind: type[Command], argv: list[str] | None, name: str, about: str | None) -> Command:
    """The flags of a command, made from its dataclass; ends the process with exit code 2 where they do not fit."""
    arguments = sys.argv[1:] if argv is None else argv
    no_pairs = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(kind, args=arguments, prog=f"diffseg {name}", description=about, config=no_pairs)


def guarded(command: Callable[[], int]) -> int:
    """Run a command; what the user can mend becomes a message and an exit code instead of a traceback."""
    console = Console(stderr=True)
    handler = RichHandler(console=console, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    terminated = threading.Event()
    try:
        with _terminable(terminated):
            return command()
    except ValueError as error:  # SourceError, RunRefused, CheckpointError and bad settings are all of this kind
        console.print(f"diffseg: {redact(str(error))}", style="red", markup=False, highlight=False, soft_wrap=True)
        return REFUSED
    except (RunFailed, OSError) as error:
        console.print(f"diffseg: {redact(str(error))}", style="red", markup=False, highlight=False, soft_wrap=True)
        return REFUSED if isinstance(error.__cause__, ValueError) else SOME_FAILED  # a checkpoint that cannot be used
    except KeyboardInterrupt:
        console.print("diffseg: stopped; run the same command again to go on where it stopped", style="yellow")
        return TERMINATED if terminated.is_set() else INTERRUPTED
    except Exception:  # a fault of this program or of a library: whoever reports it needs the place, but no secret
        console.print(redact(traceback.format_exc()), markup=False, highlight=False, soft_wrap=True)
        return SOME_FAILED


@contextmanager
def _terminable(terminated: threading.Event) -> Iterator[None]:
    """SIGTERM (`ray job stop`, a machine that is shut down) ends the block like Ctrl-C, and sets `terminated`."""
    if threading.current_thread() is not threading.main_thread():  # which alone is told of signals
        yield
        return

    def terminate(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not end the cleaning up
        terminated.set()
        raise KeyboardInterrupt  # Ray makes a plain one of any kind of it

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    json.dump(value, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


def counts_table(counts: Mapping[str, int], seconds: Mapping[str, float], images: int) -> Table:
    """Rows by status, and seconds an image by step over the `images` that the seconds are of."""
    table = Table(title=None, show_header=True, header_style="bold")
    table.add_column("rows")
    table.add_column("", justify="right")
    table.add_column("step")
    table.add_column("ms an image", justify="right")
    left = [(status, f"{n:,}") for status, n in sorted(counts.items(), key=lambda item: (item[0] != "ok", item[0]))]
    right = [(name, f"{1000 * s / images:.1f}") for name, s in seconds.items() if images and name != "total"]
    for i in range(max(len(left), len(right))):
        table.add_row(*(left[i] if i < len(left) else ("", "")), *(right[i] if i < len(right) else ("", "")))
    return table
