"""Tars built in memory, and their samples as the reader returns them."""

import io
import tarfile

from pipeline.readers.samples import STATUSES
from pipeline.readers.tar import read_tar


def tar_of(*members, end=True, **options) -> bytes:
    """Return a tar of (name, data) pairs and TarInfo objects, without padding after the end marker."""
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
    """Return a link, or another member without data."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "target"
    return info


def read(data, **settings):
    """Return the samples of a tar, after checking what holds for every sample."""
    samples = list(read_tar(io.BytesIO(data), "the.tar", **settings))
    assert [sample.index for sample in samples] == list(range(len(samples)))
    for sample in samples:
        assert sample.status in STATUSES
        assert (sample.image is not None) == (sample.status == "ok") == (sample.error == "")
        sample.key.encode()
    return samples


def outcome(data, **settings):
    """Return the key and the status of each sample of a tar."""
    return [(sample.key, sample.status) for sample in read(data, **settings)]
