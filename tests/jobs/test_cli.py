from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from jobs import cli


def test_help_names_every_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    for name, about in cli.JOBS.items():
        assert name in text
        assert about in text


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lable"]) == 2
    assert "label" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.JOBS)
def test_every_job_has_help_and_says_what_the_list_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    assert f"usage: diffseg {name}" in capsys.readouterr().out
    assert (importlib.import_module(f"jobs.{name}").__doc__ or "").splitlines()[0] == cli.JOBS[name]


def test_help_of_label_waits_for_neither_torch_nor_ray() -> None:
    code = "import sys\nfrom jobs.cli import main\ntry: main(['label', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'ray', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=540)
