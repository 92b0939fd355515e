"""Retries of requests to a store: which errors are transient, how long a request is retried, and what is logged."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from pipeline.storage.redaction import redact

log = logging.getLogger(__name__)

RETRY_TIMEOUT_SECONDS = 300.0
"""Default time during which a failing request is retried before `StoreUnavailable` is raised."""

LONGEST_PAUSE_SECONDS = 10.0
"""Longest pause between two attempts."""
QUIET_SECONDS = 5.0
"""Waits shorter than this are normal for object stores, so they are neither logged nor reported."""

_TRANSIENT_STATUSES = frozenset((408, 425, 429, 500, 502, 503, 504))
# By name, since the packages of the stores are optional. Each class stands for a failed connection, not for an answer.
_TRANSIENT_CLASSES = frozenset(
    (
        *("TimeoutError", "ConnectionError", "IncompleteReadError", "IncompleteRead", "ContentLengthError"),
        *("ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError"),  # aiohttp: http, gcs
        *("HTTPClientError", "ResponseParserError", "ConnectionClosedError"),  # botocore: s3
        *("ServiceRequestError", "ServiceResponseError"),  # azure-core
        *("TransportError", "ChecksumError"),  # google-auth, gcsfs
    )
)

Answer = TypeVar("Answer")


class StoreUnavailable(OSError):
    """A store did not answer a request within the retry timeout. The message names the URL."""


class ShortRead(ConnectionError):
    """A store sent fewer bytes than were requested."""


def is_transient(error: BaseException) -> bool:
    """Return True if a retry may succeed: the store was unreachable or busy, or the connection broke."""
    status = http_status(error)
    if status is not None:
        return status in _TRANSIENT_STATUSES
    return any(kind.__name__ in _TRANSIENT_CLASSES for cause in causes(error) for kind in type(cause).__mro__)


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error or one of its causes, or None if the store sent no answer."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp; azure-core; gcsfs
            names = ("status", "status_code", "code")
            status = next((value for name in names if isinstance(value := getattr(cause, name, None), int)), None)
        if isinstance(status, int) and 300 <= status < 600:
            return status
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def with_retries(call: Callable[[], Answer], url: str, retry_timeout: float) -> Answer:
    """Return the result of `call`, which is repeated after transient errors with growing, random pauses.

    Args:
        call: Sends one request, or a few, and can be repeated.
        url: The URL of the request without secrets, for messages.
        retry_timeout: Seconds after the first attempt beyond which no further attempt starts.

    Raises:
        StoreUnavailable: The call still failed at the timeout; the last error is its cause. An error that is not
            transient is raised at once.
    """
    with _track_wait(url) as note_failure:
        retrying = Retrying(
            retry=retry_if_exception(is_transient),
            wait=wait_random_exponential(multiplier=0.1, max=LONGEST_PAUSE_SECONDS),
            stop=stop_before_delay(retry_timeout),
            before_sleep=note_failure,
            retry_error_callback=lambda state: _give_up(state, url),
        )
        return retrying(call)


def waiting() -> str:
    """Return a phrase about the store that a thread of this process has waited for longest, or "" if none waits.

    Waits shorter than `QUIET_SECONDS` do not count.
    """
    now = time.monotonic()
    long = [(since, text) for since, text in _waits.values() if now - since >= QUIET_SECONDS]
    return min(long)[1] if long else ""


_waits: dict[int, tuple[float, str]] = {}
"""Thread identifier → (monotonic time of the first failure, phrase about the store)."""


@contextlib.contextmanager
def _track_wait(url: str) -> Iterator[Callable[[RetryCallState], None]]:
    """Yield a function that notes a failed attempt; log a wait once it has become long, and its end."""
    thread, is_logged = threading.get_ident(), False

    def note_failure(state: RetryCallState) -> None:
        nonlocal is_logged
        assert state.outcome is not None
        since = _waits[thread][0] if thread in _waits else time.monotonic() - (state.seconds_since_start or 0.0)
        reason = _reason(state.outcome.exception())
        _waits[thread] = since, f"{url} does not answer ({reason})"
        if not is_logged and time.monotonic() - since >= QUIET_SECONDS:
            is_logged = True
            log.warning("%s; the request is retried", _waits[thread][1])

    try:
        yield note_failure
        if is_logged:
            log.warning("%s answers again, after %.0f s", url, time.monotonic() - _waits[thread][0])
    finally:
        _waits.pop(thread, None)


def _give_up(state: RetryCallState, url: str) -> NoReturn:
    assert state.outcome is not None
    error = state.outcome.exception()
    raise StoreUnavailable(
        f"{url}: the store has not answered for {state.seconds_since_start or 0:.0f} s ({_reason(error)}). "
        "Check the address, the network and the store itself"
    ) from error


def _reason(error: BaseException | None) -> str:
    first_line = next(iter(str(error).splitlines()), "")
    return redact(f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__)
