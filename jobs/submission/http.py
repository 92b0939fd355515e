"""How `diffseg submit` speaks HTTP with the job server: headers, cookies and trusted certificates."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.storage.redaction import register_secrets

HEADERS_VARIABLE = "RAY_JOB_HEADERS"
"""Environment variable with the headers, as `ray job` reads it."""


class InvalidHttpOption(ValueError):
    """A value of --headers, --cookies or --verify that cannot be used; the message says what was expected."""


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """The options of Ray's `JobSubmissionClient` for servers behind a proxy.

    Attributes:
        headers: Headers of each request.
        cookies: Cookies of each request.
        verify: Whether the certificate of the server is verified, or the path of trusted certificates.
        advice: The flags with which `ray job` gets the same headers and certificates, for a shell, without secrets.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    cookies: Mapping[str, str] = field(default_factory=dict)
    verify: bool | str = True
    advice: str = ""


def http_options(headers: str | None, cookies: str | None, verify: str) -> HttpOptions:
    """Return the options for the values of the flags; their secrets appear in no later message.

    Args:
        headers: A JSON object, or the path of a file that holds one; None for that of `HEADERS_VARIABLE`.
        cookies: The same for the cookies; None for none.
        verify: "true", "false", or the path of a file or folder of trusted certificates.

    Raises:
        InvalidHttpOption: A value has another form.
    """
    advice = []
    if headers is not None:
        advice.append(f"--headers {_shell_word(headers)}")
    if verify != "true":
        advice.append(f"--verify {shlex.quote(verify)}")
    return HttpOptions(
        headers=_mapping("headers", os.environ.get(HEADERS_VARIABLE) if headers is None else headers),
        cookies=_mapping("cookies", cookies),
        verify=_verify(verify),
        advice=" ".join(["", *advice]),
    )


def _mapping(name: str, text: str | None) -> Mapping[str, str]:
    """Return the object that a JSON text or a file holds, and register its values as secrets."""
    if text is None:
        return {}
    try:
        mapping = json.loads(text if _is_json(text) else Path(text).read_text())
    except OSError as error:
        raise InvalidHttpOption(
            f'--{name}: expected a JSON object such as {{"NAME": "VALUE"}}, or a file that holds one ({error.strerror})'
        ) from None
    except ValueError:  # the error itself would show a part of the text, which may be a secret
        raise InvalidHttpOption(f'--{name}: expected a JSON object such as {{"NAME": "VALUE"}}') from None
    if not isinstance(mapping, dict) or not all(isinstance(value, str) for value in mapping.values()):
        raise InvalidHttpOption(f'--{name}: expected a JSON object of texts, such as {{"NAME": "VALUE"}}')
    for value in mapping.values():  # also without "Bearer " in front
        register_secrets({"secret": value, "last word of the secret": value.rpartition(" ")[2]})
    return mapping


def _verify(text: str) -> bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if not Path(text).exists():
        raise InvalidHttpOption(f"--verify {text}: expected true, false, or a file or folder of certificates")
    return text


def _is_json(text: str) -> bool:
    return text.lstrip().startswith(("{", "["))


def _shell_word(text: str) -> str:
    """Return a word for a shell that stands for the content of a file, or for a JSON text that must not be shown."""
    return f'"${HEADERS_VARIABLE}"' if _is_json(text) else f'"$(cat {shlex.quote(text)})"'
