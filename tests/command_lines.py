"""Parse commands as the real programs would, without running them."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click

from jobs.cli import COMMANDS
from jobs.common import parsed

ROOT = Path(__file__).parents[1]

CHECKED = ("diffseg", "python", "ray", "make")
"""Programs whose commands `parse` understands."""


class Refused(Exception):
    """The program would not accept the command."""


@dataclass(frozen=True)
class Line:
    """A command, and the name of the file that contains it."""

    place: str
    words: tuple[str, ...]


def parse(words: Sequence[str]) -> None:
    """Check a `diffseg …`, `python -m jobs.…`, `make …` or `ray …` command.

    Raises:
        Refused: The program would not accept it; the message is the program's own.
    """
    match list(words):
        case ["diffseg"] | ["diffseg", "--help"]:
            pass
        case ["diffseg", name, *rest]:
            _parse_job(name, rest)
        case ["python", "-m", module, *rest] if module.startswith("jobs."):
            _parse_job(module.removeprefix("jobs."), rest)
        case ["make", *rest]:
            _parse_make(rest)
        case ["ray", *rest]:
            _parse_ray(rest)
        case _:
            raise Refused(f"no parser for {shlex.join(words)}")


def simple_commands(place: str, text: str) -> Iterator[Line]:
    """Yield the commands in a line of shell, without keywords, assignments and redirections around them."""
    reader = shlex.shlex(text, posix=True, punctuation_chars=True)
    reader.whitespace_split = True
    words: list[str] = []
    for word in [*reader, ";"]:
        if word in (";", "&&", "||", "|", ">"):
            while words and (
                words[0] in ("do", "done", "while", "until", "timeout") or words[0].isdigit() or "=" in words[0]
            ):
                words.pop(0)
            if words:
                yield Line(place, tuple(words))
            words = []
        else:
            words.append(word)


def block_commands(place: str, block: str) -> Iterator[Line]:
    """Yield the commands in a block of shell lines, without comments; backslashes continue lines."""
    for line in block.replace("\\\n", " ").splitlines():
        yield from simple_commands(place, re.sub(r"(^|\s)#.*", "", line))


def _parse_job(name: str, words: list[str]) -> None:
    if name not in COMMANDS:
        raise Refused(f"no command diffseg {name}")
    module = importlib.import_module(f"jobs.{name}")
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            if hasattr(module, "parse"):  # a command that checks more than its flags
                module.parse(words)
            else:
                with mock.patch.object(module, "parsed", _stop_after_parsing):
                    module.main(words)
    except _ParsedError:
        pass
    except SystemExit as error:
        if error.code != 0:  # --help exits with 0
            raise Refused(f"diffseg {name}: {output.getvalue()}") from None


class _ParsedError(BaseException):
    """The flags of a command were accepted; the command must not go on."""


def _stop_after_parsing(*arguments: Any) -> None:
    parsed(*arguments)
    raise _ParsedError


def _parse_make(words: list[str]) -> None:
    """Let make read its Makefile and plan the targets; `--dry-run` prints commands instead of running them."""
    command = ["make", "--dry-run", "--no-print-directory", *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if result.returncode:
        raise Refused(f"{shlex.join(['make', *words])}: {result.stderr}")


def _parse_ray(words: list[str]) -> None:
    from ray.scripts.scripts import cli  # takes seconds

    name, command = "ray", cli
    try:
        while isinstance(command, click.Group):
            name, command, words = command.resolve_command(click.Context(command), words)
        context = command.make_context(name, list(words))
    except click.ClickException as error:
        raise Refused(f"ray {name}: {error.format_message()}") from None
    if entrypoint := context.params.get("entrypoint"):
        parse(entrypoint)
