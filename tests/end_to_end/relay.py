"""A TCP relay before a server, whose connections can be broken as a network breaks them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from servers import reserved_port


class Relay:
    """The relay in a thread of its own, as a context manager.

    Attributes:
        url: what clients are given instead of the server's.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._host, self._upstream_port = parts.hostname, parts.port
        self._open: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Relay:
        self._held = reserved_port()
        port = self._held.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()
        self._server = self._wait(asyncio.start_server(self._serve, "127.0.0.1", port, reuse_address=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._held.close()

    def break_connections(self) -> int:
        """Cut all that are open at this moment; how many ends these had."""
        return self._wait(self._cut())

    def _wait(self, task: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(task, self._loop).result(60)

    async def _cut(self) -> int:
        ends = list(self._open)
        for end in ends:
            end.transport.abort()
        return len(ends)

    async def _close(self) -> None:
        self._server.close()
        await self._cut()
        while self._open:
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward = await asyncio.open_connection(self._host, self._upstream_port)
        ends = {writer, onward}
        self._open |= ends
        try:
            await asyncio.gather(_pass_on(reader, onward), _pass_on(onward_reader, writer))
        finally:
            self._open -= ends


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(2**16):
            target.write(data)
            await target.drain()
    target.close()
