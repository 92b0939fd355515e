"""Run the README's commands from a folder of photographs to a trained network as they are written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from runs import DEADLINE, environment
from warm import WarmCommand

from diffseg.tiny.scenes.scenes import generate_scene

README = Path(__file__).parents[2] / "README.md"
HEADING = "## From a folder of photographs to a trained network"


def commands() -> list[list[str]]:
    """Return the words of each line in the section's shell blocks."""
    section = README.read_text().split(HEADING + "\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [words for words in lines if words]


def test_the_quick_start_ends_with_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photographs").mkdir()
    for number in range(8):
        Image.fromarray(generate_scene(number, 96).image).save(tmp_path / "photographs" / f"{number}.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    lines = commands()
    assert len(lines) >= 5
    for program, *words in lines:
        assert program == "diffseg"
        done = WarmCommand("jobs.cli", *words, variables=environment()).wait(DEADLINE)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "network" / "model.safetensors").is_file()
    assert (tmp_path / "network" / "curves.png").is_file()
    record = json.loads((tmp_path / "network" / "labels" / "run.json").read_text())
    assert record["source"].endswith("shards")
