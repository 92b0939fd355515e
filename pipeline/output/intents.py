"""Intents: a worker announces the files of a shard before it writes them, and withdraws the intent once they count.

A worker that is paused or killed in between leaves its intent. The files of such a shard may be those of the paused
worker, whatever its commit record says, so the next run compares them with the record.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from typing import NamedTuple

import psutil

from pipeline.bounded_json import InvalidFile, parse_checked, read_bounded
from pipeline.output.schemas import RECORD_BYTES, IntentSchema
from pipeline.storage import Storage

FOLDER = "intents"
MAX_AGE_SECONDS = 24 * 3600.0
"""Age from which the writer of an intent on another machine is presumed dead."""

_PATH = re.compile(rf"{FOLDER}/(?P<shard>.+)\.(?P<tag>[0-9a-f]{{24}})\.json")


class Intent(NamedTuple):
    """What the path of an intent says.

    Attributes:
        shard: Name of the shard.
        tag: The tag of the files that the worker writes.
    """

    shard: str
    tag: str

    @property
    def path(self) -> str:
        """Path below OUT."""
        return f"{FOLDER}/{self.shard}.{self.tag}.json"


def declare(out: Storage, intent: Intent) -> None:
    """Write an intent, with the process that will write the files."""
    process = psutil.Process()
    values = {
        "host": socket.gethostname(),
        "pid": process.pid,
        "process_started": process.create_time(),
        "written": time.time(),
    }
    out.write_bytes(intent.path, json.dumps(values, indent=1, sort_keys=True).encode() + b"\n")


def withdraw(out: Storage, intent: Intent) -> None:
    """Delete an intent."""
    out.delete(intent.path)


def list_intents(out: Storage) -> list[Intent]:
    """Return the intents in OUT, sorted by shard."""
    matches = (_PATH.fullmatch(path) for path, _ in out.files(FOLDER))
    return [Intent(match["shard"], match["tag"]) for match in matches if match]


def may_be_alive(out: Storage, intent: Intent) -> bool:
    """Return False if the writer of an intent has ended, or the intent is so old that this is presumed.

    An intent of this process is not alive either: the caller, the driver, labels nothing at the same time.
    """
    try:
        writer = parse_checked(read_bounded(out, intent.path, RECORD_BYTES), IntentSchema)
    except (FileNotFoundError, InvalidFile):
        return False
    if writer.host != socket.gethostname():
        return time.time() - writer.written < MAX_AGE_SECONDS
    return writer.pid != os.getpid() and process_is_alive(writer.pid, writer.process_started)


def process_is_alive(pid: int, started: float) -> bool:
    """Return True if the process of this machine that was created at `started` still exists.

    Args:
        pid: Id of the process.
        started: When it was created, in seconds since the epoch.
    """
    try:
        # The creation time is computed from the time of the boot, which changes when the clock is set.
        return abs(psutil.Process(pid).create_time() - started) < 2.0
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
