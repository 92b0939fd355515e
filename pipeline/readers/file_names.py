"""Safe file names for paths and keys."""

from __future__ import annotations

import re

from pipeline.digest import short_digest
from pipeline.readers.samples import IMAGE_EXTENSIONS

MAX_NAME_LENGTH = 150

_SAFE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def safe_file_name(path: str, *, fallback: str, digest_digits: int) -> str:
    """Return a recognisable file name for a relative path. Different paths get different names.

    The parts of the path are joined by `--`. If the result is too long, ambiguous or contains other characters than
    the safe ones, those are replaced by `_` and a digest of the path is appended.

    Args:
        path: The path without its extension.
        fallback: The readable part for a path without any safe character.
        digest_digits: The number of hexadecimal digits of the digest, at most 16.

    Returns:
        1 to `MAX_NAME_LENGTH` letters, digits, `.`, `_` and `-`.
    """
    parts = path.split("/")
    name = "--".join(parts)
    is_safe = all(_SAFE_PART.fullmatch(part) and "--" not in part and not part.endswith("-") for part in parts)
    if is_safe and len(name) <= MAX_NAME_LENGTH:
        return name
    digest = short_digest(path.encode("utf-8", "surrogateescape"))[:digest_digits]
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-")[: MAX_NAME_LENGTH - digest_digits - 1]
    return f"{readable or fallback}-{digest}"


def without_image_extension(key: str) -> str:
    """Return a key without the extension of an image file, if it has one."""
    stem, _, extension = key.rpartition(".")
    return stem if stem and extension.lower() in IMAGE_EXTENSIONS else key


def stem_of(key: str) -> str:
    """Return the stem of a key, which is the same for an image in a folder and in tars that were made of that folder.

    It is the key without the extension of an image file, with `_` for each dot in its last part. WebDataset ends a key
    at the first dot, so `diffseg shard` names the samples of a tar by the same rule.
    """
    folder, slash, name = without_image_extension(key).rpartition("/")
    return folder + slash + name.replace(".", "_")
