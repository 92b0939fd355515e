"""What a head is asked before a cluster is joined, with heads that speak Ray's protocol and nothing else."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import ray
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from pipeline.errors import RunFailed, RunRefused
from pipeline.executor.head import ask_head
from pipeline.executor.private_ray import set_environment

VERSIONS = {"ray_version": ray.__version__, "python_version": platform.python_version()}
TOKEN = "c" * 32


class FakeHead(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer, gcs_service_pb2_grpc.InternalKVGcsServiceServicer):
    """A head with one dead node and some living ones."""

    def __init__(self, *, token: str, living: int, silent: bool, metadata: dict[str, Any]) -> None:
        self.token, self.living, self.silent = token, living, silent
        self.metadata = {**VERSIONS, "ray_init_cluster": False, **metadata}

    def InternalKVGet(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._check(context)
        assert (request.key, request.namespace) == (b"CLUSTER_METADATA", b"cluster")
        return gcs_service_pb2.InternalKVGetReply(value=json.dumps(self.metadata).encode())

    def GetAllNodeInfo(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._check(context)
        states = [gcs_pb2.GcsNodeInfo.DEAD] + [gcs_pb2.GcsNodeInfo.ALIVE] * self.living
        nodes = [
            gcs_pb2.GcsNodeInfo(state=state, raylet_socket_name=f"/socket-{number}")
            for number, state in enumerate(states)
        ]
        return gcs_service_pb2.GetAllNodeInfoReply(node_info_list=nodes)

    def _check(self, context: grpc.ServicerContext) -> None:
        if self.silent:
            time.sleep(7)
        sent = dict(context.invocation_metadata()).get("authorization")
        if self.token and sent != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")


@contextmanager
def fake_head(*, token: str = "", living: int = 1, silent: bool = False, **metadata: Any) -> Iterator[str]:
    """Yield the address of a fake head."""
    server = grpc.server(ThreadPoolExecutor(4))
    head = FakeHead(token=token, living=living, silent=silent, metadata=metadata)
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(head, server)
    gcs_service_pb2_grpc.add_InternalKVGcsServiceServicer_to_server(head, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture(autouse=True)
def no_token(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test uses a token of this machine, and none leaves its own."""
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "HOME")}
    set_environment(dict.fromkeys(before) | {"HOME": str(tmp_path)})
    yield
    set_environment(before)


def test_a_head_says_its_versions_its_nodes_and_how_it_was_started() -> None:
    with fake_head(living=3) as address:
        head = ask_head(address, "the head")
    assert (head.nodes, head.sockets) == ("3 nodes", ("/socket-1", "/socket-2", "/socket-3"))
    assert head.started_by_ray_start
    head.refuse_other_versions()
    with fake_head(ray_init_cluster=True) as address:
        assert not ask_head(address, "the head").started_by_ray_start


@pytest.mark.parametrize("versions", [{"ray_version": "2.9.0"}, {"python_version": "3.8.1"}])
def test_another_version_is_named_beside_that_of_this_process(versions: dict[str, str]) -> None:
    with fake_head(**versions) as address:
        head = ask_head(address, f"--address {address}")
    with pytest.raises(RunRefused) as refused:
        head.refuse_other_versions()
    for words in (f"--address {address}: ", *versions.values(), ray.__version__, VERSIONS["python_version"]):
        assert words in str(refused.value)


def test_a_head_that_asks_for_a_token_is_named_as_such() -> None:
    with fake_head(token=TOKEN) as address:
        with pytest.raises(RunRefused, match=f"--address {address}: the head of the cluster asks for a token"):
            ask_head(address, f"--address {address}")
        set_environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of another cluster"})
        with pytest.raises(RunRefused, match="RAY_AUTH_TOKEN_PATH"):
            ask_head(address, "")


def test_a_token_of_the_user_is_used_without_a_mode() -> None:
    set_environment({"RAY_AUTH_TOKEN": TOKEN})
    with fake_head(token=TOKEN) as address:
        assert ask_head(address, "").nodes == "1 node"


def test_nothing_that_answers_ends_at_once(free_port: int) -> None:
    started = time.monotonic()
    with pytest.raises(RunFailed, match=f"--address 127.0.0.1:{free_port}: nothing answers there"):
        ask_head(f"127.0.0.1:{free_port}", f"--address 127.0.0.1:{free_port}")
    assert time.monotonic() - started < 5


def test_another_server_ends_within_15_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        # The kernel accepts connections, and nobody reads what comes.
        started = time.monotonic()
        with pytest.raises(RunFailed, match=f"--address {address}: "):
            ask_head(address, f"--address {address}")
        assert time.monotonic() - started < 15


def test_a_head_that_never_answers_ends_within_15_seconds() -> None:
    started = time.monotonic()
    with fake_head(silent=True) as address, pytest.raises(RunFailed, match=f"--address {address}: "):
        ask_head(address, f"--address {address}")
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("address", ["http://head:8265", "ray://head:10001", "head", "head:x", "head:99999", ":6379"])
def test_other_forms_of_an_address_are_refused(address: str) -> None:
    with pytest.raises(RunRefused, match="expected HOST:PORT"):
        ask_head(address, f"--address {address}")
