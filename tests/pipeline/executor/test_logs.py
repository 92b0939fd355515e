"""Log lines as JSON, and loggers that stay unchanged. end_to_end/test_observed.py has the lines of workers."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

from pipeline.executor.logs import JsonLines, driver_loggers_kept


def test_a_line_has_the_fields_of_its_record_and_the_error() -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        log_fields = {"shard": "a", "attempt": 2}
        record = logging.getLogger("x").makeRecord(
            "x", logging.INFO, "f.py", 3, "shard %s\n started", ("a",), sys.exc_info(), extra=log_fields
        )
    text = JsonLines().format(record)
    line = json.loads(text)
    assert "\n" not in text
    assert line.keys() == {
        *log_fields,
        "asctime",
        "levelname",
        "message",
        "filename",
        "lineno",
        "process",
        "name",
        "exc_text",
    }
    assert (line["message"], line["shard"], line["attempt"], line["levelname"]) == ("shard a\n started", "a", 2, "INFO")
    assert "ValueError: bad" in line["exc_text"]


def test_a_command_logs_its_own_info_and_the_warnings_of_libraries() -> None:
    code = "import logging\nfrom pipeline.executor.logs import log_json\nlog_json()\n"
    code += (
        "for name in ('pipeline.x', 'httpx'): logging.getLogger(name).info('i'); logging.getLogger(name).warning('w')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=540, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["name"], line["message"]) for line in lines] == [
        ("pipeline.x", "i"),
        ("pipeline.x", "w"),
        ("httpx", "w"),
    ]


def test_the_loggers_of_the_caller_stay_unchanged() -> None:
    root, ray = logging.getLogger(), logging.getLogger("ray")
    before = (root.level, root.handlers[:], ray.handlers[:], ray.propagate)
    with driver_loggers_kept():
        root.setLevel(logging.DEBUG)
        for logger in (root, ray):
            logger.addHandler(logging.NullHandler())
        ray.propagate = not ray.propagate
    assert (root.level, root.handlers, ray.handlers, ray.propagate) == before
