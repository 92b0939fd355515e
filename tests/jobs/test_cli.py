from __future__ import annotations

import subprocess
import sys

import pytest

from jobs import cli


def test_help_lists_every_command_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in cli.COMMANDS:
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        assert line.endswith(cli.summary(name))
        assert cli.summary(name).endswith(".")


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lable"]) == 2
    assert "label" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_every_command_begins_with_its_summary(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    help_text = capsys.readouterr().out
    assert f"usage: diffseg {name}" in help_text
    assert cli.summary(name) in help_text


@pytest.mark.parametrize("words", [[], ["label", "--help"]])
def test_help_imports_neither_torch_nor_ray(words: list[str]) -> None:
    code = f"import sys\nfrom jobs.cli import main\ntry: main({words})\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'ray', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=540)
