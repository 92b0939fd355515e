"""Parsing of paths and URLs, and the URLs that are refused."""

import pytest

from pipeline.storage import SourceError, Storage
from pipeline.storage.urls import join_url, local_path, scheme, split_url


@pytest.mark.parametrize(
    "url",
    [
        "pipe:curl -s https://host/x.tar",
        "PIPE:cat x",
        "pipe://cat",
        "reference://x",
        "simplecache::s3://bucket/x",
        "zip://a.jpg::file.zip",
        "dask://x",
    ],
)
def test_urls_that_run_or_wrap_something_are_refused(url):
    with pytest.raises(SourceError, match=r"refused|not supported"):
        Storage(url=url)


def test_an_empty_url_is_refused():
    with pytest.raises(SourceError, match="empty"):
        Storage(url="")


def test_schemes():
    assert [scheme(url) for url in ("S3://b/x", "file:///x", "local://x", "/x", "x:y")] == ["s3", "", "", "", ""]
    assert local_path("file:///a/b") == local_path("/a/b") == "/a/b"


def test_split_and_join():
    assert split_url("https://host/d/x.tar?sig=a/b&e=1") == ("https://host/d", "x.tar?sig=a/b&e=1")
    assert split_url("s3://bucket/what?.tar") == ("s3://bucket", "what?.tar")
    assert split_url("x.tar") == (".", "x.tar")
    assert split_url("/x.tar") == ("/", "x.tar")
    assert [join_url(root, "x") for root in ("/", "/a", "memory://")] == ["/x", "/a/x", "memory://x"]
    assert join_url("/a", "") == "/a"
