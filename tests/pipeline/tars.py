"""Tars made in memory, and what the reader makes of them."""

import io
import tarfile

from pipeline.readers import samples
from pipeline.readers.tar import read_tar


def tar_of(*members, end=True, **options) -> bytes:
    """A tar of (name, data) pairs and of ready TarInfo, without padding after the end marker."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        length = tar.offset
    return file.getvalue()[: length + (1024 if end else 0)]


def link(name, kind=tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "target"
    return info


def read(data, **settings):
    found = list(read_tar(io.BytesIO(data), "the.tar", **settings))
    assert [sample.index for sample in found] == list(range(len(found)))
    for sample in found:
        assert sample.status in samples.STATUSES
        assert (sample.image is not None) == (sample.status == "ok") == (sample.error == "")
        sample.key.encode()
    return found


def outcome(data, **settings):
    return [(sample.key, sample.status) for sample in read(data, **settings)]
