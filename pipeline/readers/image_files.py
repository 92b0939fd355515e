"""Plain image files as samples: one a file, the path is the key."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.prefetch import prefetch_map
from pipeline.readers import samples
from pipeline.readers.samples import Sample, utf8
from pipeline.storage import Storage
from pipeline.timing import StepTimer

FILES_AT_ONCE = 8
"""In a store the time for a small file is nearly all waiting for its answer."""

_BLOCK_BYTES = 2**20


def read_images(storage: Storage, files: tuple[str, ...], step: StepTimer) -> Iterator[Sample]:
    """Stream ``files``, which are paths below ``storage``. A file that is gone or forbidden costs only its own row."""

    def read(place: tuple[int, str]) -> Sample:
        index, path = place
        with step("read"):
            image, status, error = _read(storage, path)
        return Sample(index=index, key=utf8(path), image=image, status=status, error=error)

    return prefetch_map(read, enumerate(files), threads=FILES_AT_ONCE, ahead=FILES_AT_ONCE)


def _read(storage: Storage, path: str) -> tuple[bytes | None, str, str]:
    blocks: list[bytes] = []
    size = 0
    try:
        with storage.open(path) as file:
            while block := file.read(_BLOCK_BYTES):
                size += len(block)
                if size > samples.MAX_SAMPLE_BYTES:
                    return (
                        None,
                        "too_large",
                        f"the file has more than the {samples.MAX_SAMPLE_BYTES} bytes that are read",
                    )
                blocks.append(block)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        return None, "unreadable", f"the file cannot be opened: {type(error).__name__}"
    return b"".join(blocks), "ok", ""
