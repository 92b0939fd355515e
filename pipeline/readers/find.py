"""From what a user writes to a list of shards: folders, single files, globs and brace ranges, at any URL."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

from braceexpand import braceexpand
from fsspec.utils import glob_translate

from pipeline.readers.samples import IMAGE_EXTENSIONS, Shard
from pipeline.storage import SourceError, Storage, redact, scheme
from pipeline.storage.urls import join_url, split_url

_MAX_NAME = 150
_MAX_EXPANDED = 10**6
_SAFE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_EXTENSION = re.compile(r"\.(tar|tar\.gz|tgz|parquet|parq|pq)$", re.IGNORECASE)
_QUERY = re.compile(r"\?.*=.*$")  # what signs a URL is no part of the name
_BRACES = re.compile(r"\{[^{}]*(,|\.\.)[^{}]*\}")

_RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.-?\d+)?\}")

Kind = Literal["tar", "parquet", "images"]


def find_shards(source: str, store: Storage | None = None, *, samples_per_shard: int = 256) -> list[Shard]:
    """The shards that ``source`` names, sorted by name.

    Args:
        source: a folder or URL (searched recursively) of tars, of Parquet files or of image files; one such file; a
            glob (``**`` spans folders); brace ranges as in ``train-{0000..0999}.tar``, which are taken as they are,
            without looking whether each file is there.
        store: how its store is reached (options, retry timeout); its URL does not matter. None for the defaults.
        samples_per_shard: how many image files make one shard, where the source is of image files.

    Raises:
        SourceError: nothing was found, the files are of several kinds, or two shards would have one name.
    """
    if samples_per_shard < 1:
        raise SourceError(f"samples per shard must be at least 1, not {samples_per_shard}")
    store = store or Storage(url=".")
    root, paths = _find(source, store)
    kind = _one_kind(paths, root, source)
    storage = store.at(root)
    if kind == "images":
        groups = [paths[start : start + samples_per_shard] for start in range(0, len(paths), samples_per_shard)]
        digits = max(6, len(str(len(groups) - 1)))
        return [
            Shard(name=f"images-{number:0{digits}d}", url=storage.url, kind="images", files=tuple(files))
            for number, files in enumerate(groups)
        ]
    shards = [Shard(name=_name(path), url=join_url(storage.url, path), kind=kind) for path in paths]
    _refuse_same_names(shards, source)
    return sorted(shards, key=lambda shard: shard.name)


def _find(source: str, store: Storage) -> tuple[str, list[str]]:
    """A folder, and the paths below it of all files of a known kind, sorted."""
    whole = store.at(source)
    # In http URLs a question mark starts the query.
    wild = re.compile(r"[*[]" if scheme(source) in ("http", "https") else r"[*?[]")
    # Local names may hold such characters themselves; a store is not asked about names that are patterns.
    if not (wild.search(source) or _BRACES.search(source)) or (not scheme(source) and whole.exists()):
        folder, name = split_url(source.rstrip("/"))
        if name and _kind(name) and store.at(folder).is_file(name):
            return folder, [name]
        return source, _listed(whole)
    root, pattern = _fixed_part(source, wild)
    storage = store.at(root)
    paths: set[str] = set()
    globs = []
    for path in _expanded(pattern, source):
        if wild.search(path):
            globs.append(path)
        elif _kind(path):
            paths.add(path)
        else:
            below = _listed(store.at(join_url(storage.url, path)))
            if not below:
                raise SourceError(
                    f"{storage.joined(path)}: no shards or images were found there, though {redact(source)} names it"
                )
            paths.update(f"{path.strip('/')}/{file}" for file in below)
    if globs:
        paths.update(_matching(storage, globs, source))
    return root, sorted(paths)


def _matching(storage: Storage, globs: list[str], source: str) -> Iterator[str]:
    try:
        matches = re.compile("|".join(f"(?:{glob_translate(glob)})" for glob in globs)).match
    except ValueError as error:
        raise SourceError(f"{redact(source)}: {error}") from error
    # Without ** there is no need to list what lies deeper, which may be most of a bucket.
    depth = None if any("**" in glob for glob in globs) else max(glob.count("/") + 1 for glob in globs)
    return (path for path in _listed(storage, depth) if matches(path))


def _listed(storage: Storage, depth: int | None = None) -> list[str]:
    return [path for path, _ in storage.files(depth=depth) if _kind(path)]


def _fixed_part(source: str, wild: re.Pattern[str]) -> tuple[str, str]:
    """``source`` cut before the first path part that holds a glob or braces."""
    parts = source.split("/")
    fixed = next(place for place, part in enumerate(parts) if "{" in part or wild.search(part))
    root = "/".join(parts[:fixed])
    if not root:
        root = "/" if source.startswith("/") else "."
    return root + "//" if root.endswith(":") else root, "/".join(parts[fixed:])


def _expanded(pattern: str, source: str) -> list[str]:
    too_many = f"{redact(source)}: the braces stand for more than {_MAX_EXPANDED} names; use a glob (*)"
    # Counted first, since braceexpand makes the list of a range before it gives the first name.
    ranges = [abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(pattern)]
    if math.prod(ranges) > _MAX_EXPANDED:
        raise SourceError(too_many)
    try:
        expanded = list(itertools.islice(braceexpand(pattern), _MAX_EXPANDED + 1))
    except ValueError as error:
        raise SourceError(f"{redact(source)}: the braces do not match; write ranges as {{0000..0999}}") from error
    if len(expanded) > _MAX_EXPANDED:
        raise SourceError(too_many)
    return expanded


def _kind(path: str) -> Kind | None:
    """By the file name; None for what is no data: other files, hidden ones, and Spark's ``_temporary`` ones."""
    parts = _QUERY.sub("", path).lower().split("/")
    if any(part.startswith(".") for part in parts):
        return None
    name = parts[-1]
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return "tar"
    if name.endswith((".parquet", ".parq", ".pq")):
        return None if any(part.startswith("_") for part in parts) else "parquet"
    stem, _, extension = name.rpartition(".")
    return "images" if stem and extension in IMAGE_EXTENSIONS else None


