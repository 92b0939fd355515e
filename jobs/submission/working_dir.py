"""The working directory of a job: what of a folder goes to the cluster, as a zip of a size that Ray takes."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pathspec import GitIgnoreSpec

from pipeline.storage.urls import SourceError

LIMIT_BYTES = 100 * 2**20
"""The most that Ray's job server takes in one request."""

EXCLUDED = (
    *(".git", ".venv", "venv", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "/build", "/dist", "/tests"),
    *("*.tar", "*.parquet"),
)
_SHOWN = 10

Rule = tuple[Path, GitIgnoreSpec]


def pack_folder(folder: Path, target: Path, *, exclude: Sequence[str] = ()) -> str:
    """Write the files of a folder to the zip `target`, and say how many and how large they are.

    The same files make the same bytes, so that Ray knows a package that it already has. exclude: patterns beside
    `EXCLUDED` and those of the folder's .gitignore and .rayignore files. Links to folders are not followed.

    Raises:
        SourceError: where there is no such folder, or more than `LIMIT_BYTES` in it, before anything is written.
    """
    if not folder.is_dir():
        raise SourceError(f"--working-dir {folder}: no such folder")
    sizes = {path: path.stat().st_size for path in _files(folder, [(folder, _spec([*EXCLUDED, *exclude]))])}
    total = sum(sizes.values())
    if total > LIMIT_BYTES:
        raise SourceError(
            f"--working-dir {folder}: {_mib(total)} in {len(sizes)} files, and Ray takes {_mib(LIMIT_BYTES)} at most. "
            "Exclude what the job does not need with --exclude PATTERN or a .rayignore file, and let large files be "
            f"read from the store. The largest:\n{_largest(sizes, folder)}"
        )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for path in sizes:
            archive.write(path, path.relative_to(folder))
    return f"working directory {folder}: {len(sizes)} files, {_mib(total)}"


def _files(folder: Path, rules: list[Rule]) -> Iterator[Path]:
    rules = [*rules, *_ignore_files(folder)]
    for path in sorted(folder.iterdir()):
        into = path.is_dir() and not path.is_symlink()
        if any(spec.match_file(path.relative_to(base).as_posix() + "/" * into) for base, spec in rules):
            continue
        if into:
            yield from _files(path, rules)
        elif path.is_file():
            yield path


def _ignore_files(folder: Path) -> Iterator[Rule]:
    names = (
        [".rayignore"] if os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") == "1" else [".gitignore", ".rayignore"]
    )
    for path in (folder / name for name in names):
        if path.is_file():
            yield folder, _spec(path.read_text().splitlines())


def _spec(lines: Sequence[str]) -> GitIgnoreSpec:
    return GitIgnoreSpec.from_lines(lines)


def _largest(sizes: dict[Path, int], folder: Path) -> str:
    """The largest files and folders, each folder with all that is below it."""
    totals: Counter[str] = Counter()
    for path, size in sizes.items():
        below = path.relative_to(folder)
        totals[below.as_posix()] += size
        for parent in below.parents[:-1]:
            totals[f"{parent.as_posix()}/"] += size
    largest = sorted(totals.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
    return "\n".join(f"{_mib(size):>12}  {name}" for name, size in largest)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
