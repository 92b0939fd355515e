"""What a round of chaos kills and when, drawn from a seed; and a run of `diffseg label` that is struck so."""

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

from clusters import Cluster, processes, title, young
from runs import BOTH, DEADLINE, environment

Kind = Literal["actor", "loading", "node", "driver", "cluster"]
KINDS: tuple[Kind, ...] = ("actor", "loading", "node", "driver", "cluster")
SHARDS = 24
SLOW = ("--device", "cpu", "--resolution", "128", "--tau", "0.05")
"""Half a second a shard: a blow falls within one, and a node that comes again still finds work."""
LOADING_SECONDS = 6.0
ORPHAN_SECONDS = 120.0
"""How long a driver may take to end when its cluster is gone; Ray itself gives up on it after 60."""
TICK = 0.01


@dataclass(frozen=True, kw_only=True)
class Strike:
    """One blow.

    kind: an actor; one that is still loading its model; the second node's raylet; the driver; the cluster.
    commits, wait: it falls so many seconds after that many shards are done. which: of several actors, as a share.
    pause: seconds until a node comes again, or the same command is. for_good: the node never comes again; or the driver
    dies in the same moment as its cluster.
    """

    kind: Kind
    commits: int
    wait: float
    which: float
    pause: float
    for_good: bool


