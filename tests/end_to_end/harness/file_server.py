"""A plain HTTP server for the files of a folder."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _QuietHandler(SimpleHTTPRequestHandler):
    """A handler without a log, for clients that may be killed while they read."""

    def copyfile(self, source: object, outputfile: object) -> None:
        with contextlib.suppress(ConnectionError):
            super().copyfile(source, outputfile)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def file_server(folder: Path) -> Iterator[str]:
    """Serve the files of a folder during the block, and yield the URL of the folder."""
    handler = partial(_QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
