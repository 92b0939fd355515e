"""Log lines with fields: a worker's in Ray's session logs, the driver's where its command puts them.

A line tells its shard, attempt, host and process as fields of their own (``extra`` of logging), so that those of one
shard are found whatever worker had it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

OURS = ("diffseg", "pipeline", "jobs")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One JSON object a line, under the names that Ray gives the fields of its workers' lines."""

    def format(self, record: logging.LogRecord) -> str:
        """The record with its own fields after the usual ones."""
        line = {
            "asctime": self.formatTime(record),
            "levelname": record.levelname,
            "message": record.getMessage(),
            "filename": record.filename,
            "lineno": record.lineno,
            "process": record.process,
            "name": record.name,
        }
        if record.exc_info:
            line["exc_text"] = self.formatException(record.exc_info)
        own = {name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"}
        return json.dumps(line | own)


def tell_json() -> None:
    """For a command: this process logs JSON lines and nothing else to standard error, our own from INFO on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    only_ours()


def only_ours() -> None:
    """INFO of this program's loggers and of no other: libraries tell URLs there, signatures and all."""
    logging.getLogger().setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)


def only_ours_in_an_actor() -> None:
    """``only_ours``, if Ray has set up the loggers of this process."""
    import ray

    if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
        only_ours()


@contextmanager
def driver_loggers_kept() -> Iterator[None]:
    """Ray's setting of its workers' loggers sets those of the driver as well, which are the caller's affair.

    Ray itself tells this process of errors alone, and of no connection.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    loggers = [logging.getLogger(name) for name in (None, "ray")]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    try:
        yield
    finally:
        logging.disable(disabled)
        for logger, level, handlers, propagate in before:
            logger.setLevel(level)
            logger.handlers[:] = handlers
            logger.propagate = propagate
        logging.getLogger("ray").setLevel(logging.ERROR)
