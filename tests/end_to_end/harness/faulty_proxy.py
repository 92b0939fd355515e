"""An HTTP proxy that injects faults with given probabilities, or holds requests until a test releases them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from fnmatch import fnmatch
from types import TracebackType
from typing import NoReturn

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from server_thread import ServerThread
from store_faults import BODY_FAULTS, StoreFaults, faults_of_kind, without_keys
from yarl import URL

_REFUSALS = {"slow_down": (503, "SlowDown"), "error": (500, "InternalError")}
# Headers that belong to one connection. The proxy itself answers "Expect: 100-continue".
_NOT_FORWARDED = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect"}
_AUTOMATIC = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class FaultyProxy(ServerThread):
    """The proxy, in its own thread, as a context manager.

    Whether a request has a fault depends on the seed, its method, its path and the number of equal requests before it,
    but not on other requests at the same time.

    Attributes:
        endpoint: The URL that clients use instead of the server's.
        history: "METHOD /path fault" of each injected fault, in order. The method of a listing is LIST.
        clock: The clock by which keys become visible in listings, in seconds.
    """

    def __init__(self, upstream: str, faults: StoreFaults | None = None, *, seed: int = 0) -> None:
        self._upstream, self._faults, self._seed = upstream.rstrip("/"), faults or StoreFaults(), seed
        self._counts: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._written: dict[str, float] = {}
        self._hold_pattern = ""
        self._held: list[tuple[str, int]] = []
        self.history: list[str] = []
        self.clock: Callable[[], float] = time.monotonic

    def __enter__(self) -> FaultyProxy:
        self._port = self.start("faulty-proxy")
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self.call(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.call(self._close())
        self.stop()

    @property
    def counts(self) -> Counter[str]:
        """Requests by method (listings as LIST instead of GET), and injected faults by their names in `StoreFaults`."""
        return Counter(dict(self._counts))

    @property
    def requests(self) -> Counter[str]:
        """Requests by "METHOD /path", with or without fault. For a listing: "LIST /bucket prefix"."""
        return Counter({request.strip(): number for request, number in self._requests.copy().items()})

    @property
    def held(self) -> list[str]:
        """The requests that are held at this moment, as "METHOD /path"."""
        return [request for request, _ in self._held.copy()]

    @property
    def held_ports(self) -> set[int]:
        """The local ports of the clients whose requests are held at this moment."""
        return {port for _, port in self._held.copy()}

    def inject(self, faults: StoreFaults) -> None:
        """Replace the faults, from the next request on."""
        self._faults = faults

    def hold(self, pattern: str) -> None:
        """Hold every request from now on whose "METHOD /path" matches a pattern such as "GET *.tar", until `release`.

        So a test can wait for a state of a moving process without missing it: the process cannot leave the state.
        """
        self.call(self._set_hold(pattern))

    def release(self) -> None:
        """Let the held requests go on, and hold no further ones."""
        self.call(self._set_hold(""))

    def go_down(self, seconds: float | None = None) -> None:
        """Break all connections and refuse new ones for some seconds, or until `come_up`. Returns at once."""
        self.call(self._shut(seconds))

    def come_up(self) -> None:
        """Accept connections again."""
        self.call(self._listen())

    async def _open(self) -> None:
        self._released = asyncio.Event()
        self._session = aiohttp.ClientSession(
            # A connection for each request: none is reused that the server has closed meanwhile.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        self._server = web.Server(self._answer, handler_cancellation=True, auto_decompress=False, access_log=None)
        self._listener: asyncio.Server | None = None
        await self._listen()

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await self.loop.create_server(self._server, "127.0.0.1", self._port, reuse_address=True)

    async def _shut(self, seconds: float | None) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        if seconds is not None:
            self.loop.call_later(seconds, lambda: self.loop.create_task(self._listen()))

    async def _close(self) -> None:
        await self._shut(None)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._session.close()

    async def _set_hold(self, pattern: str) -> None:
        self._released.set()
        self._hold_pattern, self._released = pattern, asyncio.Event()

    async def _hold(self, kind: str, request: web.BaseRequest) -> None:
        """Wait until the request is released, or its client is gone, which cancels the handler."""
        if request.transport is None:
            raise asyncio.CancelledError
        entry = f"{kind} {request.path}", request.transport.get_extra_info("peername")[1]
        self._held.append(entry)
        try:
            await self._released.wait()
        finally:
            self._held.remove(entry)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        kind = "LIST" if _is_listing(request) else request.method
        self._counts[kind] += 1
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        fault = self._draw(kind, request)
        if self._hold_pattern and fnmatch(f"{kind} {request.path}", self._hold_pattern):
            await self._hold(kind, request)
        if fault in _REFUSALS:
            async for _ in request.content.iter_any():
                pass
            self._note(kind, request, fault)
            status, code = _REFUSALS[fault]
            body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
            return web.Response(status=status, text=body, content_type="application/xml")
        if fault == "reset":
            self._note(kind, request, fault)
            _drop(request)
        try:
            return await self._forward(kind, request, fault)
        except aiohttp.ClientError:
            if fault == "cut":
                self._note(kind, request, fault)
            _drop(request)

    def _draw(self, kind: str, request: web.BaseRequest) -> str:
        """Return the name of the fault that a request has, or ""."""
        name = f"{kind} {request.path} {request.query.get('prefix', '')}"
        self._requests[name] += 1
        chance = random.Random(f"{self._seed} {name} {self._requests[name]}").random()
        for fault in faults_of_kind(kind):
            chance -= getattr(self._faults, fault)
            if chance < 0:
                return fault
        return ""

    def _note(self, kind: str, request: web.BaseRequest, fault: str) -> None:
        self._counts[fault] += 1
        self.history.append(f"{kind} {request.path} {fault}")

    async def _forward(self, kind: str, request: web.BaseRequest, fault: str) -> web.StreamResponse:
        url = URL(self._upstream + request.raw_path, encoded=True)
        headers = CIMultiDict((n, v) for n, v in request.headers.items() if n.lower() not in _NOT_FORWARDED)
        data = _body(request, fault == "cut") if request.can_read_body else None
        async with self._session.request(
            request.method, url, headers=headers, data=data, allow_redirects=False, skip_auto_headers=_AUTOMATIC
        ) as answer:
            self._remember(request, answer.status)
            if fault == "lost_answer":
                await answer.read()
                self._note(kind, request, fault)
                _drop(request)
            if fault == "slow_listing":
                self._note(kind, request, fault)
                await asyncio.sleep(self._faults.slow_seconds)
            if fault == "stale_listing" and answer.status == 200:
                return await self._stale_listing(kind, request, answer)
            forwarded = [(n, v) for n, v in answer.headers.items() if n.lower() not in _NOT_FORWARDED]
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=CIMultiDict(forwarded))
            await response.prepare(request)
            is_harmed = fault in BODY_FAULTS and answer.status in (200, 206)
            if is_harmed:
                self._note(kind, request, fault)
            await self._send(request, response, answer, fault if is_harmed else "")
            await response.write_eof()
            return response

    async def _send(
        self, request: web.BaseRequest, response: web.StreamResponse, answer: aiohttp.ClientResponse, fault: str
    ) -> None:
        length = int(answer.headers.get("Content-Length") or 0)
        sent = 0
        async for data in answer.content.iter_any():
            if fault == "trickle":
                piece = max(1, length // 20)
                for start in range(0, len(data), piece):
                    await response.write(data[start : start + piece])
                    await asyncio.sleep(self._faults.trickle_seconds * min(piece, len(data) - start) / max(length, 1))
            elif fault and sent + len(data) > length // 2:
                await response.write(data[: max(0, length // 2 - sent)])
                await asyncio.sleep(0.02 if fault == "reset_body" else 1e9)  # the bytes arrive before the reset
                _drop(request)
            else:
                await response.write(data)
            sent += len(data)

    def _remember(self, request: web.BaseRequest, status: int) -> None:
        """Note when a key was first written, for stale listings."""
        is_upload = request.method == "PUT" and "partNumber" not in request.query
        if status == 200 and (is_upload or (request.method == "POST" and "uploadId" in request.query)):
            self._written.setdefault(request.path, self.clock())
        elif request.method == "DELETE":
            self._written.pop(request.path, None)

    async def _stale_listing(self, kind: str, request: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.Response:
        since = self.clock() - self._faults.stale_seconds
        hidden = {path for path, seconds in self._written.items() if seconds > since}
        body, number = without_keys(await answer.read(), request.path.strip("/"), hidden)
        if number:
            self._note(kind, request, "stale_listing")
        return web.Response(body=body, content_type="application/xml")


class _Cut(Exception):
    """Ends the body that is sent to the server."""


async def _body(request: web.BaseRequest, cut: bool) -> AsyncIterator[bytes]:
    half, sent = int(request.headers.get("Content-Length") or 0) // 2, 0
    async for data in request.content.iter_any():
        if cut and sent + len(data) > half:
            yield data[: max(0, half - sent)]
            raise _Cut
        yield data
        sent += len(data)


def _is_listing(request: web.BaseRequest) -> bool:
    in_bucket = request.method == "GET" and "/" not in request.path.strip("/") and request.path != "/"
    return in_bucket and ("list-type" in request.query or "prefix" in request.query)


def _drop(request: web.BaseRequest) -> NoReturn:
    """Break the client's connection, with a reset where the system can send one, and end the handler."""
    if request.transport is not None:
        with contextlib.suppress(OSError):
            linger = struct.pack("ii", 1, 0)
            request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        request.transport.abort()
    raise asyncio.CancelledError
