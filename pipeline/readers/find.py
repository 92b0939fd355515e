"""Find the shards of a source that a user names: folders, files, globs or brace ranges, at any URL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pipeline.readers.file_names import safe_file_name
from pipeline.readers.image_groups import group_images
from pipeline.readers.kinds import only_kind, path_without_extension
from pipeline.readers.left_out import LeftOut
from pipeline.readers.parquet_files import leave_out_metadata
from pipeline.readers.resolve import Resolver
from pipeline.readers.samples import Shard, ShardKind
from pipeline.readers.sources import expand_source
from pipeline.readers.versions import file_version
from pipeline.storage import SourceError, Storage, redact, scheme
from pipeline.storage.backend import ListedFile
from pipeline.storage.urls import join_url


@dataclass(frozen=True, kw_only=True)
class SourceFiles:
    """The data files of a source at one moment.

    Attributes:
        kind: The kind of all files.
        by_root: The files, sorted by path, with their versions where a listing tells them, by the folder or URL that
            the paths are relative to.
        has_full_paths: True if the paths are complete, because there are several sources or a list of them.
        left_out: What is not read, by kind.
        skipped: Places that could not be listed, so that their files are not known. If there are any, files that are
            missing may still exist.
    """

    kind: ShardKind
    by_root: dict[str, list[ListedFile]]
    has_full_paths: bool = False
    left_out: LeftOut = field(default_factory=LeftOut)
    skipped: tuple[str, ...] = ()

    def single_root(self) -> tuple[str, list[ListedFile]]:
        """Return the only root and its files. Raises SourceError if there are several."""
        if len(self.by_root) > 1:
            raise SourceError(f"{', '.join(map(redact, self.by_root))}: name one source, not several")
        return next(iter(self.by_root.items()))


def find_shards(
    source: str,
    store: Storage | None = None,
    *,
    samples_per_shard: int = 256,
    out: Sequence[Storage] = (),
    key_field: str | None = None,
) -> list[Shard]:
    """Return the shards of a source: tars and Parquet files sorted by name, groups of image files sorted by path.

    Args:
        source: A folder or URL of tars, Parquet files or image files, which is searched recursively; one such file; a
            glob (`**` matches folders of any depth); or a brace range such as `train-{0000..0999}.tar`, whose
            files are not checked for existence. Several of these, or a text file that lists them (see
            `pipeline.readers.sources`).
        store: The storage options and retry timeout for the store of `source`. Its URL is not used. None stands for
            the defaults.
        samples_per_shard: The mean number of image files in a shard, for a source of image files.
        out: Folders that are never a source, because a command writes to them.
        key_field: The key column of Parquet files, or None to look for it.

    Raises:
        SourceError: No shards were found, the files are of several kinds, two shards would have the same name, or the
            source lies in one of `out`.
    """
    if samples_per_shard < 1:
        raise SourceError(f"samples per shard must be at least 1, not {samples_per_shard}")
    store = store or Storage(url=".")
    files = find_files(source, store, out=out)
    return shards_of(files, store, source, samples_per_shard=samples_per_shard, key_field=key_field)


def find_files(
    source: str, store: Storage, *, out: Sequence[Storage] = (), image_field: str | None = None
) -> SourceFiles:
    """Return the data files of a source, which is described at `find_shards`.

    Args:
        source: The source.
        store: The storage options and retry timeout.
        out: Folders that are never a source.
        image_field: The name of the image column of Parquet files, if it is given.

    Raises:
        SourceError: No files were found, they are of several kinds, or the source lies in one of `out`.
    """
    sources, has_full_paths = expand_source(source, store)
    resolver = Resolver(store=store, out=tuple(out))
    by_root: dict[str, dict[str, ListedFile]] = {}
    for part in sources:
        root, files = resolver.resolve(part, is_listed=has_full_paths)
        root, prefix = _store_root(store.at(root).url) if has_full_paths else (root, "")
        by_root.setdefault(root, {}).update((prefix + file.path, file) for file in files)
    sorted_files = {
        root: [file._replace(path=path) for path, file in sorted(files.items())] for root, files in by_root.items()
    }
    sorted_files = leave_out_metadata(sorted_files, store, image_field, resolver.left_out)
    paths = (file.path for files in sorted_files.values() for file in files)
    return SourceFiles(
        kind=only_kind(paths, next(iter(by_root)), sources[0] if len(sources) == 1 else source, resolver.left_out),
        by_root={root: files for root, files in sorted_files.items() if files},
        has_full_paths=has_full_paths,
        left_out=resolver.left_out,
        skipped=tuple(resolver.skipped),
    )


def _store_root(url: str) -> tuple[str, str]:
    """Split a URL into the root of its store, and the path there with a slash at its end."""
    if not scheme(url):
        return "/", url.strip("/") + "/" if url != "/" else ""
    netloc = urlsplit(url).netloc
    start = url.index("://") + 3 + len(netloc)
    path = url[start:].strip("/")
    return url[:start] or url, f"{path}/" if path else ""


def shards_of(
    files: SourceFiles, store: Storage, source: str, *, samples_per_shard: int, key_field: str | None = None
) -> list[Shard]:
    """Return the shards of the data files of a source; `find_shards` describes the arguments and errors."""
    if key_field is not None and files.kind != "parquet":
        raise SourceError(f"{redact(source)}: --key-field names a column of Parquet files, and these are {files.kind}")
    shards: list[Shard] = []
    for root, listed in files.by_root.items():
        url = store.at(root).url
        # Buckets and hosts may hold files with equal paths.
        host = (urlsplit(url).hostname or "") + "/" if files.has_full_paths and scheme(url) else ""
        if files.kind == "images":
            shards += group_images(url, listed, samples_per_shard, prefix=host)
        else:
            shards += [_file_shard(host, url, file, files.kind, key_field) for file in listed]
    _refuse_same_names(shards, source)
    return shards if files.kind == "images" else sorted(shards, key=lambda shard: shard.name)


def _file_shard(host: str, url: str, file: ListedFile, kind: ShardKind, key_field: str | None) -> Shard:
    name = safe_file_name(host + path_without_extension(file.path), fallback="shard", digest_digits=8)
    return Shard(name=name, url=join_url(url, file.path), kind=kind, version=file_version(file), key_field=key_field)


def _refuse_same_names(shards: Iterable[Shard], source: str) -> None:
    urls: dict[str, str] = {}
    for shard in shards:
        other = urls.setdefault(shard.name, shard.url)
        if other != shard.url:
            raise SourceError(
                f"{redact(source)}: {redact(other)} and {redact(shard.url)} would both be shard {shard.name!r}. "
                "Rename one, or name one of them by a glob"
            )
