"""The process faults of a chaos round, drawn from a seed, and a run of `diffseg label` into which they are injected."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clusters import Cluster, is_young, processes, title
from runs import BOTH, DEADLINE, committed, environment

Kind = Literal["actor", "loading", "node", "driver", "cluster"]
KINDS: tuple[Kind, ...] = ("actor", "loading", "node", "driver", "cluster")
SHARDS = 24
SLOW = ("--device", "cpu", "--resolution", "128", "--tau", "0.05")
"""Settings with which a shard takes half a second, so faults occur within shards and a rejoining node finds work."""
LOADING_SECONDS = 6.0
"""Age up to which a worker counts as still loading its model."""
ORPHAN_SECONDS = 120.0
"""How long a driver may take to end when its cluster is gone. Ray itself gives up after 60 s."""
TICK = 0.01


@dataclass(frozen=True, kw_only=True)
class ProcessFault:
    """One fault: the SIGKILL of something that belongs to a run.

    Attributes:
        kind: What is killed: an actor, an actor that still loads its model, the raylet of the second node, the driver,
            or the whole cluster.
        commits: The number of finished shards from which the time of the fault counts.
        wait: Seconds after that.
        which: Which of several actors is killed, as a fraction of their number.
        pause: Seconds until another node joins, or until the driver is started again.
        for_good: No other node joins; or, for a cluster, its driver is killed at the same moment.
    """

    kind: Kind
    commits: int
    wait: float
    which: float
    pause: float
    for_good: bool


def draw_faults(rng: random.Random) -> list[ProcessFault]:
    """Draw one to four faults in order of time, each at a time at which there is something that it can kill.

    Actors load their model at the start and after the preceding fault. A second node takes longer to join again than
    the remaining work lasts, unless the driver is started again.
    """
    faults: list[ProcessFault] = []
    node, before = "up", 0
    for commits in sorted(rng.sample(range(SHARDS * 3 // 4), rng.randint(1, 4))):
        kind = rng.choice(KINDS)
        if kind == "node" and node != "up":
            kind = "actor"
        if kind == "loading":
            commits = before
        # The start, which takes seconds, lies before the first commit; later commits follow within a fraction of one.
        longest = {"loading": 4.0}.get(kind, 10.0 if commits == 0 else 0.6)
        fault = ProcessFault(
            kind=kind,
            commits=commits,
            wait=round(rng.uniform(0, longest), 3),
            which=rng.random(),
            pause=round(rng.uniform(0, 3), 3),
            for_good=rng.random() < 1 / 3,
        )
        if kind == "node":
            node = "gone" if fault.for_good else "joining"
        elif kind == "cluster" or (kind == "driver" and node == "joining"):
            node = "up"
        faults.append(fault)
        before = commits
    return faults


class DisturbedRun:
    """A run of `diffseg label` on a cluster: the same command is started again after each fault that ends it.

    Attributes:
        cluster: The current cluster.
        drivers: How many drivers were started.
        events: A line for each fault and its consequences.
        violations: What must not happen: wrong exit codes and processes that hang.
    """

    def __init__(self, source: Path, out: Path, *, folder: Path, logs: Path, cluster: Cluster | None) -> None:
        """Start the first driver.

        Args:
            source: SRC of the command.
            out: OUT of the command.
            folder: The folder below which all processes live.
            logs: The folder for the output of the drivers, which is kept.
            cluster: A cluster to use; None starts one.
        """
        self._source, self._out, self._folder, self._logs = source, out, folder, logs
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        self.cluster = cluster or self._new_cluster()
        self.drivers = 0
        self.events: list[str] = []
        self.violations: list[str] = []
        self._started = time.monotonic()
        self._join_at: float | None = None
        self._start()

    def _new_cluster(self) -> Cluster:
        return Cluster(self._folder / f"{time.time_ns() // 10**6 % 10**9:x}")

    def _start(self) -> None:
        self.drivers += 1
        variables = environment() | self.cluster.environment
        home = self._folder / "drivers"
        home.mkdir(exist_ok=True)
        self.log = self._logs / f"{self.drivers}.log"
        flags = ["--address", self.cluster.address, "--workers", "2", *SLOW, *BOTH]
        line = [sys.executable, "-m", "jobs.label", str(self._source), str(self._out), *flags]
        with self.log.open("wb") as log:
            self.driver = subprocess.Popen(line, cwd=home, env=variables, stdout=log, stderr=subprocess.STDOUT)

    def _last_lines(self) -> str:
        lines = [line.strip() for line in self.log.read_text().splitlines() if line.strip()]
        return " / ".join(lines[-4:])[:600]

    def note(self, text: str) -> None:
        """Add an event, with its time and the number of finished shards."""
        seconds = time.monotonic() - self._started
        self.events.append(f"{seconds:.1f} s, {committed(self._out)} done: {text}")

    def _wait_until(self, condition: Callable[[], object]) -> bool:
        """Wait for a condition, and let a node that is due join. Return False if the driver ends before."""
        end = time.monotonic() + DEADLINE
        while not condition():
            if self._join_at is not None and time.monotonic() >= self._join_at:
                self._join_at = None
                self.cluster.join()
            if self.driver.poll() is not None:
                return False
            if time.monotonic() > end:
                self.violations.append(f"the driver hangs: {self._last_lines()}")
                self.driver.kill()
                self.driver.wait()
            time.sleep(TICK)
        return True

    def _is_possible(self, fault: ProcessFault) -> bool:
        if committed(self._out) < fault.commits:
            return False
        if fault.kind == "actor":
            return bool(self.cluster.workers())
        if fault.kind == "loading":
            return any(is_young(worker, LOADING_SECONDS) for worker in self.cluster.workers())
        return fault.kind != "node" or self.cluster.second_raylet() is not None

    def inject(self, fault: ProcessFault) -> None:
        """Wait for the time of a fault and inject it. If the run is over before, only note that."""
        if not (self._wait_until(lambda: self._is_possible(fault)) and self._wait_until(_after(fault.wait))):
            if self.driver.returncode == 0:
                self.note(f"{fault.kind}: not injected, the run was over")
                return
            self._restart_after_error()
        {
            "actor": self._kill_worker,
            "loading": self._kill_worker,
            "node": self._kill_node,
            "driver": self._kill_driver,
            "cluster": self._kill_cluster,
        }[fault.kind](fault)

    def _kill_worker(self, fault: ProcessFault) -> None:
        workers = self.cluster.workers()
        if not workers:
            self.note(f"{fault.kind}: not injected, no actor was running")
            return
        worker = workers[-1] if fault.kind == "loading" else workers[int(fault.which * len(workers))]
        name = title(worker)
        with contextlib.suppress(Exception):
            worker.kill()
        self.note(f"{fault.kind}: {name.removeprefix('ray::')}")

    def _kill_node(self, fault: ProcessFault) -> None:
        raylet = self.cluster.second_raylet()
        if raylet is None:
            self.note("node: not injected, no second node was up")
            return
        raylet.kill()
        self._join_at = None if fault.for_good else time.monotonic() + fault.pause
        self.note("node: for good" if fault.for_good else f"node: another joins after {fault.pause:.1f} s")

    def _kill_driver(self, fault: ProcessFault) -> None:
        self.driver.kill()
        self.driver.wait()
        self.note(f"driver: started again after {fault.pause:.1f} s")
        time.sleep(fault.pause)
        self._start()

    def _kill_cluster(self, fault: ProcessFault) -> None:
        """Kill the cluster, with its driver or without: a driver that is left must notice and end with an error."""
        self._join_at = None
        if fault.for_good:
            self.driver.kill()
        self.cluster.kill()
        killed = time.monotonic()
        self.note("cluster" + (" and driver" if fault.for_good else ""))
        self.cluster = self._new_cluster()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.driver.wait(max(0.0, ORPHAN_SECONDS - (time.monotonic() - killed)))
        code = self.driver.poll()
        if code is None:
            self.violations.append(f"the driver hangs for {ORPHAN_SECONDS:.0f} s after its cluster was killed")
            self.driver.kill()
            self.driver.wait()
        elif not fault.for_good:
            self.note(f"the driver ended by itself with {code}: {self._last_lines()}")
            if code == 0 and committed(self._out) < SHARDS:
                self.violations.append("exit code 0 without its cluster")
        self._start()

    def _restart_after_error(self) -> None:
        self.violations.append(f"the driver ended with {self.driver.returncode}: {self._last_lines()}")
        self._start()

    def finish(self, max_drivers: int = 8) -> None:
        """Wait until a driver ends with exit code 0, and restart drivers that end with another one."""
        while not self._wait_until(lambda: False) and self.driver.returncode != 0:
            if self.drivers >= max_drivers:
                self.violations.append("the run does not finish")
                return
            self._restart_after_error()

    def run_again(self) -> None:
        """Run the same command once more to its end, because the source has changed since it was started."""
        self._start()
        self.finish()

    def close(self) -> None:
        """Kill the driver if it still runs. The cluster stays and can be used again."""
        self.driver.kill()
        self.driver.wait()

    def left_behind(self, seconds: float = 60.0) -> list[str]:
        """Return the titles of the run's processes that still live some seconds after its last driver."""
        end = time.monotonic() + seconds
        while left := [*self.cluster.workers(), *processes(self._folder / "drivers")]:
            if time.monotonic() > end:
                return [title(process) for process in left]
            time.sleep(0.1)
        return []


def _after(seconds: float) -> Callable[[], bool]:
    """Return a condition that holds from some seconds from now on."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end
