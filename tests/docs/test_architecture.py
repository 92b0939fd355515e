"""What docs/architecture.md says of folders and imports holds for the source text."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from command_lines import ROOT
from doc_pages import read_page

PACKAGES = ("diffseg", "pipeline", "jobs")
"""From the bottom to the top: a package may import those before it."""

FOREIGN = {"ray", "fsspec", "s3fs", "webdataset", "pyarrow"}
"""Libraries that `diffseg` must not import."""


@functools.cache
def modules() -> dict[str, Path]:
    """Return the path of every module of the packages, relative to the root, by its dotted name."""
    paths = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a file imports, inside functions too."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> Path | None:
    """Return the file of the module that a full name belongs to, or None if it is not one of ours."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return modules().get(name)


def unit(path: Path) -> str:
    """Return the folder of a file; a file that lies beside the folders of its package stands for itself."""
    return str(path.parent if len(path.parts) > 2 else path)


def test_imports_point_from_jobs_to_pipeline_to_diffseg() -> None:
    for path in modules().values():
        above = PACKAGES[PACKAGES.index(path.parts[0]) + 1 :]
        forbidden = {*above, *(FOREIGN if path.parts[0] == "diffseg" else ())}
        assert {name.partition(".")[0] for name in imported(path)} & forbidden == set(), path


def test_label_shard_imports_no_ray() -> None:
    assert "ray" not in {name.partition(".")[0] for name in imported(Path("pipeline/label.py"))}


def folder_imports() -> dict[str, set[str]]:
    """Return the folders that each folder imports from."""
    graph: dict[str, set[str]] = {}
    for path in modules().values():
        targets = {unit(target) for name in imported(path) if (target := module_of(name))}
        graph.setdefault(unit(path), set()).update(targets - {unit(path)})
    return graph


def check_acyclic(graph: Mapping[str, set[str]]) -> None:
    """Raise CycleError if folders import each other, directly or through others."""
    TopologicalSorter(graph).prepare()


def test_no_folders_import_each_other() -> None:
    graph = folder_imports()
    assert {"diffseg/attention", "pipeline/storage", "jobs/label.py"} <= graph.keys()
    check_acyclic(graph)


def test_a_cycle_is_noticed() -> None:
    graph = folder_imports()
    graph["pipeline/storage"].add("pipeline/executor")
    with pytest.raises(CycleError):
        check_acyclic(graph)


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_folder_has_a_line(page: str) -> None:
    named = {text.rstrip("/") for _, text in read_page(Path(page)).inline_code()}
    folders = {
        str(path.parent) for path in modules().values() if page == "docs/architecture.md" or len(path.parts) == 3
    }
    folders -= {"diffseg", "pipeline", "jobs/benchmarks", "jobs/submission"} if page == "CONTRIBUTING.md" else set()
    assert folders <= named
