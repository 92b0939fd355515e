"""Standard output and standard error as commands find them: closed, a pipe that is no longer read, or without UTF-8.

This module is imported by every command, and so imports little. `jobs.printing` has the rest.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, and C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that change the direction of the text
    "\u2028\u2029\ud800-\udfff]"
)


def clean(text: str) -> str:
    """Return a text in which control characters are written as Python escapes, except line feeds and tabs."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def prepare_streams() -> None:
    """Make both streams accept any text.

    A stream that was closed by the caller becomes the null device, because otherwise the next file that this process
    opens would receive what is printed. Characters that the encoding of a stream does not have are escaped.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            _discard(descriptor)
            setattr(sys, name, open(descriptor, "w", closefd=False))  # noqa: SIM115 - open until the process ends
        reconfigure = getattr(getattr(sys, name), "reconfigure", None)
        if reconfigure is not None:  # tests may put other streams there
            reconfigure(errors="backslashreplace")


def discard_output(stream: IO[str]) -> None:
    """Send what is still printed to a stream to the null device, because nobody reads it any more."""
    with suppress(OSError, ValueError):  # a stream without a descriptor
        _discard(stream.fileno())


@contextmanager
def printing() -> Iterator[None]:
    """Prepare the streams for a block that prints, and flush them at its end.

    A reader that has closed its pipe, such as `head`, is no error. Every other error of standard output is raised.
    """
    prepare_streams()
    try:
        yield
    except BrokenPipeError:
        discard_output(sys.stdout)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with _writing(stream):
                pass


@contextmanager
def _writing(stream: IO[str]) -> Iterator[None]:
    """Flush a stream at the end of the block, and name it in errors. A pipe that nobody reads is no error."""
    try:
        yield
        stream.flush()
    except BrokenPipeError:
        discard_output(stream)
    except OSError as error:
        discard_output(stream)
        raise OSError(error.errno, error.strerror, stream.name) from error


def _discard(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


def print_text(text: str, *, end: str = "\n", error: bool = False) -> None:
    """Print a text without wrapping, styles or the width of a terminal."""
    stream = sys.stderr if error else sys.stdout
    with _writing(stream):
        stream.write(clean(text) + end)
