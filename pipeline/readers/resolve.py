"""Find the data files of one source: a folder, a file, a glob or a brace range, at any URL."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from pipeline.readers.kinds import kind_of, without_query
from pipeline.readers.left_out import LeftOut, file_kind
from pipeline.readers.own_folders import without_own_folders
from pipeline.readers.patterns import (
    compile_globs,
    expand_braces,
    glob_characters,
    glob_depth,
    is_pattern,
    split_pattern,
)
from pipeline.storage import SourceError, Storage, is_within, redact, scheme
from pipeline.storage.backend import ListedFile
from pipeline.storage.urls import join_url, split_url


@dataclass(kw_only=True)
class Resolver:
    """Lists sources, and notes what it leaves out.

    Attributes:
        store: The storage options and retry timeout.
        out: Folders that are never a source, because the command writes to them.
        left_out: Files that are not read.
        skipped: Places that could not be listed, so that their files are not known.
    """

    store: Storage
    out: tuple[Storage, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    skipped: list[str] = field(default_factory=list)

    def resolve(self, source: str, *, is_listed: bool = False) -> tuple[str, list[ListedFile]]:
        """Return the root folder of a source and its data files below that folder, sorted by path.

        Args:
            source: The source.
            is_listed: The source is one of many, so no request is sent for the name of a data file.

        Raises:
            SourceError: The source lies in a folder that the command writes to, or it cannot be listed.
        """
        storage = self.store.at(source)
        folder, name = split_url(source.rstrip("/"))
        if is_listed and kind_of(name) and not is_pattern(source):
            return folder, [self._named_file(self.store.at(folder), name)]
        # A local file or folder may have a name that looks like a pattern. Remote stores are not checked for such
        # names.
        if is_pattern(source) and (scheme(source) or not storage.exists()):
            root, pattern = split_pattern(source)
            return root, self._match_pattern(self.store.at(root), pattern, source)
        self._refuse_output(storage, source)
        if name and kind_of(name) and self.store.at(folder).is_file(name):
            return folder, [self.store.at(folder).stat(name)]
        if name and not scheme(source) and self.store.at(folder).is_file(name):
            self.left_out.add(file_kind(name), name)
            return folder, []
        return source, self._data_files(self._list(storage))

    def _match_pattern(self, storage: Storage, pattern: str, source: str) -> list[ListedFile]:
        """Return the data files that a pattern names below the folder `storage`, sorted by path."""
        self._refuse_output(storage, source)
        wild = glob_characters(source)
        files: dict[str, ListedFile] = {}
        globs = []
        for path in expand_braces(pattern, source):
            if wild.search(path):
                globs.append(path)
            elif kind_of(path):
                files[path] = self._named_file(storage, path)
            else:
                folder = storage.at(join_url(storage.url, path))
                self._refuse_output(folder, source)
                listed = self._data_files(self._list(folder))
                if not listed:
                    raise SourceError(
                        f"{folder.redacted}: no shards or images were found there, though {redact(source)} names it"
                    )
                prefix = path.strip("/")
                files |= {f"{prefix}/{file.path}": file._replace(path=f"{prefix}/{file.path}") for file in listed}
        if globs:
            expression = compile_globs(globs, source)
            # Only as deep as the globs can match, because deeper folders may hold most of a bucket.
            listed = self._list(storage, glob_depth(globs), only=lambda path: expression.match(path) is not None)
            files |= {file.path: file for file in self._data_files(listed)}
        return sorted(files.values())

    def _named_file(self, storage: Storage, path: str) -> ListedFile:
        """Return a named file; its version is unknown if it is remote, since a request would be sent."""
        for out in self.out:
            if is_within(storage.at(join_url(storage.url, without_query(path))), out):
                raise SourceError(f"{storage.joined(path)}: lies in {out.redacted}, to which this command writes")
        if not scheme(storage.url):
            with suppress(OSError):
                return storage.stat(path)
        return ListedFile(path, 0, "")

    def _list(
        self, storage: Storage, depth: int | None = None, only: Callable[[str], bool] = lambda path: True
    ) -> list[ListedFile]:
        """List a folder, and note what could not be listed.

        Args:
            storage: The folder.
            depth: The number of folder levels to list, or None for all of them.
            only: Returns True for the paths that the source names.
        """
        try:
            files, skipped = storage.survey(depth=depth, without=self.out)
        except PermissionError as error:
            if scheme(storage.url):  # the message says what to do
                raise SourceError(redact(str(error))) from error
            raise SourceError(
                f"{storage.redacted}: may not be listed ({redact(str(error))}). Give this user the permission to read "
                "and search it (chmod u+rx), or run the command as a user who has it"
            ) from error
        for entry in skipped:
            if entry.hides_files or only(entry.path):
                self.left_out.add(entry.reason, entry.path)
            if entry.hides_files:
                self.skipped.append(storage.joined(entry.path))
        return [file for file in without_own_folders(storage, files, self.left_out) if only(file.path)]

    def _data_files(self, files: Iterable[ListedFile]) -> list[ListedFile]:
        """Return the data files, and count the others as left out."""
        data = []
        for file in files:
            if kind_of(file.path):
                data.append(file)
            else:
                self.left_out.add(file_kind(without_query(file.path)), file.path)
        return data

    def _refuse_output(self, storage: Storage, source: str) -> None:
        """Raise SourceError if a source is a folder that the command writes to, or lies in one."""
        for out in self.out:
            if is_within(storage, out):
                same = is_within(out, storage)
                raise SourceError(
                    f"{redact(source)}: {'is' if same else 'lies in'} {out.redacted}, to which this command writes. "
                    "Name another folder for the output; it may be a folder in the source, whose files are left out"
                )
