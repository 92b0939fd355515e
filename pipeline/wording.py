"""Words for numbers in messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in the right form: "1 shard", "0 shards", "1,200 shards"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
