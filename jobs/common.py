"""Exit codes, flag parsing and error handling of all commands."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import tyro
from rich.console import Console
from rich.logging import RichHandler
from setproctitle import getproctitle, setproctitle

from jobs.import_path import safe_imports_of_children
from jobs.printing import CleanConsole, print_line
from jobs.streams import prepare_streams, printing
from pipeline.errors import RunFailed
from pipeline.storage import SourceError, redact
from pipeline.storage.redaction import MASK

OK, SOME_FAILED, REFUSED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes. The last two are those that a shell reports for SIGINT and SIGTERM (128 plus the signal's number); a
closed terminal (SIGHUP) gives 129 likewise."""

Command = TypeVar("Command")


def storage_options(text: str) -> dict[str, Any]:
    """Parse the value of --storage-options, and hide it from the list of processes.

    Args:
        text: A JSON object, or an empty string for no options.

    Returns:
        The options for fsspec.

    Raises:
        SourceError: The value is not a JSON object. The message does not repeat the value, which may hold a secret.
    """
    # Everybody can read the command line: `ps` shows it, and so does Ray's dashboard, as the entry point of the job.
    title = getproctitle()
    masked_title = redact(title.replace(text, MASK) if text else title)
    if masked_title != title:
        setproctitle(masked_title)
    try:
        options = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise SourceError(f"--storage-options is not JSON ({error.msg} at character {error.pos})") from None
    if not isinstance(options, dict):
        raise SourceError(f"--storage-options is a JSON {type(options).__name__}; expected an object")
    return options


def parsed(kind: type[Command], argv: list[str] | None, name: str, description: str | None) -> Command:
    """Parse the flags of a command into its dataclass.

    Wrong flags end the process with exit code 2, and --help ends it with 0.

    Args:
        kind: The dataclass whose fields are the flags; the docstring of each field is its help text.
        argv: The arguments of the command; None for those of this process.
        name: The name of the command, for the usage line.
        description: The text above the list of flags.
    """
    arguments = sys.argv[1:] if argv is None else argv
    config = (tyro.conf.FlagCreatePairsOff,)
    with printing():
        return tyro.cli(kind, args=arguments, prog=f"diffseg {name}", description=description, config=config)
    raise SystemExit(OK)  # the reader of --help, such as `head`, has closed its pipe


def guarded(command: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    An error that the user can correct becomes a message of one line instead of a traceback. No message shows a secret.
    """
    prepare_streams()
    console = CleanConsole(stderr=True)
    handler = RichHandler(console=console, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("pipeline.executor.connection").setLevel(logging.INFO)  # which says whose Ray is used
    code = _exit_code(command, console)
    connection = sys.modules.get("pipeline.executor.connection")
    if connection is not None and connection.abandoned.is_set():
        # Ray would keep the process for a minute, and crash it at its end.
        os._exit(code)
    return code


def _exit_code(command: Callable[[], int], console: Console) -> int:
    """Run a command, print its error and return its exit code."""
    received: list[int] = []
    try:
        with safe_imports_of_children(), _signals_as_interrupt(received), printing():
            return command()
    except ValueError as error:  # among others SourceError, RunRefused, CheckpointError and invalid settings
        print_line(console, f"diffseg: {redact(str(error))}", "red")
        return REFUSED
    except (RunFailed, OSError) as error:
        print_line(console, f"diffseg: {redact(str(error))}{_place(error)}", "red")
        # A run that failed because of an invalid value, such as a checkpoint that cannot be loaded, is wrong usage.
        return REFUSED if isinstance(error.__cause__, ValueError) else SOME_FAILED
    except KeyboardInterrupt:
        print_line(console, "diffseg: stopped; run the same command again to continue", "yellow")
        return 128 + received[0] if received else INTERRUPTED
    except Exception:  # an error in this program or in a library: a report of it needs the traceback
        print_line(console, redact(traceback.format_exc()))
        return SOME_FAILED


def _place(error: Exception) -> str:
    """Return where the disk may be full if an error says that it is and not where."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
        return f" (temporary files are written to {tempfile.gettempdir()})"
    return ""


@contextmanager
def _signals_as_interrupt(received: list[int]) -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM and SIGHUP, and append the number of the signal to `received`.

    `ray job stop` sends SIGTERM, and so does a machine that shuts down; a terminal that is closed sends SIGHUP. A
    signal that is ignored, as by `nohup`, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # Python handles signals only in the main thread
        yield
        return
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    terminals = [descriptor for descriptor in (0, 1, 2) if _is_terminal(descriptor)]

    def stop(number: int, frame: object) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)  # a second signal must not interrupt the cleanup
        received.append(number)
        if number == signal.SIGHUP:  # whatever the cleanup prints would fail
            _replace_by_null_device(terminals)
        raise KeyboardInterrupt  # not a subclass of it, which Ray would replace by a plain KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:  # it is closed
        return False


def _replace_by_null_device(descriptors: list[int]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)
