"""The job for Slurm, with stand-ins for the programs of Slurm, Ray and this package, which record how they are called.

end_to_end/test_slurm.py runs it on a real Slurm and a real Ray.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command_lines import parse
from manifests import INFRA
from namespaces import OTHER_USER, needs_root

JOB = INFRA / "slurm" / "diffseg.sbatch"
SRC_AND_FLAGS = ["s3://in/a b", "s3://out/labels", "--device", "cuda", "--workers", "1:8"]
STAND_IN = f"""#!{sys.executable}
import json, os, subprocess, sys, time
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([name, words, dict(os.environ)]) + "\\n")
if name == "hostname":
    print("10.1.2.3 192.168.0.3")
elif name == "python":
    sys.exit(subprocess.run([sys.executable, *words]).returncode)
elif name == "diffseg":
    while not os.path.exists(os.environ["CALLS"] + ".end"):
        time.sleep(0.02)
    sys.exit(int(os.environ["CODE"]))
elif name == "srun":
    while words[0].startswith("--"):
        words.pop(0)
    sys.exit(subprocess.run(words).returncode)
elif name == "ray" and words[0] != "stop":
    sys.exit(subprocess.run(words[words.index("--") + 1 :]).returncode)
"""


class Job:
    """The script as Slurm's daemon runs it on the first node."""

    def __init__(self, folder: Path, *, number: int = 4711, code: int = 0, **variables: str) -> None:
        folder.mkdir()
        self.folder, self._calls = folder, folder / "calls"
        for name in ("hostname", "python", "diffseg", "srun", "ray", "scontrol"):
            (folder / name).write_text(STAND_IN)
            (folder / name).chmod(0o755)
        slurm = {"SLURM_JOB_ID": str(number), "SLURM_JOB_NODELIST": "gpu[1-4]", "SLURM_CPUS_ON_NODE": "64"}
        own = {"CALLS": str(self._calls), "CODE": str(code), "DIFFSEG_LOCAL": str(folder / "disk")}
        path = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", str(JOB), *SRC_AND_FLAGS],
                env=os.environ | slurm | own | path | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def calls(self, name: str) -> list[tuple[list[str], Mapping[str, str]]]:
        """Return the words and the environment of each call of a program."""
        lines: list[list[Any]] = []
        if self._calls.exists():
            lines = [json.loads(line) for line in self._calls.read_text().splitlines()]
        return [(words, environment) for program, words, environment in lines if program == name]

    def wait_for(self, name: str, *words: str) -> None:
        """Wait until a program was called with these first words."""
        end = time.monotonic() + 60
        while not any(call[: len(words)] == list(words) for call, _ in self.calls(name)):
            assert time.monotonic() < end, (self.folder / "log").read_text()
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.02)

    def end(self) -> int:
        """Let the driver end, and return the exit code of the job."""
        self._calls.with_name("calls.end").touch()
        return self.process.wait(60)


def test_ray_and_the_driver_accept_their_command_lines(tmp_path: Path) -> None:
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    job = Job(tmp_path / "job")
    assert job.end() == 0
    (stop, _), (words, environment) = job.calls("ray")
    parse(["ray", *stop])
    assert words[0] == "symmetric-run"
    own, driver = words[1 : words.index("--")], words[words.index("--") + 1 :]
    start = curate_and_validate_ray_start_args(list(own))  # which empties the list
    address = own[own.index("--address") + 1]
    host, _, port = address.partition(":")
    parse(["ray", "start", "--head", f"--node-ip-address={host}", f"--port={port}", *start])
    parse(["ray", "start", "--address", address, "--block", *start])
    parse(driver)
    assert driver == ["diffseg", "label", *SRC_AND_FLAGS, "--address", address]
    assert host == "10.1.2.3"
    assert len(bytes.fromhex(environment["RAY_AUTH_TOKEN"])) == 32
    assert environment["RAY_AUTH_TOKEN"] not in " ".join(words)


def test_two_jobs_share_no_port_folder_or_token_but_the_cache_of_a_node(tmp_path: Path) -> None:
    disk = tmp_path / "nvme"
    jobs = [Job(tmp_path / str(number), number=number, DIFFSEG_LOCAL=str(disk)) for number in (4711, 4712)]
    assert [job.end() for job in jobs] == [0, 0]
    (first, first_variables), (second, second_variables) = (job.calls("ray")[-1] for job in jobs)
    assert first[first.index("--address") + 1] != second[second.index("--address") + 1]
    assert f"--temp-dir={disk}/ray-4711" in first
    assert f"--temp-dir={disk}/ray-4712" in second
    assert first_variables["RAY_AUTH_TOKEN"] != second_variables["RAY_AUTH_TOKEN"]
    cache = Path(first_variables["DIFFSEG_CACHE"])
    assert cache == Path(second_variables["DIFFSEG_CACHE"])
    assert cache.parent == disk
    assert cache.stat().st_mode & 0o777 == 0o700


@needs_root
def test_a_cache_of_another_user_is_not_used(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "cache")
    os.chown(tmp_path / "cache", OTHER_USER, OTHER_USER)
    job = Job(tmp_path / "job", DIFFSEG_CACHE=str(tmp_path / "cache"))
    assert job.end() == 2
    assert "must be a folder of" in (job.folder / "log").read_text()
    assert [words[0] for words, _ in job.calls("ray")] == ["stop"]


@pytest.mark.parametrize("code", [0, 2, 143])
def test_a_preempted_job_is_queued_again_and_others_end_with_the_code_of_the_driver(code: int, tmp_path: Path) -> None:
    session = tmp_path / "disk" / "ray-4711"
    session.mkdir(parents=True)
    job = Job(tmp_path / "job", code=code, DIFFSEG_LOCAL=str(tmp_path / "disk"))
    assert job.end() == code
    assert session.exists() == (code != 0)
    requeued = [words for words, _ in job.calls("scontrol")]
    assert requeued == ([["requeue", "4711"]] if code == 143 else []), "only a preempted step ends with 143"


def test_before_the_time_limit_the_job_is_queued_again_and_its_next_start_runs_the_same_command(tmp_path: Path) -> None:
    first = Job(tmp_path / "first")
    first.wait_for("diffseg", "label")
    for _ in range(2):  # the script goes on waiting after each signal
        before = len(first.calls("scontrol"))
        first.process.send_signal(signal.SIGUSR1)
        while len(first.calls("scontrol")) == before:
            assert first.process.poll() is None
            time.sleep(0.02)
    assert [words for words, _ in first.calls("scontrol")] == [["requeue", "4711"]] * 2
    assert first.end() == 0
    second = Job(tmp_path / "second", SLURM_RESTART_COUNT="1")
    assert second.end() == 0
    assert second.calls("diffseg")[-1][0] == first.calls("diffseg")[-1][0]
    assert "start 2 of job 4711 on gpu[1-4]" in (second.folder / "log").read_text()
    options = [line.split("=")[0] for line in JOB.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --signal", "#SBATCH --open-mode", "#SBATCH --exclusive"} <= set(options)
