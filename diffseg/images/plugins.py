"""Image formats that an optional package decodes: HEIC and JPEG XL."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import IO, Any

from PIL import ImageFile

_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))
_JXL_CODESTREAM = b"\xff\x0a"
_JXL_CONTAINER = b"\x00\x00\x00\x0cJXL \r\n\x87\n"
_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Ratios of width to height that the header of JPEG XL can name (ISO/IEC 18181-1, SizeHeader)."""


class MissingPluginError(Exception):
    """The package that decodes a format is not installed."""


def is_heic(prefix: bytes) -> bool:
    """Return True if a file with these first bytes may be HEIC; AVIF can have the same brand."""
    return prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIC_BRANDS


def is_jxl(prefix: bytes) -> bool:
    """Return True if a file with these first bytes is JPEG XL."""
    return prefix.startswith((_JXL_CODESTREAM, _JXL_CONTAINER))


def open_heic(file: IO[bytes]) -> ImageFile.ImageFile:
    """Read the header of HEIC. Raises MissingPluginError if the package is missing."""
    return _factory("pillow_heif", "HeifImageFile", "heic")(file)


def open_jxl(file: IO[bytes]) -> ImageFile.ImageFile:
    """Open JPEG XL. Raises MissingPluginError if the package is missing.

    The package decodes the pixels at once, so the caller checks `jxl_size` before.
    """
    return _factory("pillow_jxl.JpegXLImagePlugin", "JXLImageFile", "jxl")(file)


@cache
def _factory(module: str, name: str, extra: str) -> Callable[[IO[bytes]], Any]:
    from importlib import import_module

    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingPluginError(
            f"the package {package} is not installed on this machine; pip install 'diffseg-pipeline[{extra}]'"
        ) from error


def jxl_size(data: bytes) -> tuple[int, int]:
    """Return the width and the height that a JPEG XL declares, from its first bytes.

    Raises:
        SyntaxError: The header is not within these bytes, or is broken.
    """
    start = 0
    if data.startswith(_JXL_CONTAINER):
        start = len(_JXL_CONTAINER)
        while data[start + 4 : start + 8] not in (b"jxlc", b"jxlp"):
            size = int.from_bytes(data[start : start + 4], "big")
            if size < 8 or start + size + 8 > len(data):
                raise SyntaxError("no size is declared at its beginning")
            start += size
        start += 12 if data[start + 4 : start + 8] == b"jxlp" else 8
    if data[start : start + 2] != _JXL_CODESTREAM or len(data) < start + 16:
        raise SyntaxError("no size is declared at its beginning")
    bits = _Bits(int.from_bytes(data[start + 2 : start + 16], "little"))
    is_small = bits.take(1)
    height = bits.length(is_small)
    ratio = bits.take(3)
    if not ratio:
        return bits.length(is_small), height
    numerator, denominator = _JXL_RATIOS[ratio - 1]
    return height * numerator // denominator, height


class _Bits:
    """Bits of a header, the lowest first."""

    def __init__(self, value: int) -> None:
        self._value = value

    def take(self, count: int) -> int:
        taken = self._value & ((1 << count) - 1)
        self._value >>= count
        return taken

    def length(self, is_small: int) -> int:
        """Return a height or a width."""
        return (self.take(5) + 1) * 8 if is_small else 1 + self.take((9, 13, 18, 30)[self.take(2)])
