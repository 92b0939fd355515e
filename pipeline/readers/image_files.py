"""Read plain image files as samples. The key of a sample is the path of its file."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.prefetch import prefetch_map
from pipeline.readers.kinds import without_query
from pipeline.readers.samples import DEFAULT_LIMITS, ReadLimits, Sample, utf8
from pipeline.storage import Storage
from pipeline.storage.local import SpecialFileError
from pipeline.timing import StepTimer

READ_THREADS = 8
"""Files that are read at the same time. For a small remote file nearly all of the time is spent waiting."""

_BLOCK_BYTES = 2**20


def read_images(
    storage: Storage, files: tuple[str, ...], step: StepTimer, limits: ReadLimits = DEFAULT_LIMITS
) -> Iterator[Sample]:
    """Stream image files in order. A missing or forbidden file gets the status `unreadable`.

    Args:
        storage: The root folder of the files.
        files: Their paths relative to `storage`.
        step: Records the seconds of reading as `read`, summed over the threads.
        limits: The size limits of a sample.
    """

    def read(numbered: tuple[int, str]) -> Sample:
        index, path = numbered
        with step("read"):
            image, status, error = _read(storage, path, limits)
        # The query of a signed URL is secret, and changes from one signature to the next.
        return Sample(index=index, key=utf8(without_query(path)), image=image, status=status, error=error)

    return prefetch_map(read, enumerate(files), threads=READ_THREADS, ahead=READ_THREADS)


def _read(storage: Storage, path: str, limits: ReadLimits) -> tuple[bytes | None, str, str]:
    """Return the content of a file, the status and the message; the content is None unless the status is `ok`."""
    blocks: list[bytes] = []
    size = 0
    try:
        with storage.open(path) as file:
            while block := file.read(_BLOCK_BYTES):
                size += len(block)
                if size > limits.max_sample_bytes:
                    message = f"the file has more than the {limits.max_sample_bytes} bytes that are read"
                    return None, "too_large", message
                blocks.append(block)
    except (FileNotFoundError, PermissionError, IsADirectoryError, SpecialFileError) as error:
        return None, "unreadable", f"the file cannot be opened: {type(error).__name__}"
    return b"".join(blocks), "ok", ""
