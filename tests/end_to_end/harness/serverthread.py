"""An event loop in a thread of its own, for servers that a test talks to from outside."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from servers import reserved_port


class ServerThread:
    """The thread, its loop, and a port that nobody else takes.

    Attributes:
        loop: where `wait` runs what it is given.
    """

    def start(self, name: str) -> int:
        """Begin the thread; the port on 127.0.0.1 that is held for it."""
        self._held = reserved_port()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()
        return self._held.getsockname()[1]

    def stop(self) -> None:
        """End the thread; what it served has been closed before."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        self._held.close()

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The work's result, of the loop's thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)
