"""Retries of requests: which errors are transient, how long a request is retried, and what is logged."""

import asyncio
import logging
import threading
import time

import aiohttp
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from s3fs.errors import translate_boto_error
from yarl import URL

from pipeline.storage import retries
from pipeline.storage.retries import StoreUnavailable, is_transient, waiting, with_retries


def boto(status: int, code: str) -> Exception:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


def http(status: int) -> Exception:
    request = aiohttp.RequestInfo(URL("http://h"), "GET", {}, URL("http://h"))
    return aiohttp.ClientResponseError(request, (), status=status)


@pytest.mark.parametrize(
    "error",
    [
        boto(503, "SlowDown"),
        translate_boto_error(boto(503, "SlowDown")),
        translate_boto_error(boto(500, "InternalError")),
        EndpointConnectionError(endpoint_url="http://h"),
        http(502),
        http(429),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError(),
        ConnectionResetError(),
        TimeoutError(),
        asyncio.TimeoutError(),
        retries.ShortRead("1 byte of 2"),
    ],
)
def test_transient_errors(error):
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("x"),
        PermissionError("x"),
        translate_boto_error(boto(403, "AccessDenied")),
        translate_boto_error(boto(404, "NoSuchKey")),
        translate_boto_error(boto(400, "ExpiredToken")),
        translate_boto_error(boto(501, "NotImplemented")),
        NoCredentialsError(),
        http(404),
        http(416),
        ValueError("x"),
        OSError(28, "No space left on device"),
    ],
)
def test_permanent_errors(error):
    assert not is_transient(error)


def failing(times: int):
    """Return a call that fails this many times before it succeeds."""
    calls = iter(range(times))

    def call():
        if next(calls, None) is not None:
            raise ConnectionResetError("reset")
        return "answer"

    return call


def test_only_transient_errors_are_retried():
    assert with_retries(failing(3), "s3://b/x", 60.0) == "answer"
    with pytest.raises(KeyError):
        with_retries(lambda: {}["x"], "s3://b/x", 60.0)
    assert waiting() == ""


def test_the_error_after_the_timeout_names_the_url_and_the_reason():
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"s3://b/x: .* not answered for .*: reset"):
        with_retries(failing(10**6), "s3://b/x", 0.5)
    assert time.monotonic() - started < 60  # the default is five minutes


def test_the_start_and_the_end_of_a_long_wait_are_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(retries, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(retries, "LONGEST_PAUSE_SECONDS", 0.05)
    answers = threading.Event()

    def call():
        if not answers.is_set():
            raise ConnectionResetError("reset")

    with caplog.at_level(logging.WARNING):
        waiter = threading.Thread(target=with_retries, args=(call, "s3://b/x", 540.0))
        waiter.start()
        while not waiting():  # until the store answers, which it does only below
            assert waiter.is_alive()
            time.sleep(0.01)
        assert waiting() == "s3://b/x does not answer (ConnectionResetError: reset)"
        while not caplog.messages:
            assert waiter.is_alive()
            time.sleep(0.01)
        answers.set()
        waiter.join()
    assert waiting() == ""
    first, last = caplog.messages
    assert "the request is retried" in first
    assert "s3://b/x answers again" in last
