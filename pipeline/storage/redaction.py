"""Messages without secrets: of URLs, of storage options, and of the environment."""

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
_SHORTEST = 4  # masking shorter values would garble every message

_known: set[str] = set()


def remember(options: Mapping[str, Any] | None) -> None:
    """From now on ``redact`` masks the credentials among these storage options, whatever message they turn up in."""
    _known.update(_secrets(options or {}))


def redact(text: str) -> str:
    """``text`` without the user names, passwords and query strings (signatures) of the URLs in it.

    Credentials of the storage options that this process has seen, and of its environment, are masked as well.
    """

    def without_userinfo(match: re.Match[str]) -> str:
        # In abfs://container@account the part before @ is an address, not a secret.
        return match[0] if match[1].startswith(("abfs", "az")) and ":" not in match[2] else match[1]

    text = _QUERY.sub(r"\1", _USERINFO.sub(without_userinfo, text))
    in_environment = {value for name, value in os.environ.items() if _SECRET_VARIABLE.match(name)}
    for secret in sorted(_known | in_environment, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, MASK)
    return text


def names_a_secret(name: str) -> bool:
    """Whether what an option or a variable of this name holds should be shown to nobody."""
    return _SECRET_OPTION.search(name) is not None


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif isinstance(value, str) and names_a_secret(str(name)):
            yield value
