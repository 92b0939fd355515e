"""Reads JSON that another person or program may have written, within bounds and against a schema.

Files of OUT, MODEL and DEST may come from anywhere. `json` alone accepts numbers and nestings that later code cannot
handle, and a missing key would only be noticed in the middle of a command. Each reader therefore has a schema, a
`msgspec.Struct`, and every problem is an `InvalidFile` that names the field and what was found there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import msgspec

from pipeline.storage import Storage
from pipeline.storage.local import SpecialFileError

MAX_DEPTH = 32
"""Levels of arrays and objects in a document. Files of this program have at most 5."""
MAX_INTEGER = 2**63 - 1
SHOWN_CHARACTERS = 60
"""Length of the value that a message repeats."""

_PLACE = re.compile(r"(?P<problem>.*) - at (?:`key` in )?`\$?(?P<path>.*)`", re.DOTALL)
_PATTERN = re.compile(r"`?str`? matching regex .*", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_STEP = re.compile(r"\.?(?P<name>[^.\[\]]+)|\[(?P<index>\d+|\.\.\.)\]")

Schema = TypeVar("Schema")


class InvalidFile(ValueError):
    """A file is not what it should be. The message names the field and what was found there."""


def read_bounded(folder: Storage, path: str, max_bytes: int) -> bytes:
    """Return the content of a file of at most `max_bytes`.

    Raises:
        FileNotFoundError: There is no such file.
        InvalidFile: The file is larger, or it is a folder, a FIFO or a device.
    """
    try:
        with folder.open(path) as file:
            data = file.read(max_bytes + 1)
    except IsADirectoryError:
        raise InvalidFile("is a folder, not a file") from None
    except SpecialFileError:
        raise InvalidFile("is a FIFO or a device, not a file") from None
    if len(data) > max_bytes:
        raise InvalidFile(f"is larger than {max_bytes} bytes")
    return data


def parse_json(data: bytes | str, *, allow_nan: bool = False) -> Any:
    """Parse a JSON document.

    Args:
        data: The document.
        allow_nan: Accept NaN and infinities, which Python writes and the standard does not have.

    Raises:
        InvalidFile: It is not JSON, is nested too deeply, or holds a number beyond the bounds.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
        document = json.loads(text, parse_constant=float if allow_nan else _refuse_constant)
    except RecursionError:
        raise InvalidFile(f"is nested more than {MAX_DEPTH} levels deep") from None
    except UnicodeDecodeError as error:
        raise InvalidFile(f"is not UTF-8 (byte {error.start})") from None
    except InvalidFile:
        raise
    except ValueError as error:  # also an integer of thousands of digits
        raise InvalidFile(f"is not JSON ({error})") from None
    _check_bounds(document, allow_nan=allow_nan)
    return document


def check_schema(document: Any, schema: type[Schema], prefix: str = "") -> Schema:
    """Return the values of a document that has the types and bounds of a schema.

    Args:
        document: A parsed JSON document.
        schema: A `msgspec.Struct`.
        prefix: Path of the document in its file, for messages.

    Raises:
        InvalidFile: The document does not fit the schema.
    """
    try:
        return msgspec.convert(document, schema)
    except msgspec.ValidationError as error:
        raise InvalidFile(_explain(str(error), document, prefix)) from None
    except UnicodeEncodeError:  # msgspec cannot compare such a key with the names of the fields
        raise InvalidFile(f"{prefix or 'the document'}: a key is not valid Unicode") from None


def parse_checked(data: bytes | str, schema: type[Schema]) -> Schema:
    """Parse a JSON document and check it against a schema. Raises InvalidFile."""
    return check_schema(parse_json(data), schema)


def struct_fields(struct: msgspec.Struct) -> dict[str, Any]:
    """Return the values of a struct by the names of its attributes; nested structs become dictionaries."""
    return {name: msgspec.to_builtins(getattr(struct, name)) for name in struct.__struct_fields__}


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidFile(f"holds the number {name}, which JSON does not have")


def _check_bounds(document: Any, *, allow_nan: bool) -> None:
    level, values = 0, [document]
    while values:
        level += 1
        if level > MAX_DEPTH:
            raise InvalidFile(f"is nested more than {MAX_DEPTH} levels deep")
        for value in values:
            is_finite = allow_nan or not isinstance(value, float) or math.isfinite(value)
            if not is_finite or (isinstance(value, int) and abs(value) > MAX_INTEGER):
                raise InvalidFile(f"holds a number that is too large ({_shown(value)})")
        values = [child for value in values for child in _children(value)]


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _explain(message: str, document: Any, prefix: str) -> str:
    """Turn msgspec's message into "field: what was expected; found VALUE"."""
    match = _PLACE.fullmatch(message)
    problem, path = (match["problem"], match["path"]) if match else (message, "")
    problem = _PATTERN.sub("a text of another form", problem)
    place = ".".join(part for part in (prefix, path.lstrip(".")) if part) or "the document"
    if unknown := _UNKNOWN.fullmatch(problem):
        return f"{place}: unknown field {_shown(unknown['name'])}"
    if problem.startswith("Invalid enum value"):
        problem = "Expected another value"
    found = f"; found {_shown(_value_at(document, path))}" if problem.startswith("Expected") else ""
    return f"{place}: {problem[:1].lower()}{problem[1:].replace('`', '')}{found}"


def _value_at(document: Any, path: str) -> Any:
    """Return the value at a path of msgspec, or the object around it where msgspec does not name the key."""
    for step in _STEP.finditer(path):
        key = step["name"] if step["index"] is None else step["index"]
        if isinstance(document, Mapping) and key in document:
            document = document[key]
        elif isinstance(document, list) and key.isdigit() and int(key) < len(document):
            document = document[int(key)]
        else:
            break
    return document


def _shown(value: Any) -> str:
    # The size of a document is bounded, but a message is read by people.
    text = json.dumps(value) if not isinstance(value, int) or abs(value) <= MAX_INTEGER else "a longer integer"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
