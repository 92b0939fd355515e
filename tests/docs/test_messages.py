"""The messages that the cluster guide explains are messages that the program prints."""

from __future__ import annotations

import ast
import re

import pytest
from command_lines import ROOT

GUIDE = ROOT / "docs" / "cluster.md"
HEADING = "## Messages and what to do"

FRAGMENT_CHARACTERS = 12
"""Shortest piece of a message, between two values, that is looked up."""

COMPARED_CHARACTERS = 24
"""What follows in a piece may be a value, such as the name of an exception."""


def explained_messages() -> list[str]:
    """Return the messages in the first column of the guide's table."""
    section = GUIDE.read_text().split(HEADING + "\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return [message for row in rows if (message := re.findall(r"`([^`]+)`", row)[0]).count(" ") > 1]


def fragments(message: str) -> list[str]:
    """Return the beginnings of the literal pieces of a message, between numbers, URLs and ellipses."""
    pieces = re.split(r"\d+(?: s| min)?|…|s3://", message)
    return [piece[:COMPARED_CHARACTERS] for piece in pieces if len(piece) >= FRAGMENT_CHARACTERS]


def printed_text() -> str:
    """Return every string literal of the program, one per line."""
    paths = [path for package in ("diffseg", "pipeline", "jobs") for path in (ROOT / package).rglob("*.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


@pytest.fixture(scope="module")
def program_text() -> str:
    return printed_text()


@pytest.mark.parametrize("message", explained_messages())
def test_the_program_prints_the_message(message: str, program_text: str) -> None:
    assert fragments(message)
    assert [piece for piece in fragments(message) if piece not in program_text] == []


def test_the_guide_explains_many_messages() -> None:
    assert len(explained_messages()) > 15


def test_a_message_that_nothing_prints_is_noticed(program_text: str) -> None:
    assert [piece for piece in fragments("7 of 8 trains are late: …") if piece not in program_text] == [
        " trains are late: "
    ]
