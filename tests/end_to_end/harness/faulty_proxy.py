"""A proxy between an S3 client and its server that answers badly, in known proportions and the same way every time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from types import TracebackType
from typing import NoReturn

import aiohttp
from aiohttp import web
from faults import BODY, Faults, of_kind, without_keys
from multidict import CIMultiDict
from serverthread import ServerThread
from yarl import URL

_REFUSALS = {"slow_down": (503, "SlowDown"), "error": (500, "InternalError")}
# What one connection says to its other end; 100-continue is answered here.
_NOT_PASSED_ON = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect"}
_AUTOMATIC = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class FaultyProxy(ServerThread):
    """The proxy in a thread of its own, as a context manager.

    Whether a request meets a fault depends on the seed, its method, its path and how often these came before: not on
    what other requests do at the same time.

    Attributes:
        endpoint: what clients are given instead of the server's.
        history: "METHOD /path fault" of every fault injected, in their order. A listing's method is LIST.
    """

    def __init__(self, upstream: str, faults: Faults | None = None, *, seed: int = 0) -> None:
        self._upstream, self._faults, self._seed = upstream.rstrip("/"), faults or Faults(), seed
        self._counts: Counter[str] = Counter()
        self._came: Counter[str] = Counter()
        self._written: dict[str, float] = {}
        self.history: list[str] = []

    def __enter__(self) -> FaultyProxy:
        self._port = self.start("faulty-proxy")
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self.wait(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait(self._close())
        self.stop()

    @property
    def counts(self) -> Counter[str]:
        """Requests by method (listings as LIST, not GET), and injected faults by the names they have in `Faults`."""
        return Counter(dict(self._counts))

    @property
    def asked(self) -> Counter[str]:
        """Requests by "METHOD /path", those with faults too; of a listing the path is the bucket's, and its prefix."""
        return Counter({what.strip(): number for what, number in self._came.copy().items()})

    def set(self, faults: Faults) -> None:
        """Other faults from the next request on."""
        self._faults = faults

    def gone(self, seconds: float | None = None) -> None:
        """Drop all connections and refuse new ones for so long, or until `back`; returns at once."""
        self.wait(self._leave(seconds))

    def back(self) -> None:
        """Accept connections again."""
        self.wait(self._listen())

    async def _open(self) -> None:
        self._session = aiohttp.ClientSession(
            # A connection a request: none that the server closed meanwhile is ever used again.
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

    async def _leave(self, seconds: float | None) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        if seconds is not None:
            self.loop.call_later(seconds, lambda: self.loop.create_task(self._listen()))

    async def _close(self) -> None:
        await self._leave(None)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._session.close()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        kind = "LIST" if _is_listing(request) else request.method
        self._counts[kind] += 1
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        fault = self._draw(kind, request)
        if fault in _REFUSALS:
            async for _ in request.content.iter_any():
                pass
            self._injected(kind, request, fault)
            status, code = _REFUSALS[fault]
            body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
            return web.Response(status=status, text=body, content_type="application/xml")
        if fault == "reset":
            self._injected(kind, request, fault)
            _drop(request)
        try:
            return await self._pass_on(kind, request, fault)
        except aiohttp.ClientError:
            if fault == "cut":
                self._injected(kind, request, fault)
            _drop(request)

    def _draw(self, kind: str, request: web.BaseRequest) -> str:
        what = f"{kind} {request.path} {request.query.get('prefix', '')}"
        self._came[what] += 1
        chance = random.Random(f"{self._seed} {what} {self._came[what]}").random()
        for name in of_kind(kind):
            chance -= getattr(self._faults, name)
            if chance < 0:
                return name
        return ""

    def _injected(self, kind: str, request: web.BaseRequest, fault: str) -> None:
        self._counts[fault] += 1
        self.history.append(f"{kind} {request.path} {fault}")

    async def _pass_on(self, kind: str, request: web.BaseRequest, fault: str) -> web.StreamResponse:
        url = URL(self._upstream + request.raw_path, encoded=True)
        headers = CIMultiDict((n, v) for n, v in request.headers.items() if n.lower() not in _NOT_PASSED_ON)
        data = _body(request, fault == "cut") if request.can_read_body else None
        async with self._session.request(
            request.method, url, headers=headers, data=data, allow_redirects=False, skip_auto_headers=_AUTOMATIC
        ) as answer:
            self._remember(request, answer.status)
            if fault == "lost_answer":
                await answer.read()
                self._injected(kind, request, fault)
                _drop(request)
            if fault == "slow_listing":
                self._injected(kind, request, fault)
                await asyncio.sleep(self._faults.slow_seconds)
            if fault == "stale_listing" and answer.status == 200:
                return await self._stale(kind, request, answer)
            passed = [(n, v) for n, v in answer.headers.items() if n.lower() not in _NOT_PASSED_ON]
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=CIMultiDict(passed))
            await response.prepare(request)
            harmed = fault in BODY and answer.status in (200, 206)
            if harmed:
                self._injected(kind, request, fault)
            await self._send(request, response, answer, fault if harmed else "")
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
                await asyncio.sleep(0.02 if fault == "reset_body" else 1e9)  # for the bytes to arrive before the reset
                _drop(request)
            else:
                await response.write(data)
            sent += len(data)

    def _remember(self, request: web.BaseRequest, status: int) -> None:
        uploaded = request.method == "PUT" and "partNumber" not in request.query
        if status == 200 and (uploaded or (request.method == "POST" and "uploadId" in request.query)):
            self._written.setdefault(request.path, self.loop.time())
        elif request.method == "DELETE":
            self._written.pop(request.path, None)

    async def _stale(self, kind: str, request: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.Response:
        since = self.loop.time() - self._faults.stale_seconds
        hidden = {path for path, time in self._written.items() if time > since}
        body, number = without_keys(await answer.read(), request.path.strip("/"), hidden)
        if number:
            self._injected(kind, request, "stale_listing")
        return web.Response(body=body, content_type="application/xml")


class _Cut(Exception):
    """Ends the body that goes to the server."""


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
