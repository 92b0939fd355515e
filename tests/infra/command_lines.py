"""Parsing a command as the real program would, without running it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import click

import jobs.label
import jobs.submit
import jobs.verify
from jobs.common import RunFolder, parsed

PARSERS = {
    "label": jobs.label.parse,
    "submit": jobs.submit.parse,
    "status": lambda words: parsed(RunFolder, words, "status", None),
    "verify": lambda words: parsed(jobs.verify.VerifyCommand, words, "verify", None),
}


class Refused(Exception):
    """The program would not take the command."""


def parse(words: Sequence[str]) -> None:
    """Check a `diffseg …`, `python -m jobs.…` or `ray …` line. Raises Refused with what the program says."""
    if words[0] == "ray":
        _parse_ray(list(words[1:]))
    elif words[0] == "diffseg":
        _parse_job(words[1], list(words[2:]))
    elif tuple(words[:2]) == ("python", "-m"):
        _parse_job(words[2].removeprefix("jobs."), list(words[3:]))
    else:
        raise Refused(f"neither diffseg nor ray: {' '.join(words)}")


def _parse_ray(words: list[str]) -> None:
    from ray.scripts.scripts import cli  # seconds

    name, command = "ray", cli
    try:
        while isinstance(command, click.Group):
            name, command, words = command.resolve_command(click.Context(command), words)
        context = command.make_context(name, list(words))
    except click.ClickException as error:
        raise Refused(f"ray {name}: {error.format_message()}") from None
    if entrypoint := context.params.get("entrypoint"):
        parse(entrypoint)


def _parse_job(name: str, words: list[str]) -> None:
    if name not in PARSERS:
        raise Refused(f"no parser for diffseg {name}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            PARSERS[name](words)
    except SystemExit:
        raise Refused(f"diffseg {name}: {said.getvalue()}") from None