def draw(rng: random.Random) -> list[Strike]:
    """One to four blows, in the order of their moments, such that each can find its victim.

    An actor is loading at the start and after the blow before; a second node takes longer to come again than the
    others need for what is left, unless the driver starts anew.
    """
    strikes: list[Strike] = []
    node, before = "up", 0
    for commits in sorted(rng.sample(range(SHARDS * 3 // 4), rng.randint(1, 4))):
        kind = rng.choice(KINDS)
        if kind == "node" and node != "up":
            kind = "actor"
        if kind == "loading":
            commits = before
        # Before the first commit lies all of the start, seconds long; between two others there is a fraction of one.
        longest = {"loading": 4.0}.get(kind, 10.0 if commits == 0 else 0.6)
        strike = Strike(
            kind=kind,
            commits=commits,
            wait=round(rng.uniform(0, longest), 3),
            which=rng.random(),
            pause=round(rng.uniform(0, 3), 3),
            for_good=rng.random() < 1 / 3,
        )
        if kind == "node":
            node = "gone" if strike.for_good else "coming"
        elif kind == "cluster" or (kind == "driver" and node == "coming"):
            node = "up"
        strikes.append(strike)
        before = commits
    return strikes


def committed(out: Path) -> int:
    """Shards that are done; a second record of one counts too, which moves a blow by one shard at most."""
    return sum(path.suffix == ".json" and path.name[0] != "." for path in (out / "commits").glob("*"))


class StruckRun:
    """The same command on the same OUT, started again and again, and the cluster below it.

    folder: where the processes live. logs: where the drivers' outputs go, and stay. told: a line for every blow and its
    consequences. faults: what must not happen.
    """

    def __init__(self, source: Path, out: Path, *, folder: Path, logs: Path, cluster: Cluster | None) -> None:
        self._source, self._out, self._folder, self._logs = source, out, folder, logs
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        self.cluster = cluster or self._fresh_cluster()
        self.drivers = 0
        self.told: list[str] = []
        self.faults: list[str] = []
        self._began = time.monotonic()
        self._join_at: float | None = None
        self._start()

    def _fresh_cluster(self) -> Cluster:
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

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text().splitlines() if line.strip()]
        return " / ".join(lines[-4:])[:600]

    def _tell(self, text: str) -> None:
        seconds = time.monotonic() - self._began
        self.told.append(f"{seconds:.1f} s, {committed(self._out)} done: {text}")

    def _until(self, moment: Callable[[], object]) -> bool:
        """Wait for it; whether it came before the driver's end. A node that is due to come, comes meanwhile."""
        end = time.monotonic() + DEADLINE
        while not moment():
            if self._join_at is not None and time.monotonic() >= self._join_at:
                self._join_at = None
                self.cluster.join()
            if self.driver.poll() is not None:
                return False
            if time.monotonic() > end:
                self.faults.append(f"the driver hangs: {self._last_words()}")
                self.driver.kill()
                self.driver.wait()
            time.sleep(TICK)
        return True

    def _after(self, seconds: float) -> Callable[[], bool]:
        end = time.monotonic() + seconds
        return lambda: time.monotonic() >= end

    def _possible(self, strike: Strike) -> bool:
        if committed(self._out) < strike.commits:
            return False
        if strike.kind == "actor":
            return bool(self.cluster.workers())
        if strike.kind == "loading":
            return any(young(worker, LOADING_SECONDS) for worker in self.cluster.workers())
        return strike.kind != "node" or self.cluster.second_raylet() is not None

    def suffer(self, strike: Strike) -> None:
        """Wait for the moment of a blow and deal it; a run that is over before it is told of."""
        if not (self._until(lambda: self._possible(strike)) and self._until(self._after(strike.wait))):
            if self.driver.returncode == 0:
                self._tell(f"{strike.kind}: missed, the run was over")
                return
            self._died_by_itself()
        {
            "actor": self._kill_worker,
            "loading": self._kill_worker,
            "node": self._kill_node,
            "driver": self._kill_driver,
            "cluster": self._kill_cluster,
        }[strike.kind](strike)

    def _kill_worker(self, strike: Strike) -> None:
        workers = self.cluster.workers()
        if not workers:
            self._tell(f"{strike.kind}: missed, no actor was there")
            return
        victim = workers[-1] if strike.kind == "loading" else workers[int(strike.which * len(workers))]
        name = title(victim)
        with contextlib.suppress(Exception):
            victim.kill()
        self._tell(f"{strike.kind}: {name.removeprefix('ray::')}")

    def _kill_node(self, strike: Strike) -> None:
        raylet = self.cluster.second_raylet()
        if raylet is None:
            self._tell("node: missed, there was none")
            return
        raylet.kill()
        self._join_at = None if strike.for_good else time.monotonic() + strike.pause
        self._tell("node: for good" if strike.for_good else f"node: another comes after {strike.pause:.1f} s")

    def _kill_driver(self, strike: Strike) -> None:
        self.driver.kill()
        self.driver.wait()
        self._tell(f"driver: again after {strike.pause:.1f} s")
        time.sleep(strike.pause)
        self._start()

    def _kill_cluster(self, strike: Strike) -> None:
        """With the driver, or without it: then it must see that it is alone, and end with an error."""
        self._join_at = None
        if strike.for_good:
            self.driver.kill()
        self.cluster.kill()
        began = time.monotonic()
        self._tell("cluster" + (" and driver" if strike.for_good else ""))
        self.cluster = self._fresh_cluster()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.driver.wait(max(0.0, ORPHAN_SECONDS - (time.monotonic() - began)))
        code = self.driver.poll()
        if code is None:
            self.faults.append(f"the driver hangs for {ORPHAN_SECONDS:.0f} s after its cluster's death")
            self.driver.kill()
            self.driver.wait()
        elif not strike.for_good:
            self._tell(f"the driver ended by itself with {code}: {self._last_words()}")
            if code == 0 and committed(self._out) < SHARDS:
                self.faults.append("exit code 0 without its cluster")
        self._start()

    def _died_by_itself(self) -> None:
        self.faults.append(f"the driver ended with {self.driver.returncode}: {self._last_words()}")
        self._start()

    def finish(self, drivers: int = 8) -> None:
        """Let it come to its end."""
        while not self._until(lambda: False) and self.driver.returncode != 0:
            if self.drivers >= drivers:
                self.faults.append("the run does not come to its end")
                return
            self._died_by_itself()

    def close(self) -> None:
        """Kill the driver where it still runs; the cluster may be used again."""
        self.driver.kill()
        self.driver.wait()

    def left_behind(self, seconds: float = 60.0) -> list[str]:
        """The run's processes that outlive its last driver."""
        end = time.monotonic() + seconds
        while left := [*self.cluster.workers(), *processes(self._folder / "drivers")]:
            if time.monotonic() > end:
                return [title(process) for process in left]
            time.sleep(0.1)
        return []
