"""A TCP relay before a server, whose connections can be broken as a network breaks them."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from urllib.parse import urlsplit

from serverthread import ServerThread


class Relay(ServerThread):
    """The relay in a thread of its own, as a context manager.

    Attributes:
        url: what clients are given instead of the server's.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._host, self._upstream_port = parts.hostname, parts.port
        self._open: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Relay:
        port = self.start("relay")
        self.url = f"http://127.0.0.1:{port}"
        self._server = self.wait(asyncio.start_server(self._serve, "127.0.0.1", port, reuse_address=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait(self._close())
        self.stop()

    def break_connections(self) -> int:
        """Cut all that are open at this moment; how many ends these had."""
        return self.wait(self._cut())

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
