"""Whose Ray a run uses, with other runs, a cluster of `ray start` and another user's Ray on the same machine."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import STORE_BYTES, short_folder
from namespaces import as_other_user, isolated, needs_root
from runs import DEADLINE, environment

pytestmark = needs_root

SLEEPERS = Path(__file__).parent / "harness" / "sleepers.py"
RAY_START = (
    f"{sys.executable} -m ray.scripts.scripts start --head --port 0 --num-cpus 1 --include-dashboard false "
    f"--object-store-memory {STORE_BYTES} --disable-usage-stats --include-log-monitor false > start.log 2>&1"
)
LISTENERS = (
    "import psutil\n"
    "for c in psutil.net_connections('tcp'):\n"
    "    if c.status == psutil.CONN_LISTEN: print(c.laddr.ip.removeprefix('::ffff:'))\n"
)


def run(name: str, *, shards: int, seconds: float) -> str:
    """Return the command line of a run of sleeping workers with default flags, which writes to a folder."""
    source = f"/tmp/{{{','.join(f'{number:03d}' for number in range(shards))}}}.tar"
    line = [sys.executable, str(SLEEPERS), str(seconds), source, f"/tmp/{name}/out", "--device", "cpu"]
    return shlex.join(line)


class Machine:
    """A machine of its own: a folder that its processes see as /tmp, and nothing else of this machine's Rays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("first", "second", "home"):
            (folder / name).mkdir()
            (folder / name).chmod(0o777)
        folder.chmod(0o1777)

    def execute(self, script: str) -> None:
        variables = environment() | {"HOME": "/tmp/home", "TMPDIR": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            isolated(script, self.folder), env=variables, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.said("first") + self.said("second")

    def said(self, name: str) -> str:
        """Return what a run has printed."""
        path = self.folder / f"{name}.log"
        return " ".join(path.read_text().split()) if path.exists() else ""

    def commits(self, name: str) -> int:
        """Return how many shards a run has done."""
        return len(list((self.folder / name / "out" / "commits").glob("[!.]*.json")))


@pytest.fixture
def machine() -> Iterator[Machine]:
    with short_folder() as folder:
        yield Machine(folder)


def test_two_runs_of_a_user_share_nothing_and_listen_on_loopback_only(machine: Machine) -> None:
    first, second = run("first", shards=200, seconds=0.5), run("second", shards=6, seconds=0.2)
    machine.execute(f"""
        {first} > first.log 2>&1 & first=$!
        until ls first/out/commits/*.json > /dev/null 2>&1; do kill -0 $first || exit 8; sleep 0.2; done
        {second} > second.log 2>&1 & second=$!
        until grep -q 'started a private Ray' second.log; do kill -0 $second || exit 9; sleep 0.2; done
        {shlex.join([sys.executable, "-c", LISTENERS])} > listeners
        kill -9 $first
        wait $second
    """)
    assert "started a private Ray" in machine.said("first")
    assert machine.commits("second") == 6
    assert set((machine.folder / "listeners").read_text().split()) == {"127.0.0.1"}
    assert list((machine.folder / "home").iterdir()) == [], "no token and nothing else is written to the home"


def test_a_cluster_of_ray_start_is_joined_by_its_user_and_not_by_another_one(machine: Machine) -> None:
    other = as_other_user(run("second", shards=6, seconds=0.2))
    machine.execute(f"""
        RAY_AUTH_MODE=disabled {RAY_START} || exit 7
        {run("first", shards=6, seconds=0.2)} > first.log 2>&1 || exit 8
        {other} > second.log 2>&1
    """)
    assert "joined Ray at 10.9.8.7:" in machine.said("first")
    assert "(1 node)" in machine.said("first")
    assert "started a private Ray" in machine.said("second")
    assert (machine.commits("first"), machine.commits("second")) == (6, 6)


def test_the_cluster_of_another_user_is_left_alone(machine: Machine) -> None:
    start = as_other_user(f"env RAY_AUTH_MODE=disabled {RAY_START}")
    machine.execute(f"""
        {start} || exit 7
        {run("first", shards=6, seconds=0.2)} > first.log 2>&1
    """)
    assert "started a private Ray" in machine.said("first")
    assert machine.commits("first") == 6
