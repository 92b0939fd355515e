"""Ray clusters of a head and a second node on this machine, which leave every other Ray there alone.

Each node has a folder that is the current folder of all its processes, whoever started them and whatever their titles
are. That is how the processes are found again and killed without `ray stop`, which would end every Ray of the machine.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import psutil
from runs import environment

START_SECONDS = 300.0
STORE_BYTES = 80_000_000
"""Size of the object store: close to the least that Ray accepts, since only commit records pass through it."""
MAX_TEMPORARY_PATH = 30
"""Longest folder for temporary files that is used, in characters: the path of a Ray socket may have about a hundred."""
RAY_TITLES = ("IDLE", "DashboardAgent", "RuntimeEnvAgent")
"""Titles behind "ray::" of processes that are not actors."""


def processes(folder: Path) -> list[psutil.Process]:
    """Return the living processes whose current folder is this one or lies below it."""
    living = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def named(name: str, folder: Path) -> list[psutil.Process]:
    """Return the processes of a folder that have this name."""
    matching = []
    for process in processes(folder):
        with contextlib.suppress(psutil.Error):
            if process.name() == name:
                matching.append(process)
    return matching


def kill_all(find: Callable[[], list[psutil.Process]]) -> None:
    """Send SIGKILL until `find` returns nothing, because a process may start another one just before it dies."""
    while living := find():
        for process in living:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(living, timeout=0.1)


def title(process: psutil.Process) -> str:
    """Return the command line that a process shows, or "" once it is gone."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()
    return ""


def connected(candidates: Iterable[psutil.Process], ports: Set[int]) -> list[psutil.Process]:
    """Return the processes that have a TCP connection from one of these local ports.

    The title of an actor is no sign that it labels: each call for its progress replaces the title.
    """
    clients = []
    for process in candidates:
        with contextlib.suppress(psutil.Error):
            if any(connection.laddr.port in ports for connection in process.net_connections("tcp")):
                clients.append(process)
    return clients


class Node:
    """A node that `ray start` started."""

    def __init__(self, folder: Path, flags: list[str], variables: dict[str, str], cpus: int = 1) -> None:
        self.folder = folder
        folder.mkdir()
        line = [sys.executable, "-m", "ray.scripts.scripts", "start", *flags, "--num-cpus", cpus, "--temp-dir", folder]
        # The default port of the agent, which jobs need, would be the same for all Rays of a machine.
        line += ["--dashboard-agent-listen-port", 0]
        line += ["--object-store-memory", STORE_BYTES, "--disable-usage-stats", "--include-log-monitor", "false"]
        with (folder / "start.log").open("wb") as log:
            self.starting = subprocess.Popen(
                [str(word) for word in line], cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT
            )

    def raylet(self) -> psutil.Process | None:
        """Return the raylet once the node is up and while the raylet lives."""
        if self.starting.poll() is None:
            return None
        return next(iter(named("raylet", self.folder)), None)

    def wait(self) -> None:
        """Wait until the node is up. Raises RuntimeError with the output of `ray start`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.starting.wait(START_SECONDS)
        if self.starting.poll() != 0:
            raise RuntimeError(f"ray start: {self.starting.poll()}: {(self.folder / 'start.log').read_text()}")

    def workers(self) -> list[psutil.Process]:
        """Return the processes of the node's actors, oldest first."""
        return _workers(self.folder)

    def kill(self) -> None:
        """Kill all processes at once, as when a machine loses its power."""
        kill_all(lambda: processes(self.folder))


