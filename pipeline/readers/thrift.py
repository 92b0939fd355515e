"""Parse structs of Thrift's compact protocol, the format of Parquet's headers, from bytes that cannot be trusted."""

from __future__ import annotations

from typing import Any

_MAX_DEPTH = 16
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


class Malformed(ValueError):
    """The bytes are not a struct, or end within it."""


def read_struct(data: bytes, start: int) -> tuple[dict[int, Any], int]:
    """Parse the struct at the offset `start`.

    Returns:
        The values of the fields by their ids, and the length of the struct in bytes. Integers and booleans have their
        value, structs are mappings of the same form, and all other values are None.

    Raises:
        Malformed: The struct is malformed or extends beyond the end of `data`.
    """
    parser = _Parser(data, start)
    try:
        fields = parser.struct(_MAX_DEPTH)
    except IndexError as error:
        raise Malformed("the bytes end within it") from error
    return fields, parser.offset - start


class _Parser:
    """Parses values at an offset, which it moves. Raises IndexError where the bytes end too early."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._data = data
        self.offset = offset

    def struct(self, depth: int) -> dict[int, Any]:
        """Parse a struct in which values are nested at most `depth` levels deep."""
        if depth == 0:
            raise Malformed("structs are nested too deeply")
        fields: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer()
            kind = head & 0x0F
            # The type of a boolean field includes its value.
            fields[field] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth - 1)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth == 0:
            raise Malformed("values are nested too deeply")
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._byte()
        if kind in (_I16, _I32, _I64):
            return self._integer()
        if kind == _STRUCT:
            return self.struct(depth)
        if kind == _DOUBLE:
            self._skip(8)
        elif kind == _BINARY:
            self._skip(self._varint())
        elif kind in (_LIST, _SET):
            head = self._byte()
            for _ in range(head >> 4 if head >> 4 < 15 else self._varint()):
                self._value(head & 0x0F, depth - 1)
        elif kind == _MAP:
            count = self._varint()
            kinds = self._byte() if count else 0
            for _ in range(count):
                self._value(kinds >> 4, depth - 1)
                self._value(kinds & 0x0F, depth - 1)
        else:
            raise Malformed(f"an unknown type {kind}")
        return None

    def _byte(self) -> int:
        value = self._data[self.offset]
        self.offset += 1
        return value

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise Malformed("an integer of more than 64 bits")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, count: int) -> None:
        self.offset += count
        if self.offset > len(self._data):
            raise IndexError
