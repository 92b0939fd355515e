"""Ray clusters of a head and a second node on one machine, beside any other Ray there, and killed without `ray stop`.

Every node has a folder that is the current folder of all its processes, whoever started them and whatever they call
themselves: that is how they are found again, and why no process of another Ray can be hit.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from runs import environment

START_SECONDS = 300.0
STORE_BYTES = 80_000_000  # about the least that Ray takes; a commit record is all that passes through it
LONGEST_TEMPORARY = 30  # characters: the paths of Ray's sockets have about a hundred in all
NOT_OURS = ("IDLE", "DashboardAgent", "RuntimeEnvAgent")


def processes(folder: Path) -> list[psutil.Process]:
    """All that live with this folder, or one below it, as their current folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def named(name: str, folder: Path) -> list[psutil.Process]:
    """Those that live there and have this name."""
    found = []
    for process in processes(folder):
        with contextlib.suppress(psutil.Error):
            if process.name() == name:
                found.append(process)
    return found


def kill_all(find: Callable[[], list[psutil.Process]]) -> None:
    """SIGKILL to what is found, until nothing is: a process may start another one in the moment of its death."""
    while found := find():
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=0.1)


def title(process: psutil.Process) -> str:
    """What a process calls itself; "" once it is gone."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()
    return ""


class Node:
    """`ray start`, and what it leaves running."""

    def __init__(self, folder: Path, flags: list[str], variables: dict[str, str], cpus: int = 1) -> None:
        self.folder = folder
        folder.mkdir()
        line = [sys.executable, "-m", "ray.scripts.scripts", "start", *flags, "--num-cpus", cpus, "--temp-dir", folder]
        line += ["--dashboard-agent-listen-port", 0]  # else one for all Rays of a machine, and jobs need it
        line += ["--object-store-memory", STORE_BYTES, "--disable-usage-stats", "--include-log-monitor", "false"]
        with (folder / "start.log").open("wb") as log:
            self.starting = subprocess.Popen(
                [str(word) for word in line], cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT
            )

    def raylet(self) -> psutil.Process | None:
        """The node's own process, once it is up and while it lives."""
        if self.starting.poll() is None:
            return None
        return next(iter(named("raylet", self.folder)), None)

    def wait(self) -> None:
        """Until it is up. Raises RuntimeError, with what `ray start` said."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.starting.wait(START_SECONDS)
        if self.starting.poll() != 0:
            raise RuntimeError(f"ray start: {self.starting.poll()}: {(self.folder / 'start.log').read_text()}")

    def workers(self) -> list[psutil.Process]:
        """The processes of its actors, oldest first."""
        return _workers(self.folder)

    def kill(self) -> None:
        """All of it at once, as when the machine loses its power."""
        kill_all(lambda: processes(self.folder))


class Cluster:
    """A head and a second node with a CPU each, and a token that nobody else has.

    With `job_server` it is a head alone, which has no CPU for actors, but a dashboard, where jobs are submitted.
    variables: what the environment of all nodes has besides.
    """

    def __init__(self, folder: Path, *, job_server: bool = False, variables: Mapping[str, str] | None = None) -> None:
        folder.mkdir()
        self.folder = folder
        self.environment = environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment["TMPDIR"] = str(folder)  # what killed workers leave goes with the cluster
        self.environment |= variables or {}
        flags = ["--head", "--port", "0", "--include-dashboard", str(job_server).lower(), "--dashboard-port", "0"]
        self.head = Node(folder / "0", flags, self.environment, cpus=0 if job_server else 1)
        self.nodes = [self.head]
        self.head.wait()
        self.address = (self.head.folder / "ray_current_cluster").read_text().strip()
        if not job_server:
            self.join()

    def join(self, *flags: str) -> Node:
        """Let a fresh node come, in its own time; flags of `ray start` besides."""
        folder = self.folder / str(len(self.nodes))
        self.nodes.append(Node(folder, ["--address", self.address, *flags], self.environment))
        return self.nodes[-1]

    @property
    def dashboard(self) -> str:
        """Its URL, and that of the job server, where there is one."""
        (url,) = set(re.findall(r"http://127\.0\.0\.1:\d+", (self.head.folder / "start.log").read_text()))
        return url

    def second_raylet(self) -> psutil.Process | None:
        """Of the second node, once it is up and while it lives."""
        return self.nodes[-1].raylet()

    def whole(self) -> bool:
        """Both nodes are up; a second one that is just coming is waited for."""
        with contextlib.suppress(RuntimeError):
            self.nodes[-1].wait()
        return self.head.raylet() is not None and self.second_raylet() is not None

    def workers(self) -> list[psutil.Process]:
        """The processes of actors on all nodes, dead nodes too, oldest first."""
        return _workers(self.folder)

    def kill(self) -> None:
        """Everything at once, as when the machines lose their power."""
        kill_all(lambda: processes(self.folder))
        for node in self.nodes:
            node.starting.wait()


class AutoscalingCluster:
    """A head without CPUs, whose autoscaler starts and ends nodes of one CPU on this machine, `most` at once.

    As `ray.cluster_utils.AutoscalingCluster`, which would end every other Ray on this machine with `ray stop`, and
    reads a file that is not in Ray's wheel.
    """

    def __init__(self, folder: Path, *, most: int, port: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.address = f"127.0.0.1:{port}"
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        autoscaler = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        self.environment = environment() | token | autoscaler | {"TMPDIR": str(folder)}
        config = folder / "autoscaling.json"
        config.write_text(json.dumps(self._config(most)))
        flags = ["--head", "--node-ip-address", "127.0.0.1", "--port", str(port), "--include-dashboard", "false"]
        self.head = Node(folder / "0", [*flags, "--autoscaling-config", str(config)], self.environment, cpus=0)
        self.head.wait()

    def raylets(self) -> int:
        """How many nodes there are, with the head."""
        return len(named("raylet", self.folder))

    def _config(self, most: int) -> dict[str, Any]:
        provider = {"type": "fake_multinode", "gcs_address": self.address, "use_node_id_as_ip": True}
        provider |= {"disable_node_updaters": True, "disable_launch_config_check": True}
        worker = {"CPU": 1, "object_store_memory": STORE_BYTES}
        commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
        return {f"{name}_commands": [] for name in commands} | {
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "cluster_synced_files": [],
            "upscaling_speed": 1.0,
            "cluster_name": "fake",
            "provider": provider,
            "max_workers": most,
            "idle_timeout_minutes": 0.05,
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": most},
            },
        }


def _workers(folder: Path) -> list[psutil.Process]:
    found = []
    for process in processes(folder):
        words = title(process)
        if words.startswith("ray::") and not words.removeprefix("ray::").startswith(NOT_OURS):
            found.append(process)
    return sorted(found, key=_age, reverse=True)


def _age(process: psutil.Process) -> float:
    return time.time() - process.create_time()


def young(process: psutil.Process, seconds: float) -> bool:
    """Whether it was started within the last seconds."""
    return _age(process) < seconds


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for clusters; when the block ends nothing lives there any more, and it is gone."""
    base = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir=base if len(base) <= LONGEST_TEMPORARY else "/tmp")).resolve()
    try:
        yield folder
    finally:
        clear(folder)


def clear(folder: Path) -> None:
    """Kill all that lives there, and remove it."""
    kill_all(lambda: [process for process in processes(folder) if process.pid != os.getpid()])
    shutil.rmtree(folder, ignore_errors=True)
