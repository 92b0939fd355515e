"""Waiting for a store: which errors pass, for how long, and what is said meanwhile."""

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
from pipeline.storage.retries import StoreUnavailable, is_passing, patiently, waiting


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
def test_errors_that_pass(error):
    assert is_passing(error)


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
def test_errors_that_stay(error):
    assert not is_passing(error)


def failing(times: int):
    calls = iter(range(times))

    def call():
        if next(calls, None) is not None:
            raise ConnectionResetError("reset")
        return "answer"

    return call


def test_passing_errors_are_waited_out_and_others_are_not():
    assert patiently(failing(3), "s3://b/x", 60.0) == "answer"
    with pytest.raises(KeyError):
        patiently(lambda: {}["x"], "s3://b/x", 60.0)
    assert waiting() == ""


def test_patience_ends_with_the_url_and_the_reason():
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"s3://b/x: .* not answered for .*: reset"):
        patiently(failing(10**6), "s3://b/x", 0.5)
    assert time.monotonic() - started < 60  # the default is five minutes


def test_long_waits_are_told_of_once_and_when_they_are_over(monkeypatch, caplog):
    monkeypatch.setattr(retries, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(retries, "LONGEST_PAUSE_SECONDS", 0.05)
    gone = threading.Event()

    def call():
        if not gone.is_set():
            raise ConnectionResetError("reset")

    with caplog.at_level(logging.WARNING):
        waiter = threading.Thread(target=patiently, args=(call, "s3://b/x", 60.0))
        waiter.start()
        while not waiting():
            time.sleep(0.01)
        assert waiting() == "s3://b/x does not answer (ConnectionResetError: reset)"
        while len(caplog.messages) < 1:
            time.sleep(0.01)
        gone.set()
        waiter.join()
    assert waiting() == ""
    first, last = caplog.messages
    assert "is asked again and again" in first
    assert "s3://b/x answers again" in last
