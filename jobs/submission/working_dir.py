"""The working directory of a job: the files of a folder that go to the cluster, as a zip that Ray accepts."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pathspec import GitIgnoreSpec

from pipeline.storage.urls import SourceError

LIMIT_BYTES = 100 * 2**20
"""Largest request that the job server of Ray accepts."""

EXCLUDED = (
    *(".git", ".venv", "venv", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info"),
    *("/build", "/dist", "/docs", "/tests"),
    *("*.tar", "*.parquet"),
)
"""Patterns, as in .gitignore, of files that no job needs. A leading slash ties a pattern to the top of the folder."""
LARGEST_SHOWN = 10
"""Files and folders that the message about a folder that is too large names."""

Rule = tuple[Path, GitIgnoreSpec]
"""A folder, and the patterns that apply to the paths below it."""


def pack_folder(folder: Path, target: Path, *, exclude: Sequence[str] = ()) -> str:
    """Write the files of a folder to a zip.

    The same files give the same bytes, so Ray recognises a package that it already has. Links to folders are not
    followed.

    Args:
        folder: The folder to pack.
        target: The zip to write.
        exclude: Patterns of files to leave out, beside `EXCLUDED` and those of .gitignore and .rayignore files.

    Returns:
        A text with the number and the size of the files.

    Raises:
        SourceError: The folder does not exist, or its files are larger than `LIMIT_BYTES`. Nothing is written.
    """
    if not folder.is_dir():
        raise SourceError(f"--working-dir {folder}: no such folder")
    sizes = {path: path.stat().st_size for path in _files(folder, [(folder, _spec([*EXCLUDED, *exclude]))])}
    total = sum(sizes.values())
    if total > LIMIT_BYTES:
        raise SourceError(
            f"--working-dir {folder}: {_mib(total)} in {len(sizes)} files; Ray accepts {_mib(LIMIT_BYTES)} at most. "
            "Exclude files that the job does not need with --exclude PATTERN or a .rayignore file, and read large "
            f"files from the store. The largest:\n{_largest(sizes, folder)}"
        )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for path in sizes:
            archive.write(path, path.relative_to(folder))
    return f"working directory {folder}: {len(sizes)} files, {_mib(total)}"


def _files(folder: Path, rules: list[Rule]) -> Iterator[Path]:
    """Yield the files below a folder that no rule excludes, in a fixed order."""
    rules = [*rules, *_ignore_files(folder)]
    for path in sorted(folder.iterdir()):
        is_folder = path.is_dir() and not path.is_symlink()
        if any(spec.match_file(path.relative_to(base).as_posix() + "/" * is_folder) for base, spec in rules):
            continue
        if is_folder:
            yield from _files(path, rules)
        elif path.is_file():
            yield path


def _ignore_files(folder: Path) -> Iterator[Rule]:
    """Yield the rules of the ignore files that lie in a folder."""
    ignores_gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") == "1"  # a switch of Ray
    names = [".rayignore"] if ignores_gitignore else [".gitignore", ".rayignore"]
    for path in (folder / name for name in names):
        if path.is_file():
            yield folder, _spec(path.read_text().splitlines())


def _spec(lines: Sequence[str]) -> GitIgnoreSpec:
    return GitIgnoreSpec.from_lines(lines)


def _largest(sizes: dict[Path, int], folder: Path) -> str:
    """List the largest files and folders, one per line; the size of a folder includes everything below it."""
    totals: Counter[str] = Counter()
    for path, size in sizes.items():
        relative = path.relative_to(folder)
        totals[relative.as_posix()] += size
        for parent in relative.parents[:-1]:
            totals[f"{parent.as_posix()}/"] += size
    largest = sorted(totals.items(), key=lambda item: (-item[1], item[0]))[:LARGEST_SHOWN]
    return "\n".join(f"{_mib(size):>12}  {name}" for name, size in largest)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
