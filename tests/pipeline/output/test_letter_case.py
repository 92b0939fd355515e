"""An OUT whose file system ignores capitals, as vfat and exFAT do."""

from __future__ import annotations

import tarfile
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import jobs.label
from pipeline.errors import RunRefused
from pipeline.output.letter_case import refuse_names_that_collide
from pipeline.storage import Storage


class IgnoresCapitals(MemoryFileSystem):
    """A store in which names that differ only in capitals are one file."""

    protocol = "ignores-capitals"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("ignores-capitals://").lower())


@pytest.fixture
def ignores_capitals(tmp_path: Path) -> Storage:
    fsspec.register_implementation("ignores-capitals", IgnoresCapitals, clobber=True)
    return Storage(url=f"ignores-capitals://{tmp_path.name}/out")


def test_names_that_differ_in_capitals_are_refused_where_they_are_one_file(ignores_capitals: Storage) -> None:
    with pytest.raises(RunRefused, match="the shards 'A' and 'a' would have the same files"):
        refuse_names_that_collide(ignores_capitals, ["b", "A", "a"])
    assert ignores_capitals.files() == []


def test_other_file_systems_keep_such_names_apart_and_nothing_is_left_there(tmp_path: Path) -> None:
    refuse_names_that_collide(Storage(url=str(tmp_path)), ["A", "a"])
    assert list(tmp_path.iterdir()) == []


def test_names_that_differ_otherwise_cost_no_request() -> None:
    refuse_names_that_collide(Storage(url="nowhere://at/all"), ["A", "b"])


def test_a_run_into_such_an_out_is_refused_before_anything_is_labelled(
    ignores_capitals: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("A.tar", "a.tar"):
        tarfile.open(tmp_path / name, "w").close()
    assert jobs.label.main([str(tmp_path), ignores_capitals.url, "--no-ray", "--device", "cpu"]) == 2
    assert "ignores capitals" in capsys.readouterr().err
    assert ignores_capitals.files() == []
