"""A TCP relay in front of a server, whose connections a test can break as a network would."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from urllib.parse import urlsplit

from server_thread import ServerThread


class Relay(ServerThread):
    """The relay, in its own thread, as a context manager.

    Attributes:
        url: The URL that clients use instead of the server's.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._host, self._upstream_port = parts.hostname, parts.port
        self._open: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Relay:
        port = self.start("relay")
        self.url = f"http://127.0.0.1:{port}"
        self._server = self.call(asyncio.start_server(self._serve, "127.0.0.1", port, reuse_address=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.call(self._close())
        self.stop()

    def break_connections(self) -> int:
        """Break all open connections and return how many ends they had."""
        return self.call(self._abort())

    async def _abort(self) -> int:
        ends = [end for end in self._open if not end.transport.is_closing()]
        for end in ends:
            end.transport.abort()
        return len(ends)

    async def _close(self) -> None:
        self._server.close()
        await self._abort()
        while self._open:
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._upstream_port)
        ends = {writer, upstream_writer}
        self._open |= ends
        try:
            await asyncio.gather(_forward(reader, upstream_writer), _forward(upstream_reader, writer))
        finally:
            self._open -= ends


async def _forward(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(2**16):
            target.write(data)
            await target.drain()
    target.close()
