from __future__ import annotations

import shlex

import pytest
from command_lines import Refused, parse
from manifests import LAUNCHERS, OVERLAYS, commands

CHECKED = ("diffseg", "python", "ray")


def test_every_command_of_a_manifest_is_accepted_by_its_program() -> None:
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
        ("diffseg", "label"),
    }


@pytest.mark.parametrize(
    "line",
    [
        "diffseg label s3://in s3://out --worker 64",
        "python -m jobs.lable s3://in s3://out",
        "ray start --head --num-cpu=0x",
        "ray drain-node --reason SPOT --reason-message x",
        "ray job submit --adress http://localhost:8265 -- python -m jobs.label s3://in s3://out",
        "ray job submit -- python -m jobs.label s3://in s3://out --modle tiny",
    ],
)
def test_a_misspelt_command_is_noticed(line: str) -> None:
    with pytest.raises(Refused):
        parse(shlex.split(line))
