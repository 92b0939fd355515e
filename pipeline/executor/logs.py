"""Log lines with fields: those of workers go to Ray's session logs, those of the driver where its command puts them.

Shard, attempt, host and process are fields of a line (``extra`` of logging), so that all lines of a shard can be found
whichever worker had it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

PROJECT_LOGGERS = ("diffseg", "pipeline", "jobs")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Formats each record as one line of JSON, with the field names that Ray uses for the lines of its workers."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON: the usual fields, then those of ``extra``."""
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
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"}
        return json.dumps(line | extra)


def log_json() -> None:
    """Make this process write only JSON lines to standard error, those of the project's loggers from INFO on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    limit_to_project()


def limit_to_project() -> None:
    """Log INFO from the project's loggers only. Libraries log URLs at this level, including their signatures."""
    logging.getLogger().setLevel(logging.WARNING)
    for name in PROJECT_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


def limit_actor_to_project() -> None:
    """Call `limit_to_project` if this process is a Ray actor, whose loggers Ray has set up."""
    import ray

    if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
        limit_to_project()


@contextmanager
def driver_loggers_kept() -> Iterator[None]:
    """Keep the loggers of this process as they are while Ray is initialised in the block.

    Ray's configuration of its workers' loggers would change those of the driver too, which belong to the caller.
    Afterwards the logger "ray" logs errors only; messages about the connection are dropped.
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
