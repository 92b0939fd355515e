"""A remote file that is read in large blocks returns the right bytes with few requests."""

import io
import os
import random

import pytest

from pipeline.storage.remote_file import RemoteFile

DATA = os.urandom(10_000)


@pytest.fixture
def requests():
    return []


def open_file(requests, data=DATA):
    def fetch(start, end):
        requests.append(start)
        return data[start:end]

    return io.BufferedReader(RemoteFile(fetch, len(data), block_bytes=1024), 64)


def test_sequential_reading_requests_each_block_once(requests):
    with open_file(requests) as file:
        assert b"".join(iter(lambda: file.read(100), b"")) == DATA
    assert [start for start in requests if start < len(DATA)] == list(range(0, 10_000, 1024))


def test_alternating_reads_share_their_blocks(requests):
    with open_file(requests) as file:
        for step in range(8):
            for start in (0, 3000, 9000):
                file.seek(start + 100 * step)
                assert file.read(100) == DATA[start + 100 * step :][:100]
    assert len(requests) <= 6


def test_any_seek_and_read_returns_what_a_plain_file_returns(requests):
    chance, plain = random.Random(0), io.BytesIO(DATA)
    with open_file(requests) as file:
        for _ in range(500):
            offset, whence, size = chance.randrange(-300, 10_300), chance.choice((0, 1, 2)), chance.randrange(-1, 3000)
            if offset + (0, plain.tell(), len(DATA))[whence] < 0:
                continue
            assert file.seek(offset, whence) == plain.seek(offset, whence)
            assert file.read(size) == plain.read(size)


def test_an_empty_file_needs_no_request(requests):
    with open_file(requests, b"") as file:
        assert file.read() == b""
    assert requests == []
