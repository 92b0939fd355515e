"""Where a run on Ray could show a secret, and the net that finds it there in whatever form."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psutil
import pyarrow.parquet as pq
from clusters import Node, processes, title
from runs import DEADLINE, environment

LOOK_SECONDS, ASK_SECONDS = 0.5, 2.0
"""Between two looks at the processes of the Ray, and two rounds of questions to the dashboard, while a run goes on."""
LISTS = ("actors", "jobs", "nodes", "objects", "placement_groups", "runtime_envs", "tasks", "workers", "cluster_events")
PAGES = (
    *(f"/api/v0/{name}?detail=1&limit=1000" for name in LISTS),
    *(f"/api/v0/{name}/summarize" for name in ("actors", "tasks", "objects")),
    *("/api/v0/tasks/timeline", "/api/v0/cluster_metadata", "/api/v0/platform_events"),
    *("/api/jobs/", "/api/cluster_status", "/api/component_activities", "/api/prometheus/sd"),
    *("/logical/actors", "/nodes?view=summary", "/events", "/test/dump"),
)


def forms(word: str) -> set[bytes]:
    """A word as it is, as in a URL, and as the part of a base64 text that does not depend on what stands around it."""
    plain = word.encode()
    found = {plain, quote(word, safe="").encode()}
    for before in range(3):
        bits = 8 * (before + len(plain))
        encoded = base64.b64encode(bytes(before) + plain)[(8 * before + 5) // 6 : bits // 6]
        found |= {encoded, encoded.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


def leaks(texts: Mapping[str, bytes], words: Iterable[str]) -> list[str]:
    """The names of the texts in which a word turns up; the words themselves are not told."""
    sought = {form for word in words for form in forms(word)}
    return sorted(name for name, text in texts.items() if any(form in text for form in sought))


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file by its path, with what is compressed in it laid open; sockets and pipes are none."""
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # Ray's own come and go
            if path.is_file():
                yield str(path), path.read_bytes()
                if path.suffix == ".parquet":
                    yield f"rows of {path}", repr(pq.read_table(path).to_pylist()).encode()


class WatchedHead:
    """A Ray of one node with its dashboard; drivers are started on it and looked at."""

    def __init__(self, folder: Path, token: str) -> None:
        self.folder = folder
        self._token = token
        self.environment = environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "TMPDIR": str(folder)}
        self.environment |= {"DIFFSEG_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "0"}
        flags = ["--head", "--port", "0", "--include-dashboard", "true", "--dashboard-port", "0"]
        self.head = Node(folder / "0", flags, self.environment)
        self.head.wait()
        self.address = (self.head.folder / "ray_current_cluster").read_text().strip()
        (self._dashboard,) = set(re.findall(r"http://127\.0\.0\.1:\d+", (self.head.folder / "start.log").read_text()))

    def answers(self) -> dict[str, bytes]:
        """All that the dashboard tells, by URL, and the numbers that it sends monitoring to."""
        found = {page: self._get(self._dashboard + page) for page in PAGES}
        nodes = re.findall(rb'"nodeId": ?"([0-9a-f]+)"', found["/nodes?view=summary"])
        found |= {page: self._get(self._dashboard + page) for page in {f"/nodes/{node.decode()}" for node in nodes}}
        for group in json.loads(found["/api/prometheus/sd"]):
            found |= {target: self._get(f"http://{target}/metrics") for target in group["targets"]}
        return found

    def shared_memory(self) -> Iterator[tuple[str, bytes]]:
        """What lies in the object store of the Ray, from where it may be spilled to a disk at any time."""
        raylet = self.head.raylet()
        assert raylet is not None
        for path in Path(f"/proc/{raylet.pid}/fd").iterdir():
            if "/plasma" in os.readlink(path):
                yield f"object store {path.name}", path.read_bytes()

    def _get(self, url: str) -> bytes:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self._token}"})
        end = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return bytes(answer.read())
            except urllib.error.HTTPError as error:
                with error:
                    return error.read()
            except urllib.error.URLError as error:  # what Ray names a target may not have begun to listen
                if not isinstance(error.reason, ConnectionRefusedError) or time.monotonic() > end:
                    raise
                time.sleep(0.5)

    def run(self, log: Path, *words: str) -> WatchedRun:
        """`python -m` with these words, to its end, on this Ray; its output goes to `log`."""
        line = [sys.executable, "-m", *words, "--address", self.address]
        with log.open("wb") as output:
            driver = subprocess.Popen(
                line, cwd=self.folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        run = WatchedRun(own_titles=[title(psutil.Process(driver.pid))])
        looked = asked = time.monotonic()
        end = asked + DEADLINE
        try:
            while driver.poll() is None and time.monotonic() < end:
                run.own_titles.append(title(psutil.Process(driver.pid)))
                if time.monotonic() - looked > LOOK_SECONDS:
                    run.titles |= {title(process) for process in processes(self.folder) if process.pid != driver.pid}
                    looked = time.monotonic()
                if time.monotonic() - asked > ASK_SECONDS:
                    run.note(self.answers())
                    asked = time.monotonic()
                time.sleep(0.02)
        finally:
            driver.kill()
            run.code = driver.wait()
        run.output = log.read_text()
        return run


@dataclass(kw_only=True)
class WatchedRun:
    """own_titles: the driver's command line in the order of time. titles: those of all other processes of the Ray."""

    own_titles: list[str]
    titles: set[str] = field(default_factory=set)
    answers: dict[str, bytes] = field(default_factory=dict)
    code: int = -1
    output: str = ""

    def note(self, answers: Mapping[str, bytes]) -> None:
        """Keep what the dashboard tells beside what it told before."""
        for page, text in answers.items():
            if text not in self.answers.get(page, b""):
                self.answers[page] = self.answers.get(page, b"") + b"\n" + text
