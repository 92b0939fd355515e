"""The places where a run on Ray could show a secret, and the search for a secret there in any encoding."""

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psutil
import pyarrow.parquet as pq
from clusters import Node, processes, title
from runs import DEADLINE, environment

TITLES_SECONDS, PAGES_SECONDS = 0.5, 2.0
"""Time between two looks at the titles of Ray's processes, and at the pages of the dashboard, during a run."""
LISTS = ("actors", "jobs", "nodes", "objects", "placement_groups", "runtime_envs", "tasks", "workers", "cluster_events")
TASKS, JOBS = "/api/v0/tasks?detail=1&limit=1000", "/api/jobs/"
PAGES = (
    *(f"/api/v0/{name}?detail=1&limit=1000" for name in LISTS),
    *(f"/api/v0/{name}/summarize" for name in ("actors", "tasks", "objects")),
    *("/api/v0/tasks/timeline", "/api/v0/cluster_metadata", "/api/v0/platform_events"),
    *(JOBS, "/api/cluster_status", "/api/component_activities", "/api/prometheus/sd"),
    *("/logical/actors", "/nodes?view=summary", "/events", "/test/dump"),
)


def forms(secret: str) -> set[bytes]:
    """Return the forms of a secret that are searched for.

    These are the secret itself, its percent-encoded form, and the part of its base64 encodings that does not depend on
    the surrounding text.
    """
    plain = secret.encode()
    encodings = {plain, quote(secret, safe="").encode()}
    for before in range(3):
        bits = 8 * (before + len(plain))
        encoded = base64.b64encode(bytes(before) + plain)[(8 * before + 5) // 6 : bits // 6]
        encodings |= {encoded, encoded.translate(bytes.maketrans(b"+/", b"-_"))}
    return encodings


def leaks(texts: Mapping[str, bytes], secrets: Iterable[str]) -> list[str]:
    """Return the names of the texts that contain a secret, without the secrets themselves."""
    needles = {form for secret in secrets for form in forms(secret)}
    return sorted(name for name, text in texts.items() if any(needle in text for needle in needles))


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the path and content of every file below a folder, and the rows of Parquet files without compression."""
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # Ray creates and deletes files meanwhile
            if path.is_file():
                yield str(path), path.read_bytes()
                if path.suffix == ".parquet":
                    yield f"rows of {path}", repr(pq.read_table(path).to_pylist()).encode()


@dataclass(kw_only=True)
class WatchedRun:
    """What could be seen of a run by others.

    Attributes:
        driver_titles: The titles of the driver in order of time, without the empty title of a process that has ended.
        titles: The titles of all other processes of the Ray.
        pages: All different texts of each page of the dashboard.
        code: The exit code.
        output: The output of the driver.
    """

    driver_titles: list[str] = field(default_factory=list)
    titles: set[str] = field(default_factory=set)
    pages: dict[str, bytes] = field(default_factory=dict)
    code: int = -1
    output: str = ""

    def add(self, pages: Mapping[str, bytes]) -> None:
        """Add the present texts of the pages to the earlier ones."""
        for page, text in pages.items():
            if text not in self.pages.get(page, b""):
                self.pages[page] = self.pages.get(page, b"") + b"\n" + text


class WatchedHead:
    """A Ray of one node with a dashboard, on which drivers are started and watched."""

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

    def pages(self) -> dict[str, bytes]:
        """Return all pages of the dashboard, and of the endpoints that Prometheus would read, by URL."""
        pages = {page: self._get(self._dashboard + page) for page in PAGES}
        nodes = re.findall(rb'"nodeId": ?"([0-9a-f]+)"', pages["/nodes?view=summary"])
        pages |= {page: self._get(self._dashboard + page) for page in {f"/nodes/{node.decode()}" for node in nodes}}
        for group in json.loads(pages["/api/prometheus/sd"]):
            pages |= {target: self._get(f"http://{target}/metrics") for target in group["targets"]}
        return pages

    def shared_memory(self) -> Iterator[tuple[str, bytes]]:
        """Yield the content of Ray's object store, from where Ray may spill it to a disk at any time."""
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
            except urllib.error.URLError as error:  # Ray names targets before they listen
                if not isinstance(error.reason, ConnectionRefusedError) or time.monotonic() > end:
                    raise
                time.sleep(0.5)

    def run(self, log: Path, *words: str, meanwhile: Callable[[WatchedRun], object] = lambda run: None) -> WatchedRun:
        """Run `python -m` with these words on this Ray to its end.

        Args:
            log: The file for the output.
            words: The module and its arguments.
            meanwhile: Called again and again until the driver ends. It can hold the run until something was seen.
        """
        line = [sys.executable, "-m", *words, "--address", self.address]
        with log.open("wb") as output:
            driver = subprocess.Popen(
                line, cwd=self.folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        run = WatchedRun()
        titles_at = pages_at = time.monotonic()
        end = pages_at + DEADLINE
        try:
            while driver.poll() is None and time.monotonic() < end:
                if shown := title(psutil.Process(driver.pid)):
                    run.driver_titles.append(shown)
                if time.monotonic() - titles_at > TITLES_SECONDS:
                    run.titles |= {title(process) for process in processes(self.folder) if process.pid != driver.pid}
                    titles_at = time.monotonic()
                if time.monotonic() - pages_at > PAGES_SECONDS:
                    run.add(self.pages())
                    pages_at = time.monotonic()
                meanwhile(run)
                time.sleep(0.02)
        finally:
            driver.kill()
            run.code = driver.wait()
        run.add(self.pages())
        run.output = log.read_text()
        return run

    def wait_for_page(self, run: WatchedRun, page: str, text: bytes) -> None:
        """Wait until a page has shown a text, which it may do some time after the event."""
        end = time.monotonic() + DEADLINE
        while text not in run.pages.get(page, b""):
            assert time.monotonic() < end, f"{page} does not show {text!r}"
            time.sleep(0.2)
            run.add({page: self._get(self._dashboard + page)})
