"""How long a store is waited for, and which of its errors pass by themselves."""

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

PATIENCE_SECONDS = 300.0
"""How long a store may fail to answer before ``StoreUnavailable`` is raised, where nothing else is said."""

LONGEST_PAUSE_SECONDS = 10.0
QUIET_SECONDS = 5.0
"""Shorter waits are the everyday life of object stores, and not told of."""

_PASSING_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))
# By name, since the stores' packages are extras: each stands for a connection that failed, not for an answer.
_PASSING_CLASSES = frozenset(
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
    """A store has not answered for as long as it was waited for. The message names the URL."""


class ShortRead(ConnectionError):
    """A store sent fewer bytes than it was asked for."""


def is_passing(error: BaseException) -> bool:
    """Whether asking again may help: the store was not reached, was busy, or broke off."""
    status = http_status(error)
    if status is not None:
        return status in _PASSING_STATUS
    return any(kind.__name__ in _PASSING_CLASSES for cause in _chain(error) for kind in type(cause).__mro__)


def http_status(error: BaseException) -> int | None:
    """The status of the answer that an error, or what caused it, stands for; None where there was no answer."""
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp; azure-core; gcsfs
            names = ("status", "status_code", "code")
            status = next((value for name in names if isinstance(value := getattr(cause, name, None), int)), None)
        if isinstance(status, int) and 300 <= status < 600:
            return status
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def patiently(call: Callable[[], Answer], url: str, patience: float) -> Answer:
    """The answer of ``call``, asked again with growing, random pauses while its errors are passing ones.

    Args:
        call: one request, or a few, that can be repeated.
        url: what is asked for, as it may be shown.
        patience: seconds from the first request after which no other is made.

    Raises:
        StoreUnavailable: still failing then; the last error is its cause. Errors that do not pass come at once.
    """
    with _waiting_for(url) as note:
        retrying = Retrying(
            retry=retry_if_exception(is_passing),
            wait=wait_random_exponential(multiplier=0.1, max=LONGEST_PAUSE_SECONDS),
            stop=stop_before_delay(patience),
            before_sleep=note,
            retry_error_callback=lambda state: _give_up(state, url),
        )
        return retrying(call)


def waiting() -> str:
    """What this process is waiting for, in a phrase; "" when every store answers."""
    now = time.monotonic()
    long = [(since, text) for since, text in _waits.values() if now - since >= QUIET_SECONDS]
    return min(long)[1] if long else ""


_waits: dict[int, tuple[float, str]] = {}  # by thread


@contextlib.contextmanager
def _waiting_for(url: str) -> Iterator[Callable[[RetryCallState], None]]:
    """Gives what notes down each failure; says so once a wait has become long, and when it is over."""
    thread, told = threading.get_ident(), False

    def note(state: RetryCallState) -> None:
        nonlocal told
        assert state.outcome is not None
        since = _waits[thread][0] if thread in _waits else time.monotonic() - (state.seconds_since_start or 0.0)
        reason = _reason(state.outcome.exception())
        _waits[thread] = since, f"{url} does not answer ({reason})"
        if not told and time.monotonic() - since >= QUIET_SECONDS:
            told = True
            log.warning("%s; it is asked again and again", _waits[thread][1])

    try:
        yield note
        if told:
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
