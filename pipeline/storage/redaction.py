"""Removal of secrets from messages: those in URLs, in storage options and in the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

MASK = "***"

_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^/\s@]*(?:@[^/\s@]*)*)@")
_QUERY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s?'\"<>]*)\?[^\s?'\"<>]*=[^\s'\"<>]*")
_SECRET_OPTION = re.compile(r"key|secret|token|pass|cred|sas|sign|auth|connection", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"^(AWS|AZURE|GOOGLE|GCS|HF|RAY)_.*(KEY|SECRET|TOKEN|PASS|CRED|SAS|CONNECTION)")
_MIN_SECRET_LENGTH = 4
"""Shorter values are not masked, because they occur by chance in every message."""

_registered: set[str] = set()


def register_secrets(options: Mapping[str, Any] | None) -> None:
    """Make `redact` mask the credentials among these storage options in every later message of this process."""
    _registered.update(_secrets(options or {}))


def redact(text: str) -> str:
    """Return `text` without secrets.

    User names, passwords and query strings (signatures) are removed from its URLs. Credentials from registered storage
    options and from the environment are replaced by `MASK`.
    """

    def without_userinfo(match: re.Match[str]) -> str:
        # In abfs://container@account the part before @ is an address and no secret.
        return match[0] if match[1].startswith(("abfs", "az")) and ":" not in match[2] else match[1]

    text = _QUERY.sub(r"\1", _USERINFO.sub(without_userinfo, text))
    in_environment = {value for name, value in os.environ.items() if _SECRET_VARIABLE.match(name)}
    for secret in sorted(_registered | in_environment, key=len, reverse=True):
        if len(secret) >= _MIN_SECRET_LENGTH:
            text = text.replace(secret, MASK)
    return text


def is_secret_name(name: str) -> bool:
    """Return True if an option or environment variable of this name is likely to hold a secret."""
    return _SECRET_OPTION.search(name) is not None


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif isinstance(value, str) and is_secret_name(str(name)):
            yield value
