"""Commands that run in a data set with files such as torch.py, which no process may import."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import Node, short_folder
from runs import DEADLINE, FAST, environment

PLANTED = ("torch", "json", "pipeline", "sitecustomize", "socket", "pickle", "ray", "pyarrow")
"""Modules of the standard library, of libraries and of this package; `multiprocessing` imports socket and pickle."""
PRIVATE, IN_PROCESS = ("--address", "local", "--workers", "1"), ("--no-ray",)
DIFFSEG = Path(sys.executable).with_name("diffseg")


@pytest.fixture
def data_set(scene_folder: Path, tmp_path: Path) -> Path:
    """A folder with four images and the planted files, which leave a trace if they are run."""
    folder = tmp_path / "data-set"
    folder.mkdir()
    for path in sorted((scene_folder / "a").iterdir())[:4]:
        shutil.copy(path, folder)
    for name in PLANTED:
        trace = f"import os; open({str(tmp_path / 'RAN')!r}, 'a').write(f'{name} in {{os.getpid()}}\\n')\n"
        (folder / f"{name}.py").write_text(trace + "raise ImportError('planted')\n")
    return folder


def run_in(folder: Path, *words: str | Path, **variables: str) -> None:
    """Run `diffseg` in a folder. It must succeed without running a planted file."""
    line = [str(word) for word in (DIFFSEG, *words)]
    child = environment() | variables
    done = subprocess.run(line, cwd=folder, env=child, capture_output=True, text=True, timeout=DEADLINE, check=False)
    trace = folder.parent / "RAN"
    assert not trace.exists(), f"{trace.read_text()}{done.stderr}"
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def joined() -> Iterator[dict[str, str]]:
    """The environment in which commands join a head that `ray start` has started."""
    with short_folder() as folder:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        head = Node(folder / "0", ["--head", "--port", "0", "--include-dashboard", "false"], environment() | token)
        head.wait()
        yield token | {"RAY_ADDRESS": (head.folder / "ray_current_cluster").read_text().strip()}


@pytest.mark.parametrize("flags", [IN_PROCESS, PRIVATE], ids=["no-ray", "private"])
def test_no_process_imports_from_the_data_set(flags: tuple[str, ...], data_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_in(data_set, "label", ".", out, *FAST, *flags, "--samples-per-shard", "2")
    run_in(data_set, "report", out, "--processes", "2")
    run_in(data_set, "export", out, tmp_path / "coco", "--to", "coco-instances", "--processes", "2")


@pytest.mark.cluster
def test_the_workers_of_a_cluster_do_not_import_from_the_data_set(
    data_set: Path, tmp_path: Path, joined: dict[str, str]
) -> None:
    run_in(data_set, "label", ".", tmp_path / "out", *FAST, "--workers", "1", **joined)


@pytest.mark.cluster
def test_training_and_fitting_do_not_import_from_the_data_set(data_set: Path, labelled: Path, tmp_path: Path) -> None:
    steps = ("--steps", "2", "--batch-size", "2", "--size", "32", "--width", "8", "--workers", "1", "--loaders", "1")
    run_in(data_set, "train", labelled, tmp_path / "model", *steps, "--address", "local")
    run_in(data_set, "fit", "heads", labelled, tmp_path / "heads.safetensors", "--images", "4", "--address", "local")


@pytest.mark.cluster
def test_an_empty_entry_of_the_import_path_does_not_mean_the_data_set(data_set: Path, tmp_path: Path) -> None:
    (data_set / "sitecustomize.py").unlink()  # Python itself imports it at its start, before any code of a command
    variables = {"PYTHONPATH": os.pathsep.join(["", environment()["PYTHONPATH"], "."])}
    (data_set / "json.py").unlink()
    run_in(data_set, "label", ".", tmp_path / "out", *FAST, *PRIVATE, **variables)
