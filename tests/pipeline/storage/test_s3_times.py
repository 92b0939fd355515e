"""Times in listings of S3 are parsed as botocore parses them."""

from __future__ import annotations

import pytest

from pipeline.storage import Storage
from pipeline.storage.s3_times import fast_parser

parsers = pytest.importorskip("botocore.parsers")
utils = pytest.importorskip("botocore.utils")

TIMES = (
    "2026-11-26T13:23:35.123Z",
    "2026-11-26T13:23:35Z",
    "Thu, 26 Nov 2026 13:23:35 GMT",
    "1764163415",
    1764163415.5,
)


@pytest.mark.parametrize("text", [*TIMES, "2026-11-26T13:23:35.1234567Z"])
def test_all_times_are_parsed_as_before(text: str | float) -> None:
    before = utils.parse_timestamp(text)
    parsed = fast_parser(utils.parse_timestamp)(text)
    assert (parsed, parsed.utcoffset()) == (before, before.utcoffset())


def test_the_times_of_a_listing_need_no_general_parser() -> None:
    def general(value: object) -> None:
        raise AssertionError(value)

    for text in TIMES[:2]:
        fast_parser(general)(text)  # type: ignore[arg-type]


def test_the_parser_is_used_for_s3() -> None:
    pytest.importorskip("s3fs")
    options = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": "http://127.0.0.1:1"}}
    with pytest.raises(OSError, match="endpoint"):
        Storage(url="s3://bucket", options=options, retry_timeout=0.1).names()
    assert parsers.DEFAULT_TIMESTAMP_PARSER.__module__ == "pipeline.storage.s3_times"
