"""What `diffseg submit` refuses, packs and asks for before it asks the cluster."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from ray.dashboard.modules.job.pydantic_models import JobType
from ray.job_submission import JobDetails, JobStatus

import jobs.submission.working_dir
from jobs import submit
from jobs.submission.log import exit_code
from jobs.submission.working_dir import pack_folder
from pipeline.storage.urls import SourceError

URLS = ["s3://in/photos", "s3://out/labels"]
HERE = ["--address", "http://127.0.0.1:1"]


def test_its_own_flags_are_told_from_those_of_the_job_wherever_they_stand() -> None:
    line = "s3://a/b --env X --workers 1 s3://c/d --address http://h:8265 --tau 0.9,1 --exclude *.bin --exclude big"
    command, label, words = submit.parse(line.split())
    assert (command.address, command.env, command.exclude) == ("http://h:8265", ("X",), ("*.bin", "big"))
    assert words == ["s3://a/b", "--workers", "1", "s3://c/d", "--tau", "0.9,1"]
    assert (label.source, label.out, label.label.method.merging.tau) == ("s3://a/b", "s3://c/d", (0.9, 1.0))


@pytest.mark.parametrize("wrong", [["--wokers", "3"], ["--batch-size", "0"], ["--fit", "stretch"], ["s3://a/third"]])
def test_what_label_would_not_take_is_refused_here(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        submit.main([*URLS, *HERE, *wrong])
    assert "127.0.0.1" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([*URLS, "--storage-options", '{"key": "planted"}'], "AWS_ACCESS_KEY_ID"),
        (["s3://me:planted@in/photos", URLS[1]], "password"),
        (["https://in/photos.tar?signature=planted", URLS[1]], "signature"),
        (["photos", URLS[1]], "all nodes share"),
        ([URLS[0], "~/labels"], "all nodes share"),
        ([URLS[0], "file://labels"], "all nodes share"),
        ([*URLS, "--env", "DIFFSEG_NO_SUCH_VARIABLE"], "no such variable"),
        ([*URLS, "--env", "PLANTED_API_KEY"], "secretKeyRef"),
        ([*URLS, "--env", "ENDPOINT_WITH_PASSWORD_IN_IT"], "secretKeyRef"),
        ([*URLS, "--env", "ENDPOINT"], "secretKeyRef"),
    ],
)
def test_what_would_be_in_vain_or_shown_to_all_is_refused(
    line: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PLANTED_API_KEY", "ENDPOINT_WITH_PASSWORD_IN_IT"):
        monkeypatch.setenv(name, "planted")
    monkeypatch.setenv("ENDPOINT", "http://me:planted@store:9000")
    assert submit.main([*line, *HERE]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "planted" not in error


@pytest.mark.parametrize("address", [[], ["--address", "head:6379"], ["--address", "ray://head:10001"]])
def test_an_address_that_is_no_job_server(
    address: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert submit.main([*URLS, *address]) == 2
    assert "http://HEAD:8265" in capsys.readouterr().err


def test_variables_are_given_by_name_and_pip_installs_what_the_urls_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    command, label, _ = submit.parse([*URLS, "--env", "AWS_ENDPOINT_URL", "--pip", "--model", "gs://bucket/sd15"])
    found = submit.runtime_environment(command, label)
    assert found["env_vars"]["AWS_ENDPOINT_URL"] == "http://store:9000"
    names = {line.partition(">")[0].partition("<")[0] for line in found["pip"]}
    assert {"torch", "diffusers", "s3fs", "gcsfs"} <= names
    assert not {"ray", "ray[default]", "adlfs", "pytest", "scikit-image"} & names
    assert not any(";" in line for line in found["pip"])


def test_no_dependency_is_asked_for_unless_it_is_wanted() -> None:
    command, label, _ = submit.parse(URLS)
    assert submit.runtime_environment(command, label) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout as people have it."""
    files = {
        "jobs/label.py": 10,
        "jobs/__pycache__/label.pyc": 10,
        ".git/objects/pack": 10,
        ".venv/lib/torch.so": 10,
        ".gitignore": 0,
        "data/.gitignore": 0,
        "data/kept.txt": 10,
        "data/photo.jpg": 10,
        "tests/test_label.py": 10,
        "shard.tar": 10,
        "ignored/a": 10,
    }
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / ".gitignore").write_text("ignored/\n# and nothing else\n")
    (tmp_path / "data" / ".gitignore").write_text("*\n!kept.txt\n")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path)
    return tmp_path


def packed(folder: Path, target: Path, *exclude: str) -> list[str]:
    pack_folder(folder, target, exclude=exclude)
    with zipfile.ZipFile(target) as archive:
        return archive.namelist()


def test_a_working_directory_without_what_a_job_does_not_need(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path_factory.mktemp("zip") / "a.zip"
    assert packed(folder, target) == [".gitignore", "data/kept.txt", "jobs/label.py"]
    assert packed(folder, target, "*.txt", "/.gitignore") == ["jobs/label.py"]
    (folder / ".rayignore").write_text("data\n")
    assert packed(folder, target) == [".gitignore", ".rayignore", "jobs/label.py"]
    before = target.read_bytes()
    pack_folder(folder, target)
    assert target.read_bytes() == before, "the same name in Ray, so that it is not sent again"


def test_one_that_is_too_large_is_not_packed_and_tells_of_what(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path_factory.mktemp("zip") / "a.zip"
    (folder / "weights" / "unet").mkdir(parents=True)
    for name in ("weights/unet/a.bin", "weights/unet/b.bin"):
        with (folder / name).open("wb") as file:
            file.truncate(jobs.submission.working_dir.LIMIT_BYTES // 2 + 1)
    with pytest.raises(SourceError) as raised:
        pack_folder(folder, target)
    said = str(raised.value)
    assert "100.0 MiB at most" in said
    assert [line.split()[-1] for line in said.splitlines()[1:4]] == ["weights/", "weights/unet/", "weights/unet/a.bin"]
    assert not target.exists()
    assert "weights/unet/a.bin" in packed(folder, target, "b.bin")
    with pytest.raises(SourceError, match="no such folder"):
        pack_folder(folder / "missing", target)


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 1, 1),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 143),
    ],
)
def test_exit_codes(status: JobStatus, driver: int | None, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    job = JobDetails(
        type=JobType.SUBMISSION, status=status, entrypoint="", driver_exit_code=driver, message="why it failed"
    )
    assert exit_code(job) == code
    assert ("why it failed" in capsys.readouterr().err) == (driver is None and status == JobStatus.FAILED)