def _one_kind(paths: list[str], root: str, source: str) -> Kind:
    where = redact(source)
    if not paths:
        raise SourceError(
            f"{where}: no .tar, .tar.gz, .parquet or image files were found there. "
            "Check the path, and the storage options if it needs credentials"
        )
    counts = Counter(kind for path in paths if (kind := _kind(path)))
    if len(counts) > 1:
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        example = "/**/*." + {"tar": "tar", "parquet": "parquet", "images": "jpg"}[counts.most_common(1)[0][0]]
        raise SourceError(
            f"{where}: holds files of several kinds ({found}), so it is not clear what to label. "
            f"Name one kind by a glob, for example '{redact(root).rstrip('/')}{example}'"
        )
    return next(iter(counts))


def _name(path: str) -> str:
    """A name that is safe as a file name, tells the path, and differs for paths that differ."""
    stem = _EXTENSION.sub("", _QUERY.sub("", path))
    parts = stem.split("/")
    is_safe = all(_SAFE_PART.fullmatch(part) and "--" not in part and not part.endswith("-") for part in parts)
    name = "--".join(parts)
    if is_safe and len(name) <= _MAX_NAME:
        return name
    digest = hashlib.sha256(stem.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-")[: _MAX_NAME - 9]
    return f"{readable or 'shard'}-{digest}"


def _refuse_same_names(shards: Iterable[Shard], source: str) -> None:
    urls: dict[str, str] = {}
    for shard in shards:
        other = urls.setdefault(shard.name, shard.url)
        if other != shard.url:
            raise SourceError(
                f"{redact(source)}: {redact(other)} and {redact(shard.url)} would both be shard {shard.name!r}. "
                "Rename one, or name one of them by a glob"
            )
