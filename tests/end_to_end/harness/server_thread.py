"""An asyncio event loop in its own thread, for servers that a test talks to over TCP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from servers import reserved_port

CALL_SECONDS = 60.0
"""How long `call` waits for a coroutine."""


class ServerThread:
    """A thread with an event loop, and a port of 127.0.0.1 that no other program can take.

    Attributes:
        loop: The event loop of the thread.
    """

    def start(self, name: str) -> int:
        """Start the thread and return the port that is reserved for its server."""
        self._reserved = reserved_port()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()
        return self._reserved.getsockname()[1]

    def stop(self) -> None:
        """End the thread. Its server must have been closed before."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        self._reserved.close()

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the event loop of the thread and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(CALL_SECONDS)
