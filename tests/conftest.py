"""Fixtures of several folders of tests (small images, one local Ray), the order of the files, and --must-run."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from PIL import Image

from diffseg.tiny.scenes.scenes import generate_scene

# With --import-mode=importlib pytest adds no folder of tests to the path. Helper modules are imported by their names,
# which must be unique.
TESTS = Path(__file__).parent
for folder in (".", "diffseg", "pipeline", "infra", "end_to_end/harness", "end_to_end/proofs"):
    sys.path.insert(0, str(TESTS / folder))

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test waits for the network
# With Ray's default niceness, its workers would hardly run beside the tests of another process.
os.environ.setdefault("RAY_worker_niceness", "0")

LONGEST = (
    "test_chaos.py",
    "test_submit.py",
    "test_secrets.py",
    "test_elastic.py",
    "test_stores.py",
    "test_kill.py",
    "test_scheduler.py",
    "test_driver.py",
    "test_observed.py",
    "test_weights.py",
    "test_fuzz.py",
    "test_sick_nodes.py",
    "test_whose_ray.py",
    "test_import_path.py",
    "test_paused_run.py",
    "test_train.py",
    "test_train_workers.py",
    "test_text_train.py",
    "test_quick_start.py",
    "test_report_page.py",
    "test_config_rules.py",
    "test_kernels.py",
    "test_fused.py",
)
"""The files that take longest. They start first, so that all processes end at about the same time."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --must-run, by which continuous integration notices tests that are skipped because a program is missing."""
    parser.addoption(
        "--must-run", action="append", default=[], metavar="MARKER", help="fail tests with this marker that are skipped"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test that must run into a failure."""
    report = yield
    required = [marker for marker in item.config.getoption("--must-run") if item.get_closest_marker(marker)]
    if report.skipped and required and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} must run (--must-run {required[0]}), and was skipped: {report.longrepr}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and leave the others in their order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 20 generated scenes of 96 px as PNG and JPEG, in two folders. Read only."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(20):
        image = Image.fromarray(generate_scene(seed, 96).image)
        kind = "png" if seed % 2 else "jpg"
        path = folder / ("a" if seed < 12 else "b") / f"{seed:03d}.{kind}"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    return folder


@pytest.fixture(scope="session")
def scene_tars(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of the 20 scenes in five tars, made by `diffseg shard`. Read only."""
    import jobs.shard

    folder = tmp_path_factory.mktemp("scene-tars")
    assert jobs.shard.main([str(scene_folder), str(folder), "--samples-per-shard", "4"]) == 0
    return folder


@pytest.fixture(scope="session")
def labelled(scene_tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return OUT of an undisturbed run over `scene_tars` in both formats, in this process. Read only."""
    from runs import BOTH, label

    out = tmp_path_factory.mktemp("labelled")
    assert label(scene_tars, out, "--no-ray", *BOTH) == 0
    return out


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Start one Ray with four CPUs, which all tests of a process share because its start takes seconds.

    Its token is in the environment of this process. Test processes that start at the same time would otherwise
    overwrite each other's token in the home folder.
    """
    import logging

    import ray

    from pipeline.executor.private_ray import set_environment, start_private_ray

    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    set_environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    try:
        start_private_ray(4, log_to_driver=False, logging_level=logging.ERROR)
        yield
        ray.shutdown()
    finally:
        set_environment(before)


@pytest.fixture
def free_port() -> int:
    """Return a TCP port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
