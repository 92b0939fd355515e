"""Selects rows of a run by an expression over their columns, by a list of keys, and by a split of the images.

`export`, `train` and `report` share this class, so that the same flags select the same images everywhere.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from types import CodeType
from typing import Any

from pipeline.digest import short_digest
from pipeline.readers.file_names import stem_of
from pipeline.storage import SourceError, Storage, redact
from pipeline.storage.urls import split_url

COLUMNS = (
    *("key", "shard", "index", "status", "error", "height", "width"),
    *("n_segments", "confidence", "meta"),
)
"""Columns of a row that an expression may use: all but the mask and the segments."""
DERIVED = {"stem": ("key",), "split": ("key",), "names": ("segments",)}
"""Further names that an expression may use, and the columns that each is computed from."""

_NODES = (
    *(ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare),
    *(ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div),
    *(ast.Name, ast.Load, ast.Constant, ast.Tuple, ast.List),
)
"""Parts of Python's grammar that an expression may consist of. There are no calls and no attributes among them."""


def split_of(key: str) -> float:
    """Return a number in [0, 1) that depends on the stem of a key alone, in every run and on every machine."""
    digest = blake2b(stem_of(key).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # 53 bits, so that rounding cannot give 1


@dataclass(frozen=True, kw_only=True)
class KeptRows:
    """The rows that `diffseg filter` kept; `pipeline.output.keep` reads them.

    Attributes:
        digest: Digest of the decisions.
        flags: For each label shard a byte for each row, which is 1 if the row is kept.
    """

    digest: str
    flags: Mapping[str, bytes] = field(repr=False, compare=False)

    def __contains__(self, row: tuple[str, int]) -> bool:
        shard, index = row
        flags = self.flags.get(shard, b"")
        return index < len(flags) and flags[index] == 1


@dataclass(frozen=True, kw_only=True)
class RowSelection:
    """The rows of a run that a command uses.

    Attributes:
        where: A Python expression over `COLUMNS` and the names in `DERIVED`, without calls; "" accepts every row.
        keys: Keys or stems of the rows; None accepts every row.
        split: Lowest `split_of` that is accepted, and the bound below which it must be.
        kept: Rows that `diffseg filter` kept; None accepts every row.

    Raises:
        ValueError: `where` is not such an expression. The message names what it may contain.
    """

    where: str = ""
    keys: frozenset[str] | None = field(default=None, repr=False)  # there may be millions
    split: tuple[float, float] = (0.0, 1.0)
    kept: KeptRows | None = None

    def __post_init__(self) -> None:
        if self.where:
            _compiled(self.where)

    @property
    def columns(self) -> frozenset[str]:
        """Columns of a row that `accepts` reads."""
        names = {column for name in _names(self.where) for column in DERIVED.get(name, (name,))}
        if self.keys is not None or self.split != (0.0, 1.0):
            names.add("key")
        return frozenset(names if self.kept is None else names | {"shard", "index"})

    def accepts(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row with at least `columns` is used.

        A missing value is equal to None only, and neither less nor greater than anything.

        Raises:
            ValueError: The expression cannot be evaluated for this row, for example because it compares a text with a
                number.
        """
        if self.kept is not None and (row["shard"], row["index"]) not in self.kept:
            return False
        if self.keys is not None and row["key"] not in self.keys and stem_of(row["key"]) not in self.keys:
            return False
        if self.split != (0.0, 1.0) and not self.split[0] <= split_of(row["key"]) < self.split[1]:
            return False
        if not self.where:
            return True
        values = {name: _value(name, row) for name in _names(self.where)}
        try:
            return bool(eval(_compiled(self.where), {"__builtins__": {}}, values))
        except (TypeError, ZeroDivisionError) as error:
            raise ValueError(f"--where {self.where!r} cannot be evaluated ({error}) for a row with {values}") from None

    def plain(self) -> dict[str, Any]:
        """Return the selection as JSON values for the record of a command, with a digest in place of the keys."""
        digest = None if self.keys is None else short_digest("\0".join(sorted(self.keys)))
        plain = {"where": self.where, "keys": digest, "split": list(self.split)}
        return plain if self.kept is None else plain | {"filter": self.kept.digest}


def read_keys(store: Storage, url: str) -> frozenset[str]:
    """Read a file with a key or a stem in each line, in UTF-8.

    Args:
        store: The options for the store of the file.
        url: Path or URL of the file.

    Raises:
        SourceError: There is no such file, it is not UTF-8, or it holds no key.
    """
    folder, name = split_url(url)
    try:
        lines = store.at(folder).read_bytes(name).decode("utf-8-sig").split("\n")
    except (FileNotFoundError, IsADirectoryError):
        raise SourceError(f"{redact(url)}: there is no such file; expected a key in each line") from None
    except UnicodeDecodeError as error:
        raise SourceError(f"{redact(url)}: is not UTF-8 ({error}); expected a key in each line") from None
    keys = frozenset(line.removesuffix("\r") for line in lines) - {""}
    if not keys:
        raise SourceError(f"{redact(url)}: is empty; expected a key in each line")
    return keys


class _Missing:
    """A missing value: false, equal to None only, without an order; arithmetic with it gives a missing value."""

    def __eq__(self, other: object) -> bool:
        return other is None or other is self

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "None"

    def _false(self, other: object) -> bool:
        return False

    def _missing(self, other: object = None) -> _Missing:
        return self

    __lt__ = __le__ = __gt__ = __ge__ = _false
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _missing


def _value(name: str, row: Mapping[str, Any]) -> Any:
    if name == "stem":
        return stem_of(row["key"])
    if name == "split":
        return split_of(row["key"])
    if name == "names":
        return [segment["name"] for segment in row["segments"] or () if segment["name"] is not None]
    return _Missing() if row[name] is None else row[name]


@lru_cache(maxsize=16)
def _compiled(where: str) -> CodeType:
    hint = f"expected comparisons of {', '.join((*COLUMNS, *DERIVED))}, joined by and, or, not"
    try:
        tree = ast.parse(where.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"--where {where!r}: is not a Python expression ({error}); {hint}") from None
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            raise ValueError(f"--where {where!r}: {type(node).__name__} is not allowed; {hint}")
        if isinstance(node, ast.Name) and node.id not in (*COLUMNS, *DERIVED):
            raise ValueError(f"--where {where!r}: there is no column {node.id}; {hint}")
    return compile(tree, "--where", "eval")


@lru_cache(maxsize=16)
def _names(where: str) -> frozenset[str]:
    return frozenset(_compiled(where).co_names) if where else frozenset()
