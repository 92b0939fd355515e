"""Find the shards of a source that a user names: a folder, a file, a glob or a brace range, at any URL."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.readers.file_names import safe_file_name
from pipeline.readers.kinds import kind_of, only_kind, path_without_extension
from pipeline.readers.patterns import (
    compile_globs,
    expand_braces,
    glob_characters,
    glob_depth,
    is_pattern,
    split_pattern,
)
from pipeline.readers.samples import Shard
from pipeline.storage import SourceError, Storage, redact, scheme
from pipeline.storage.urls import join_url, split_url


def find_shards(source: str, store: Storage | None = None, *, samples_per_shard: int = 256) -> list[Shard]:
    """Return the shards of a source, sorted by name.

    Args:
        source: A folder or URL of tars, Parquet files or image files, which is searched recursively; one such file; a
            glob (`**` matches folders of any depth); or a brace range such as `train-{0000..0999}.tar`, whose
            files are not checked for existence.
        store: The storage options and retry timeout for the store of `source`. Its URL is not used. None stands for
            the defaults.
        samples_per_shard: The number of image files in a shard, for a source of image files.

    Raises:
        SourceError: No shards were found, the files are of several kinds, or two shards would have the same name.
    """
    if samples_per_shard < 1:
        raise SourceError(f"samples per shard must be at least 1, not {samples_per_shard}")
    store = store or Storage(url=".")
    root, paths = _find_files(source, store)
    kind = only_kind(paths, root, source)
    url = store.at(root).url
    if kind == "images":
        return _group_images(url, paths, samples_per_shard)
    shards = [Shard(name=_shard_name(path), url=join_url(url, path), kind=kind) for path in paths]
    _refuse_same_names(shards, source)
    return sorted(shards, key=lambda shard: shard.name)


def _group_images(url: str, paths: list[str], samples_per_shard: int) -> list[Shard]:
    """Return shards of `samples_per_shard` consecutive image files each; the last one may hold fewer."""
    groups = [paths[start : start + samples_per_shard] for start in range(0, len(paths), samples_per_shard)]
    digits = max(6, len(str(len(groups) - 1)))
    return [
        Shard(name=f"images-{number:0{digits}d}", url=url, kind="images", files=tuple(files))
        for number, files in enumerate(groups)
    ]


def _find_files(source: str, store: Storage) -> tuple[str, list[str]]:
    """Return the root folder of a source and the sorted paths of its data files below that folder."""
    storage = store.at(source)
    # A local file or folder may have a name that looks like a pattern. Remote stores are not checked for such names.
    if not is_pattern(source) or (not scheme(source) and storage.exists()):
        folder, name = split_url(source.rstrip("/"))
        if name and kind_of(name) and store.at(folder).is_file(name):
            return folder, [name]
        return source, _list_data_files(storage)
    root, pattern = split_pattern(source)
    return root, _match_pattern(store.at(root), pattern, source)


def _match_pattern(storage: Storage, pattern: str, source: str) -> list[str]:
    """Return the sorted paths of the data files that a pattern names below the folder `storage`."""
    wild = glob_characters(source)
    paths: set[str] = set()
    globs = []
    for path in expand_braces(pattern, source):
        if wild.search(path):
            globs.append(path)
        elif kind_of(path):
            paths.add(path)
        else:
            files = _list_data_files(storage.at(join_url(storage.url, path)))
            if not files:
                raise SourceError(
                    f"{storage.joined(path)}: no shards or images were found there, though {redact(source)} names it"
                )
            paths.update(f"{path.strip('/')}/{file}" for file in files)
    if globs:
        expression = compile_globs(globs, source)
        # Only as deep as the globs can match, because deeper folders may hold most of a bucket.
        paths.update(path for path in _list_data_files(storage, glob_depth(globs)) if expression.match(path))
    return sorted(paths)


def _list_data_files(storage: Storage, depth: int | None = None) -> list[str]:
    return [path for path, _ in storage.files(depth=depth) if kind_of(path)]


def _shard_name(path: str) -> str:
    return safe_file_name(path_without_extension(path), fallback="shard", digest_digits=8)


def _refuse_same_names(shards: Iterable[Shard], source: str) -> None:
    urls: dict[str, str] = {}
    for shard in shards:
        other = urls.setdefault(shard.name, shard.url)
        if other != shard.url:
            raise SourceError(
                f"{redact(source)}: {redact(other)} and {redact(shard.url)} would both be shard {shard.name!r}. "
                "Rename one, or name one of them by a glob"
            )