class Cluster:
    """A head and a second node with a CPU each, and a token of its own.

    With `job_server` it is a head without CPUs for actors, but with a dashboard, to which jobs are submitted.
    """

    def __init__(self, folder: Path, *, job_server: bool = False, variables: Mapping[str, str] | None = None) -> None:
        """Start the cluster.

        Args:
            folder: The folder of the cluster, which must not exist.
            job_server: Start a head alone, with a dashboard.
            variables: Additional environment variables of all nodes.
        """
        folder.mkdir()
        self.folder = folder
        self.environment = environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment["TMPDIR"] = str(folder)  # what killed workers leave is removed with the cluster
        self.environment |= variables or {}
        flags = ["--head", "--port", "0", "--include-dashboard", str(job_server).lower(), "--dashboard-port", "0"]
        self.head = Node(folder / "0", flags, self.environment, cpus=0 if job_server else 1)
        self.nodes = [self.head]
        self.head.wait()
        self.address = (self.head.folder / "ray_current_cluster").read_text().strip()
        if not job_server:
            self.join()

    def join(self, *flags: str, variables: Mapping[str, str] | None = None) -> Node:
        """Start another node, with further flags of `ray start` and variables, and do not wait for it."""
        folder = self.folder / str(len(self.nodes))
        environment = self.environment | dict(variables or {})
        self.nodes.append(Node(folder, ["--address", self.address, *flags], environment))
        return self.nodes[-1]

    def drain(self, node: str, seconds: int) -> None:
        """Announce the end of a node by its id, as `ray start --block` does when its machine is preempted."""
        line = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.address]
        line += ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        line += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run(line, env=self.environment, check=True, capture_output=True, timeout=120)

    @property
    def dashboard(self) -> str:
        """The URL of the dashboard and the job server, if there is one."""
        (url,) = set(re.findall(r"http://127\.0\.0\.1:\d+", (self.head.folder / "start.log").read_text()))
        return url

    def second_raylet(self) -> psutil.Process | None:
        """Return the raylet of the second node once that is up and while the raylet lives."""
        return self.nodes[-1].raylet()

    def is_whole(self) -> bool:
        """Return True if both nodes are up, after waiting for a second one that is starting."""
        with contextlib.suppress(RuntimeError):
            self.nodes[-1].wait()
        return self.head.raylet() is not None and self.second_raylet() is not None

    def workers(self) -> list[psutil.Process]:
        """Return the processes of actors on all nodes, dead nodes too, oldest first."""
        return _workers(self.folder)

    def kill(self) -> None:
        """Kill all processes at once, as when the machines lose their power."""
        kill_all(lambda: processes(self.folder))
        for node in self.nodes:
            node.starting.wait()


class AutoscalingCluster:
    """A head without CPUs, whose autoscaler starts and ends up to `max_nodes` nodes of one CPU on this machine.

    `ray.cluster_utils.AutoscalingCluster` does the same, but ends every other Ray on this machine with `ray stop`, and
    reads a file that is not in Ray's wheel.
    """

    def __init__(self, folder: Path, *, max_nodes: int, port: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.address = f"127.0.0.1:{port}"
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        autoscaler = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        self.environment = environment() | token | autoscaler | {"TMPDIR": str(folder)}
        config = folder / "autoscaling.json"
        config.write_text(json.dumps(self._config(max_nodes)))
        flags = ["--head", "--node-ip-address", "127.0.0.1", "--port", str(port), "--include-dashboard", "false"]
        self.head = Node(folder / "0", [*flags, "--autoscaling-config", str(config)], self.environment, cpus=0)
        self.head.wait()

    def raylets(self) -> int:
        """Return the number of nodes, including the head."""
        return len(named("raylet", self.folder))

    def _config(self, max_nodes: int) -> dict[str, Any]:
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
            "max_workers": max_nodes,
            "idle_timeout_minutes": 0.05,
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": max_nodes},
            },
        }


def _workers(folder: Path) -> list[psutil.Process]:
    workers = []
    for process in processes(folder):
        words = title(process)
        if words.startswith("ray::") and not words.removeprefix("ray::").startswith(RAY_TITLES):
            workers.append(process)
    return sorted(workers, key=_age, reverse=True)


def _age(process: psutil.Process) -> float:
    return time.time() - process.create_time()


def is_young(process: psutil.Process, seconds: float) -> bool:
    """Return True if a process was started within the last seconds."""
    return _age(process) < seconds


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """Yield a folder with a short path, for clusters. At the end, kill the processes that live there and remove it."""
    base = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir=base if len(base) <= MAX_TEMPORARY_PATH else "/tmp")).resolve()
    try:
        yield folder
    finally:
        clear(folder)


def clear(folder: Path) -> None:
    """Kill all processes that live in a folder, and remove it."""
    kill_all(lambda: [process for process in processes(folder) if process.pid != os.getpid()])
    shutil.rmtree(folder, ignore_errors=True)
