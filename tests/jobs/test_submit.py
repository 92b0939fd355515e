"""Tests of `diffseg submit` without a cluster: which options it refuses, and the environment that it requests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs import submit
from jobs.submission.program import program

URLS = ["s3://in/photos", "s3://out/labels"]
HERE = ["--address", "http://127.0.0.1:1"]


def test_flags_of_submit_and_of_label_may_be_mixed() -> None:
    line = "s3://a/b --env X --workers 1 s3://c/d --address http://h:8265 --tau 0.9,1 --exclude *.bin --exclude big"
    command, label, words = submit.parse(line.split())
    assert (command.address, command.env, command.exclude) == ("http://h:8265", ("X",), ("*.bin", "big"))
    assert words == ["s3://a/b", "--workers", "1", "s3://c/d", "--tau", "0.9,1"]
    assert (label.source, label.out, label.label.method.merging.tau) == ("s3://a/b", "s3://c/d", (0.9, 1.0))


@pytest.mark.parametrize("wrong", [["--wokers", "3"], ["--batch-size", "0"], ["--fit", "stretch"]])
def test_options_that_label_rejects_are_refused_before_submission(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        submit.main([*URLS, *HERE, *wrong])
    assert "127.0.0.1" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([*URLS, "--storage-options", '{"key": "planted"}'], "AWS_ACCESS_KEY_ID"),
        (["s3://me:planted@in/photos", URLS[1]], "password"),
        (["https://in/photos.tar?signature=planted", URLS[1]], "signature"),
        (["photos", URLS[1]], "all nodes share"),
        ([URLS[0], "more/photos", URLS[1]], "more/photos is a relative path"),
        ([URLS[0], "~/labels"], "all nodes share"),
        ([URLS[0], "file://labels"], "all nodes share"),
        ([*URLS, "--env", "DIFFSEG_NO_SUCH_VARIABLE"], "no such variable"),
        ([*URLS, "--env", "PLANTED_API_KEY"], "secretKeyRef"),
        ([*URLS, "--env", "ENDPOINT_WITH_PASSWORD_IN_IT"], "secretKeyRef"),
        ([*URLS, "--env", "ENDPOINT"], "secretKeyRef"),
    ],
)
def test_secrets_and_relative_paths_are_refused(
    line: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PLANTED_API_KEY", "ENDPOINT_WITH_PASSWORD_IN_IT"):
        monkeypatch.setenv(name, "planted")
    monkeypatch.setenv("ENDPOINT", "http://me:planted@store:9000")
    assert submit.main([*line, *HERE]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "planted" not in error


@pytest.mark.parametrize("address", [[], ["--address", "head:6379"], ["--address", "ray://head:10001"]])
def test_an_address_that_is_not_a_job_server_is_refused(
    address: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert submit.main([*URLS, *address]) == 2
    assert "http://HEAD:8265" in capsys.readouterr().err


def test_variables_are_passed_by_name_and_pip_installs_the_drivers_of_the_stores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    command, label, _ = submit.parse([*URLS, "--env", "AWS_ENDPOINT_URL", "--pip", "--model", "gs://bucket/sd15"])
    environment = submit.runtime_environment(command, label)
    assert environment["env_vars"]["AWS_ENDPOINT_URL"] == "http://store:9000"
    names = {line.partition(">")[0].partition("<")[0] for line in environment["pip"]}
    assert {"torch", "diffusers", "s3fs", "gcsfs"} <= names
    assert not {"ray", "ray[default]", "adlfs", "pytest", "scikit-image"} & names
    assert not any(";" in line for line in environment["pip"])


def test_no_requirements_are_installed_by_default() -> None:
    command, label, _ = submit.parse(URLS)
    assert submit.runtime_environment(command, label) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}


def test_the_installed_command_runs_unless_the_working_directory_brings_the_package(tmp_path: Path) -> None:
    assert program(tmp_path) == program(None) == ["diffseg", "label"]
    assert program(Path(submit.__file__).parents[1]) == ["python", "-m", "jobs.label"]


@pytest.mark.parametrize("name", ["pipeline.py", "jobs/train.py", "diffseg/notes.txt"])
def test_modules_that_would_hide_the_packages_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert submit.main([*URLS, *HERE, "--working-dir", str(tmp_path)]) == 2
    assert f"{name.partition('/')[0]} would hide" in capsys.readouterr().err


def test_the_installed_command_ignores_modules_of_the_current_folder(tmp_path: Path) -> None:
    for name in ("pipeline.py", "jobs.py", "diffseg.py"):
        (tmp_path / name).write_text("raise SystemExit('a module of the user was imported')")
    command = Path(sys.executable).parent / "diffseg"
    result = subprocess.run(
        [command, "label", "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=540, check=False
    )
    assert (result.returncode, "usage: diffseg label" in result.stdout) == (0, True), result.stderr
