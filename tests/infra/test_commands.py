from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_lines import Line, Refused, parse, simple_commands
from manifests import INFRA, LAUNCHERS, OVERLAYS, ROOT, commands

CHECKED = ("diffseg", "python", "ray")


GUIDE = ROOT / "docs" / "cluster.md"


def guide_commands() -> list[Line]:
    """Return every command in the shell blocks of the cluster guide."""
    text = GUIDE.read_text()
    lines = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            lines += simple_commands(GUIDE.name, re.sub(r"\s#.*", "", line))
    return lines


def test_every_command_of_a_manifest_is_one_that_its_program_takes() -> None:
    lines = [line for line in commands() if line.words[0] in CHECKED]
    for line in lines:
        try:
            parse(line.words)
        except Refused as error:
            pytest.fail(f"{line.place}: {shlex.join(line.words)}: {error}")
    assert {line.place for line in lines} == {*OVERLAYS, *(path.name for path in LAUNCHERS)}
    assert {line.words[:2] for line in lines} == {
        ("ray", "start"),
        ("ray", "stop"),
        ("ray", "drain-node"),
        ("python", "-m"),
    }


def test_every_command_of_the_guide_is_one_that_its_program_takes() -> None:
    lines = [line for line in guide_commands() if line.words[0] in CHECKED]
    for line in lines:
        try:
            parse(line.words)
        except Refused as error:
            pytest.fail(f"{shlex.join(line.words)}: {error}")
    assert {line.words[0] for line in lines} >= {"diffseg", "ray"}


def test_every_path_and_target_of_the_guide_is_there() -> None:
    words = [word for line in guide_commands() for word in line.words]
    paths = [word for word in words if word.startswith("infra/")]
    assert len(paths) > 3
    assert [path for path in paths if not (ROOT / path).exists()] == []
    targets = {line.words[1] for line in guide_commands() if line.words[0] == "make"}
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in (GUIDE, INFRA / "README.md"):
        links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
        assert [link for link in links if not (page.parent / Path(link)).exists()] == []


@pytest.mark.parametrize(
    "line",
    [
        "python -m jobs.label s3://in s3://out --worker 64",
        "python -m jobs.lable s3://in s3://out",
        "ray start --head --num-cpu=0x",
        "ray drain-node --reason SPOT --reason-message x",
        "ray job submit --adress http://localhost:8265 -- python -m jobs.label s3://in s3://out",
        "ray job submit -- python -m jobs.label s3://in s3://out --modle tiny",
    ],
)
def test_a_misspelt_command_is_found(line: str) -> None:
    with pytest.raises(Refused):
        parse(shlex.split(line))
