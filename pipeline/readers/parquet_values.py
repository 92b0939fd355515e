"""Convert the values of Parquet columns to images, to Python values and to JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.readers.samples import ReadLimits


def image_of(scalar: pa.Scalar, limits: ReadLimits) -> tuple[bytes | int | None, str | None]:
    """Convert a value of the image column.

    Returns:
        The encoded image, or its size in bytes if it is above `max_sample_bytes`, or None if it is null; and the
        path in the image struct, or None.
    """
    if not scalar.is_valid:
        return None, None
    if not pa.types.is_struct(scalar.type):
        return _bytes(scalar, limits), None
    path = value_of(scalar["path"]) if scalar.type.get_field_index("path") >= 0 else None
    return _bytes(scalar["bytes"], limits), None if path is None else str(path)


def _bytes(scalar: pa.Scalar, limits: ReadLimits) -> bytes | int | None:
    if pa.types.is_dictionary(scalar.type):
        scalar = scalar.value
    if not scalar.is_valid:
        return None
    buffer = scalar.as_buffer()
    return buffer.size if buffer.size > limits.max_sample_bytes else buffer.to_pybytes()


def value_of(scalar: pa.Scalar) -> Any:
    """Return a value in Python, or its text if Python cannot represent it (nanoseconds, years after 9999), or None."""
    for convert in (scalar.as_py, scalar.__str__):
        try:
            return convert()
        except Exception:  # strings that are not UTF-8, unknown time zones, and anything else that a file can hold
            continue
    return None


def json_of(value: Any) -> Any:
    """Return a value in types that JSON has. NaN and infinities become null; dates and decimals become text."""
    if isinstance(value, Mapping):
        return {str(name): json_of(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_of(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
