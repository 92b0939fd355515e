"""Find the shards of a source that a user names: a folder, a file, a glob or a brace range, at any URL."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from pipeline.readers.file_names import safe_file_name
from pipeline.readers.image_groups import group_images
from pipeline.readers.kinds import kind_of, only_kind, path_without_extension
from pipeline.readers.patterns import (
    compile_globs,
    expand_braces,
    glob_characters,
    glob_depth,
    is_pattern,
    split_pattern,
)
from pipeline.readers.samples import Shard, ShardKind
from pipeline.readers.versions import file_version
from pipeline.storage import SourceError, Storage, redact, scheme
from pipeline.storage.backend import ListedFile
from pipeline.storage.urls import join_url, split_url


class SourceFiles(NamedTuple):
    """The data files of a source at one moment.

    Attributes:
        root: The folder or URL that the paths are relative to.
        kind: The kind of all files.
        files: The files, sorted by path, with their versions where a listing tells them.
        skipped: Folders that could not be listed, so that their files are not known. If there are any, files that are
            missing may still exist.
    """

    root: str
    kind: ShardKind
    files: list[ListedFile]
    skipped: tuple[str, ...] = ()


def find_shards(source: str, store: Storage | None = None, *, samples_per_shard: int = 256) -> list[Shard]:
    """Return the shards of a source: tars and Parquet files sorted by name, groups of image files sorted by path.

    Args:
        source: A folder or URL of tars, Parquet files or image files, which is searched recursively; one such file; a
            glob (`**` matches folders of any depth); or a brace range such as `train-{0000..0999}.tar`, whose
            files are not checked for existence.
        store: The storage options and retry timeout for the store of `source`. Its URL is not used. None stands for
            the defaults.
        samples_per_shard: The mean number of image files in a shard, for a source of image files.

    Raises:
        SourceError: No shards were found, the files are of several kinds, or two shards would have the same name.
    """
    if samples_per_shard < 1:
        raise SourceError(f"samples per shard must be at least 1, not {samples_per_shard}")
    store = store or Storage(url=".")
    return shards_of(find_files(source, store), store, source, samples_per_shard=samples_per_shard)


def find_files(source: str, store: Storage) -> SourceFiles:
    """Return the data files of a source, which is described at `find_shards`.

    Raises:
        SourceError: No files were found, or they are of several kinds.
    """
    root, files = _find_files(source, store)
    return SourceFiles(root=root, kind=only_kind([file.path for file in files], root, source), files=files)


def shards_of(files: SourceFiles, store: Storage, source: str, *, samples_per_shard: int) -> list[Shard]:
    """Return the shards of the data files of a source; `find_shards` describes the arguments and errors."""
    url = store.at(files.root).url
    if files.kind == "images":
        return group_images(url, files.files, samples_per_shard)
    shards = [
        Shard(name=_shard_name(file.path), url=join_url(url, file.path), kind=files.kind, version=file_version(file))
        for file in files.files
    ]
    _refuse_same_names(shards, source)
    return sorted(shards, key=lambda shard: shard.name)


def _find_files(source: str, store: Storage) -> tuple[str, list[ListedFile]]:
    """Return the root folder of a source and its data files below that folder, sorted by path."""
    storage = store.at(source)
    # A local file or folder may have a name that looks like a pattern. Remote stores are not checked for such names.
    if not is_pattern(source) or (not scheme(source) and storage.exists()):
        folder, name = split_url(source.rstrip("/"))
        if name and kind_of(name) and store.at(folder).is_file(name):
            return folder, [store.at(folder).stat(name)]
        return source, _list_data_files(storage)
    root, pattern = split_pattern(source)
    return root, _match_pattern(store.at(root), pattern, source)


def _match_pattern(storage: Storage, pattern: str, source: str) -> list[ListedFile]:
    """Return the data files that a pattern names below the folder `storage`, sorted by path."""
    wild = glob_characters(source)
    files: dict[str, ListedFile] = {}
    globs = []
    for path in expand_braces(pattern, source):
        if wild.search(path):
            globs.append(path)
        elif kind_of(path):
            files[path] = _named_file(storage, path)
        else:
            listed = _list_data_files(storage.at(join_url(storage.url, path)))
            if not listed:
                raise SourceError(
                    f"{storage.joined(path)}: no shards or images were found there, though {redact(source)} names it"
                )
            folder = path.strip("/")
            files |= {f"{folder}/{file.path}": file._replace(path=f"{folder}/{file.path}") for file in listed}
    if globs:
        expression = compile_globs(globs, source)
        # Only as deep as the globs can match, because deeper folders may hold most of a bucket.
        listed = _list_data_files(storage, glob_depth(globs))
        files |= {file.path: file for file in listed if expression.match(file.path)}
    return sorted(files.values())


def _named_file(storage: Storage, path: str) -> ListedFile:
    """Return a file that a brace range names; its version is unknown if it is remote, since a request would be sent."""
    if not scheme(storage.url):
        with suppress(OSError):
            return storage.stat(path)
    return ListedFile(path, 0, "")


def _list_data_files(storage: Storage, depth: int | None = None) -> list[ListedFile]:
    return [file for file in storage.list_files(depth=depth) if kind_of(file.path)]


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
