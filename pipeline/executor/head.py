"""Asks the head of a Ray cluster about the cluster before this process joins it.

Ray itself tries a wrong address for minutes, reports another token as a failed connection, and aborts the process if
the files of the session belong to another user.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.utils import check_version_info
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError

from pipeline.errors import RunFailed, RunRefused
from pipeline.executor.private_ray import set_environment

ANSWER_SECONDS = 4.0
"""Longest time for a TCP connection, and for each answer of the head."""
TOTAL_SECONDS = 11.0
"""Longest time for all questions, including the look-up of the host's name."""

TOKEN_ADVICE = (
    "put the cluster's token into RAY_AUTH_TOKEN, into a file that RAY_AUTH_TOKEN_PATH names, or into ~/.ray/auth_token"
)


@dataclass(frozen=True, kw_only=True)
class Head:
    """A cluster, as its head describes it.

    Attributes:
        address: HOST:PORT of the head, which Ray connects to.
        name: The address in the words of whoever named it, for messages.
        metadata: Ray's description of the cluster: the versions of Ray and Python, and how it was started.
        sockets: Paths of the sockets of the living nodes, each on its own machine.
    """

    address: str
    name: str
    metadata: Mapping[str, Any]
    sockets: tuple[str, ...]

    @property
    def started_by_ray_start(self) -> bool:
        """False for the private Ray of a process, which ends with it."""
        return not self.metadata.get("ray_init_cluster", True)

    @property
    def nodes(self) -> str:
        """The number of living nodes, in words."""
        return "1 node" if len(self.sockets) == 1 else f"{len(self.sockets)} nodes"

    def refuse_other_versions(self) -> None:
        """Raise RunRefused if the cluster runs a Ray or a Python with which this process cannot work."""
        try:
            check_version_info(dict(self.metadata), "the driver")
        except RuntimeError:
            raise RunRefused(
                f"{self.name}: the cluster runs Ray {self.metadata['ray_version']} and Python "
                f"{self.metadata['python_version']}, and this process Ray {ray.__version__} and Python "
                f"{platform.python_version()}; run the command in an environment with the versions of the cluster, or "
                "send it there with `diffseg submit`"
            ) from None


def ask_head(address: str, name: str) -> Head:
    """Ask the head at an address about its cluster, within `TOTAL_SECONDS`.

    Args:
        address: HOST:PORT.
        name: The address as the user gave it, with the flag or the variable, for messages.

    Raises:
        RunFailed: No head of a Ray cluster answers there.
        RunRefused: The address has another form, or the head asks for a token that this process does not have.
    """
    host, port = _host_and_port(address, name)
    # In a thread, because neither the look-up of a name nor every call of gRPC has a limit on its time.
    answers: queue.Queue[Head | Exception] = queue.Queue()
    threading.Thread(target=lambda: answers.put(_answer(host, port, address, name)), daemon=True).start()
    try:
        answer = answers.get(timeout=TOTAL_SECONDS)
    except queue.Empty:
        raise RunFailed(f"{name}: nothing has answered for {TOTAL_SECONDS:.0f} s; {_ADVICE}") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


_ADVICE = "check the address and that the cluster is up, or name another cluster; `--address local` needs none"


def _host_and_port(address: str, name: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{address}")
        if "://" not in address and parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:  # the port is not a number, or out of range
        pass
    raise RunRefused(
        f"{name}: expected HOST:PORT of a cluster's head, such as 10.0.0.1:6379, or auto, or local. To use the URL of "
        "a dashboard, run `diffseg submit`"
    )


def _answer(host: str, port: int, address: str, name: str) -> Head | Exception:
    try:
        with socket.create_connection((host, port), timeout=ANSWER_SECONDS):
            pass
        try:
            return _ask(address, name)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED or not _use_token():
                raise
            return _ask(address, name)
    except (OSError, UnicodeError) as error:
        return RunFailed(f"{name}: nothing answers there ({error}); {_ADVICE}")
    except (grpc.RpcError, AuthenticationError) as error:
        if isinstance(error, AuthenticationError) or error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return RunRefused(
                f"{name}: the head of the cluster asks for a token, and this process has none or another one; "
                f"{TOKEN_ADVICE}"
            )
        return RunFailed(f"{name}: what answers there is no head of a Ray cluster ({error.code().name}); {_ADVICE}")
    except Exception as error:  # an error in Ray's private functions must reach the caller too
        return error


def _use_token() -> bool:
    """Use the token of this user, if there is one. Ray does so for a named address only if RAY_AUTH_MODE says so."""
    if "RAY_AUTH_MODE" in os.environ or not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        return False
    set_environment({"RAY_AUTH_MODE": "token"})
    return True


def _ask(address: str, name: str) -> Head:
    channel = init_grpc_channel(address, options=[("grpc.enable_http_proxy", 0)])
    try:
        nodes = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        store = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)
        request = gcs_service_pb2.InternalKVGetRequest(key=b"CLUSTER_METADATA", namespace=b"cluster")
        metadata = json.loads(store.InternalKVGet(request, timeout=ANSWER_SECONDS).value)
        answer = nodes.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), timeout=ANSWER_SECONDS)
    finally:
        channel.close()
    alive = [node for node in answer.node_info_list if node.state == gcs_pb2.GcsNodeInfo.ALIVE]
    sockets = tuple(node.raylet_socket_name for node in alive)
    return Head(address=address, name=name, metadata=metadata, sockets=sockets)
