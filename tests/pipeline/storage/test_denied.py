"""What the message about a denied request adds: a wrong clock, and the permissions that S3 asks for."""

from __future__ import annotations

import time
from email.utils import formatdate

import aiohttp
import pytest
from botocore.exceptions import ClientError
from multidict import CIMultiDict, CIMultiDictProxy
from s3fs.errors import translate_boto_error
from yarl import URL

from pipeline.storage.denied import advice


def from_s3(store_ahead: float) -> BaseException:
    answer = {"HTTPStatusCode": 403, "HTTPHeaders": {"date": formatdate(time.time() + store_ahead, usegmt=True)}}
    error = ClientError({"Error": {"Code": "403", "Message": "Forbidden"}, "ResponseMetadata": answer}, "HeadObject")
    denied: BaseException = translate_boto_error(error)
    return denied


def from_http(store_ahead: float) -> BaseException:
    headers = CIMultiDictProxy(CIMultiDict({"Date": formatdate(time.time() + store_ahead, usegmt=True)}))
    request = aiohttp.RequestInfo(URL("https://h"), "GET", headers, URL("https://h"))
    return aiohttp.ClientResponseError(request, (), status=403, headers=headers)


@pytest.mark.parametrize("denied", [from_s3, from_http])
def test_a_clock_that_differs_from_that_of_the_store_is_named(denied) -> None:
    assert "clock of this machine is 300 minutes ahead of that of the store" in advice(denied(-18000), "s3://b/k")
    assert "clock of this machine is 2880 minutes behind" in advice(denied(2 * 86400), "https://h/k")


def test_s3_names_the_permissions_and_other_stores_add_nothing() -> None:
    assert isinstance(from_s3(0), PermissionError)
    assert "s3:ListBucket" in advice(from_s3(60), "s3://b/k")
    assert advice(from_http(-60), "https://h/k") == ""
    assert advice(PermissionError("no answer of a store"), "gs://b/k") == ""


def test_an_answer_with_an_unreadable_date_is_no_clock() -> None:
    error = from_http(0)
    error.headers = {"Date": "yesterday"}  # type: ignore[attr-defined]
    assert advice(error, "https://h/k") == ""
