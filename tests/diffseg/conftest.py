"""Fixtures for the tests of the library. The helper modules beside this file can be imported by their names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

# Models this small gain nothing from threads, and waiting for a second, busy core made them ten times slower.
torch.set_num_threads(1)

# Without a GPU, Triton interprets kernels on the CPU. It reads this variable when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Give every test the same random weights, in whatever order the tests run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints with random weights and reduced width, in published layouts, by name. Tests must not change them."""
    from small_checkpoints import LAYOUTS, write_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")
    for name in LAYOUTS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            write_checkpoint(root / name, name)
    return {name: root / name for name in LAYOUTS}


@pytest.fixture
def copy(checkpoints: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies the checkpoint of a layout, for a test that changes it."""
    return lambda layout: Path(shutil.copytree(checkpoints[layout], tmp_path / layout))
