"""Emulators of Google Cloud Storage and Azure Blob Storage with two buckets each, where they are installed."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import importlib.util
import os
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from servers import guarded, installed, reserved_port

PHOTOGRAPHS, LABELS = "photographs", "labels"
READY_SECONDS = 60.0


class Missing(Exception):
    """A program or package of an emulator is missing. The message says how to install it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherStore:
    """A running emulator.

    Attributes:
        scheme: The scheme of its URLs, `f"{scheme}://{bucket}/{prefix}"`.
        options: The storage options for fsspec.
    """

    scheme: str
    options: dict[str, Any]

    def upload(self, folder: Path, bucket: str, prefix: str) -> None:
        """Upload every file below `folder` to the same path below `prefix`."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self._fs().pipe_file(f"{bucket}/{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def download(self, bucket: str, prefix: str, folder: Path) -> None:
        """Download every object below `prefix` to the same path below `folder`."""
        fs = self._fs()
        for name in fs.find(f"{bucket}/{prefix}"):
            path = folder / name.removeprefix(f"{bucket}/{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(fs.cat_file(name))

    def make_buckets(self) -> None:
        """Make both buckets, and retry until the server answers."""
        deadline = time.monotonic() + READY_SECONDS
        for bucket in (PHOTOGRAPHS, LABELS):
            while True:
                try:
                    self._fs().mkdir(bucket)
                    break
                except Exception:  # each client raises other errors for a server that does not listen yet
                    if time.monotonic() > deadline:
                        raise
                time.sleep(0.1)

    def _fs(self) -> Any:
        fs = fsspec.filesystem(self.scheme, **self.options)
        fs.invalidate_cache()
        return fs


@contextlib.contextmanager
def google_store() -> Iterator[OtherStore]:
    """Run an emulator of Google Cloud Storage in memory. It ignores preconditions, so "create only" overwrites.

    Raises:
        Missing: gcsfs or the emulator is not installed.
    """
    # Otherwise gcsfs would ask the emulator for the kind of a bucket over TLS, which takes a minute for each call.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    program = _needed("gcp-storage-emulator", "gcsfs", "pip install gcsfs gcp-storage-emulator")
    with contextlib.closing(reserved_port()) as held:
        port = held.getsockname()[1]
        options = {"token": "anon", "endpoint_url": f"http://127.0.0.1:{port}", "project": "planted-project"}
        with _running([program, "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"], port):
            store = OtherStore(scheme="gs", options=options)
            store.make_buckets()
            yield store


@contextlib.contextmanager
def azure_store() -> Iterator[OtherStore]:
    """Run Azurite, an emulator of Azure Blob Storage, from PATH.

    Raises:
        Missing: adlfs or Azurite is not installed.
    """
    remedy = "pip install adlfs; npm install --prefix FOLDER azurite; PATH=FOLDER/node_modules/.bin:$PATH"
    program = _needed("azurite-blob", "adlfs", remedy)
    key = base64.b64encode(f"planted-azure-key-{secrets.token_hex(16)}".encode()).decode()
    with contextlib.closing(reserved_port()) as held, tempfile.TemporaryDirectory(prefix="azurite-") as folder:
        port = held.getsockname()[1]
        flags = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", folder]
        account = f"AccountName=planted;AccountKey={key};BlobEndpoint=http://127.0.0.1:{port}/planted;"
        line = [program, *flags, "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
        with _running(line, port, AZURITE_ACCOUNTS=f"planted:{key}"):
            store = OtherStore(scheme="az", options={"connection_string": f"DefaultEndpointsProtocol=http;{account}"})
            store.make_buckets()
            yield store


def _needed(program: str, package: str, remedy: str) -> str:
    path = installed(program)
    if path is None or importlib.util.find_spec(package) is None:
        raise Missing(f"{program} and {package} are not both installed: {remedy}")
    return path


@contextlib.contextmanager
def _running(line: list[str], port: int, **environment: str) -> Iterator[None]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        guarded(line), env={**os.environ, **environment}, stdin=quiet, stdout=quiet, stderr=quiet
    )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{line[0]} does not listen on port {port}; it ended with {process.poll()}")
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
