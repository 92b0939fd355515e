"""Decides whose Ray a command uses, joins it or starts a private one, and leaves it at the end.

A command joins a cluster only if --address or RAY_ADDRESS names it, which Ray does in its jobs, or if the same user
has started it with `ray start` on this machine. In all other cases it starts a private Ray.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import pwd
import signal
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._common.utils import get_ray_address_file
from ray.job_config import JobConfig

from pipeline.errors import RunFailed, RunRefused
from pipeline.executor.cluster import ClusterWatch
from pipeline.executor.head import Head, ask_head
from pipeline.executor.logs import driver_loggers_kept
from pipeline.executor.missing_modules import missing_module_error
from pipeline.executor.private_ray import private_environment, start_private_ray
from pipeline.settings import RunSettings
from pipeline.worker_pools import WorkerSpec

log = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 30.0
"""Longest time for leaving a cluster; Ray waits longer for a head that is gone, and then ends the process."""

abandoned = threading.Event()
"""Set if Ray could not be shut down, because its head is gone. Such a process hangs when it ends normally."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The Ray that this process is connected to.

    Attributes:
        is_private: True if this command has started it.
        watch: The watch over the cluster.
    """

    is_private: bool
    watch: ClusterWatch


class _SafeJobConfig(JobConfig):
    """Job configuration that adds none of the driver's folders to the import path of the workers.

    Ray would put the folder of the driver's script and its working directory first, and a data set in which a command
    runs may hold a file such as torch.py.
    """

    def _get_proto_job_config(self) -> Any:
        self._py_driver_sys_path.clear()
        return super()._get_proto_job_config()


@contextmanager
def connected(run: RunSettings, specs: Sequence[WorkerSpec]) -> Iterator[Connection]:
    """Join a cluster or start a private Ray, and watch it while the block lasts.

    If this process is already connected to Ray, that connection is used, and stays open after the block.

    Args:
        run: Address of the cluster and format of the log lines.
        specs: Workers that a private Ray must have CPUs for.

    Yields:
        The connection.

    Raises:
        RunFailed: The named cluster does not answer, or the head of the cluster is lost during the block.
        RunRefused: The cluster must not be joined: it has other versions, asks for a token, or belongs to another user.
    """
    if ray.is_initialized():
        with _watched(is_private=False) as connection:
            yield connection
        return
    head = _cluster_to_join(run.address)
    if head is not None:
        _join(head, run)
        log.info("joined Ray at %s (%s)", head.address, head.nodes)
        try:
            with _watched(is_private=False) as connection:
                yield connection
        finally:
            _leave()
        return
    with private_environment():
        _start(run, specs)
        log.info("started a private Ray")
        try:
            with _watched(is_private=True) as connection:
                yield connection
        finally:
            _leave()


@contextmanager
def _watched(*, is_private: bool) -> Iterator[Connection]:
    watch = ClusterWatch()
    try:
        yield Connection(is_private=is_private, watch=watch)
    except BaseException as error:
        if watch.is_lost and not isinstance(error, RunFailed):
            raise watch.lost_error() from error
        if missing := missing_module_error(error):
            raise missing from error
        raise
    finally:
        if watch.is_lost:
            abandoned.set()
        watch.close()


def _options(run: RunSettings) -> dict[str, Any]:
    logs = ray.LoggingConfig(encoding=run.log_format.upper(), additional_log_standard_attrs=["name", "process"])
    return {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "logging_config": logs,
        "job_config": _SafeJobConfig(),
    }


@contextmanager
def _process_kept() -> Iterator[None]:
    """Keep the loggers and the handler of SIGTERM of this process; Ray's handler prints a stack trace."""
    handler = signal.getsignal(signal.SIGTERM)
    with driver_loggers_kept():
        yield
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def _join(head: Head, run: RunSettings) -> None:
    try:
        with _process_kept():
            ray.init(address=head.address, **_options(run))
    except Exception as error:  # Ray raises many classes, also Exception itself
        raise RunFailed(f"{head.name}: Ray cannot join the cluster: {_first_line(error)}") from error


def _start(run: RunSettings, specs: Sequence[WorkerSpec]) -> None:
    cores = max(os.cpu_count() or 1, math.ceil(sum(spec.local_cpus for spec in specs)))
    try:
        with _process_kept():
            start_private_ray(cores, **_options(run))
    except Exception as error:  # as above
        raise RunFailed(f"a private Ray does not start: {_first_line(error)}; --no-ray needs no Ray") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _leave() -> None:
    """Shut Ray down. If it does not end, because its head is gone, leave it to the end of the process."""
    if not abandoned.is_set():
        thread = threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True)
        thread.start()
        thread.join(SHUTDOWN_SECONDS)
        if not thread.is_alive():
            return
        abandoned.set()
        log.warning("Ray was not shut down within %.0f s; its head may be gone", SHUTDOWN_SECONDS)
    atexit.unregister(ray.shutdown)


def _cluster_to_join(address: str | None) -> Head | None:
    """Return the cluster that a command must join, or None if it must start a private Ray."""
    named = address or os.environ.get("RAY_ADDRESS")
    name = f"--address {named}" if address else f"RAY_ADDRESS={named}"
    if named == "local":
        return None
    head = _cluster_of_ray_start() if named in (None, "", "auto") else ask_head(named, name)
    if head is None:
        if named == "auto":
            raise RunFailed(
                f"{name}: this user has not started a Ray cluster on this machine with `ray start`; name a cluster as "
                "HOST:PORT, or use --address local"
            )
        return None
    head.refuse_other_versions()
    owners = _owners(head)
    if not owners:
        raise RunRefused(
            f"{head.name}: this machine is not a node of the cluster; add it with `ray start --address {head.address}`,"
            " or send the command to the cluster with `diffseg submit`"
        )
    if os.geteuid() not in owners | {0}:
        raise RunRefused(
            f"{head.name}: this Ray belongs to the user {_user_name(min(owners))}, whose processes would run the job; "
            "start a Ray of your own with `ray start`, or use --address local"
        )
    return head


def _cluster_of_ray_start() -> Head | None:
    """Return the cluster that this user has started with `ray start` on this machine, if it still answers."""
    address = _read_own_file(get_ray_address_file(None))
    if not address:
        return None
    try:
        head = ask_head(address, f"the cluster of `ray start` at {address}")
    except RunFailed as error:  # `ray stop` was not called, or another program uses the port now
        log.debug("%s", error)
        return None
    return head if head.started_by_ray_start and _owners(head) == {os.geteuid()} else None


def _read_own_file(path: str) -> str:
    """Return the content of a small file of this user; "" if there is none, or if it belongs to another user."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return ""
        return os.read(descriptor, 256).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)


def _owners(head: Head) -> set[int]:
    """Return the ids of the users whose processes are the nodes of the cluster on this machine."""
    owners = set()
    for path in head.sockets:
        try:
            owners.add(os.stat(path).st_uid)
        except PermissionError:  # in a folder that only its owner may enter
            owners.add(_owner_of_parent(path))
        except OSError:  # a node on another machine
            continue
    return owners


def _owner_of_parent(path: str) -> int:
    """Return the owner of the closest folder above a path that this user may see."""
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        try:
            return os.stat(path).st_uid
        except PermissionError:
            continue
    return -1


def _user_name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
