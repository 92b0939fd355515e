"""Whose Ray a command uses: the rule alone, without a Ray. tests/end_to_end/test_whose_ray.py starts some."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.errors import RunFailed, RunRefused
from pipeline.executor import connection
from pipeline.executor.connection import _cluster_to_join, _read_own_file
from pipeline.executor.head import Head
from pipeline.executor.missing_modules import missing_module_error
from pipeline.executor.private_ray import _session_folder, private_environment, set_environment

OTHER_USER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
Machine = Callable[..., None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Returns a function that sets what there is on the machine: a node, and the file that `ray start` writes."""

    def set_up(*, by_ray_start: bool = True, owner: int | None = None, file: bool = True, answers: bool = True) -> None:
        path = tmp_path / "raylet"
        with socket.socket(socket.AF_UNIX) as node:
            node.bind(str(path))
        if owner is not None:
            os.chown(path, owner, owner)

        def ask(address: str, name: str) -> Head:
            if not answers:
                raise RunFailed(f"{name}: nothing answers there")
            metadata: dict[str, Any] = {"ray_version": ray.__version__, "python_version": platform.python_version()}
            metadata["ray_init_cluster"] = not by_ray_start
            return Head(address=address, name=name, metadata=metadata, sockets=(str(path), "/on another machine"))

        monkeypatch.setattr(connection, "ask_head", ask)
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
        address_file = Path(connection.get_ray_address_file(None))
        address_file.parent.mkdir(exist_ok=True)
        if file:
            address_file.write_text("10.0.0.1:6379")
            if owner is not None:
                os.chown(address_file, owner, owner)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return set_up


def test_without_any_cluster_a_private_ray_is_started(machine: Machine) -> None:
    machine(file=False)
    assert _cluster_to_join(None) is None


def test_a_cluster_of_ray_start_is_joined(machine: Machine) -> None:
    machine()
    for address in (None, "auto"):
        head = _cluster_to_join(address)
        assert head is not None
        assert head.address == "10.0.0.1:6379"


@pytest.mark.parametrize("kind", [{"by_ray_start": False}, {"answers": False}, {"file": False}])
def test_the_private_ray_of_another_run_and_a_cluster_that_is_gone_are_not_joined(
    kind: dict[str, bool], machine: Machine
) -> None:
    machine(**kind)
    assert _cluster_to_join(None) is None
    with pytest.raises(RunFailed, match="--address auto: this user has not started a Ray cluster on this machine"):
        _cluster_to_join("auto")


@as_root
def test_a_cluster_of_another_user_is_not_joined(machine: Machine) -> None:
    machine(owner=OTHER_USER)
    assert _cluster_to_join(None) is None


@as_root
def test_a_file_of_this_user_does_not_vouch_for_the_processes_of_another(machine: Machine, tmp_path: Path) -> None:
    machine(owner=OTHER_USER)
    os.chown(connection.get_ray_address_file(None), 0, 0)
    assert _cluster_to_join(None) is None


@as_root
def test_a_named_cluster_of_another_user_is_refused_to_all_but_root(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(owner=OTHER_USER)
    assert _cluster_to_join("10.0.0.1:6379") is not None
    monkeypatch.setattr(os, "geteuid", lambda: OTHER_USER + 1)
    with pytest.raises(RunRefused, match=f"--address 10.0.0.1:6379: this Ray belongs to the user {OTHER_USER}"):
        _cluster_to_join("10.0.0.1:6379")


def test_a_variable_names_a_cluster_and_a_flag_overrides_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(by_ray_start=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:1")
    head = _cluster_to_join(None)
    assert head is not None
    assert (head.address, head.name) == ("10.0.0.2:1", "RAY_ADDRESS=10.0.0.2:1")
    assert _cluster_to_join("local") is None
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert _cluster_to_join(None) is None


def test_a_machine_that_is_no_node_is_told_how_to_become_one(machine: Machine, tmp_path: Path) -> None:
    machine()
    (tmp_path / "raylet").unlink()
    with pytest.raises(RunRefused, match=r"this machine is not a node .*ray start --address 10.0.0.1:6379"):
        _cluster_to_join("10.0.0.1:6379")


def test_only_a_regular_file_of_this_user_is_read(tmp_path: Path) -> None:
    own, link, pipe = tmp_path / "own", tmp_path / "link", tmp_path / "pipe"
    own.write_text("10.0.0.1:6379\n")
    link.symlink_to(own)
    os.mkfifo(pipe)
    assert _read_own_file(str(own)) == "10.0.0.1:6379"
    assert [_read_own_file(str(path)) for path in (link, pipe, tmp_path, tmp_path / "none")] == [""] * 4


def test_only_this_user_may_enter_the_folder_of_a_private_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.executor.private_ray.LONGEST_BASE", 1000)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    folder = Path(_session_folder()).parent
    assert folder == tmp_path / f"ray-{os.geteuid()}"
    folder.chmod(0o777)
    assert Path(_session_folder()).parent == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.symlink_to("/")
    other = Path(_session_folder()).parent
    assert other != folder
    assert other.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def without_authentication(tmp_path: Path) -> Iterator[None]:
    """Disable authentication, and let Ray read its own mode and token again afterwards.

    A Ray that other tests of this process share would otherwise get requests without its token, and end the process.
    """
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "HOME")}
    set_environment({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": None, "HOME": str(tmp_path)})
    yield
    set_environment(before)


@pytest.mark.usefixtures("without_authentication")
def test_the_token_of_a_private_ray_is_in_the_environment_alone_and_for_its_time_only(tmp_path: Path) -> None:
    tokens = set()
    for _ in range(2):
        with private_environment():
            assert os.environ["RAY_AUTH_MODE"] == "token"
            tokens.add(os.environ["RAY_AUTH_TOKEN"])
        assert (os.environ["RAY_AUTH_MODE"], "RAY_AUTH_TOKEN" in os.environ) == ("disabled", False)
    assert len(tokens) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x failed to import on the worker.\nModuleNotFoundError: No module named 'pipeline'\n", "'pipeline'"),
        ("x failed to import on the worker.\nImportError: cannot import name 'y' from 'z'\n", "cannot import name 'y'"),
    ],
)
def test_a_module_that_workers_cannot_import_is_named(text: str, reason: str) -> None:
    error = RunFailed("3 workers in a row died")
    error.__cause__ = ray.exceptions.RayError(text)
    assert reason in str(missing_module_error(error))
    assert missing_module_error(ray.exceptions.RayError("the node is gone")) is None
