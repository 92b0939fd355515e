"""Fixtures shared by the library's tests; the helper modules beside this file are importable by their names."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

# Models this small gain nothing from threads, and waiting for a second core that is busy made them ten times slower.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Random weights are the same in every order of the tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random-weight checkpoints of reduced width in the layouts of published ones, by name; tests copy to change."""
    from small_checkpoints import LAYOUTS, write_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")
    for name in LAYOUTS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            write_checkpoint(root / name, name)
    return {name: root / name for name in LAYOUTS}


@pytest.fixture
def copy(checkpoints: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint of its own for the test to change, by layout."""
    return lambda layout: Path(shutil.copytree(checkpoints[layout], tmp_path / layout))
