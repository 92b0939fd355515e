"""Advice for requests that a store denies without saying what is wrong."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from pipeline.storage.retries import causes
from pipeline.storage.urls import scheme

CLOCK_SECONDS = 300.0
"""Stores refuse signatures whose time differs from theirs by more than 5 to 15 minutes."""


def advice(error: BaseException, url: str) -> str:
    """Return a sentence, with a space before it, about a request that was denied; "" if there is nothing to add.

    Args:
        error: The error of the store's library. The answer behind it has the time of the store.
        url: The file or folder of the request.
    """
    ahead = _clock_ahead(error)
    if abs(ahead) > CLOCK_SECONDS:
        direction = "ahead of" if ahead > 0 else "behind"
        return f". The clock of this machine is {abs(ahead) / 60:.0f} minutes {direction} that of the store; set it"
    if scheme(url) in ("s3", "s3a"):
        return (
            ". SRC needs s3:ListBucket and s3:GetObject, and OUT s3:PutObject and s3:DeleteObject too. "
            "Without s3:ListBucket, S3 also denies access to a file that does not exist"
        )
    return ""


def _clock_ahead(error: BaseException) -> float:
    """Return the seconds by which this machine's clock is ahead of the store's, 0 if its answer has no time."""
    for cause in causes(error):
        if date := _headers(cause).get("date"):
            try:
                return time.time() - parsedate_to_datetime(str(date)).timestamp()
            except ValueError:
                return 0.0
    return 0.0


def _headers(error: BaseException) -> dict[str, Any]:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    else:  # azure-core; aiohttp
        headers = getattr(response, "headers", None) or getattr(error, "headers", None)
    return {str(name).lower(): value for name, value in headers.items()} if isinstance(headers, Mapping) else {}
