"""The ways in which an object store answers badly, and how likely each is."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from urllib.parse import unquote_plus
from xml.etree import ElementTree

_ANY = ("slow_down", "error", "reset", "lost_answer")
BODY = ("reset_body", "trickle", "stall")
_OF_KIND = {"GET": (*_ANY, *BODY), "LIST": (*_ANY, *BODY, "stale_listing", "slow_listing"), "PUT": (*_ANY, "cut")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    """How likely each fault is (0 to 1) for a request that can have it, and how long those last that take time.

    Attributes:
        slow_down: 503 SlowDown, as a store that throttles; error: 500 InternalError. Nothing was done.
        reset: the connection breaks before the server was asked.
        lost_answer: the server did what it was asked to, and the connection breaks instead of its answer.
        reset_body: of GET: the connection breaks half way through the body.
        trickle: of GET: the body takes `trickle_seconds`.
        stall: of GET: headers, the first bytes, then silence until the client gives up.
        cut: of PUT: half of the body reaches the server, then both connections are dropped.
        stale_listing: keys that were first written less than `stale_seconds` ago are not listed.
        slow_listing: a listing comes `slow_seconds` late.
    """

    slow_down: float = 0.0
    error: float = 0.0
    reset: float = 0.0
    lost_answer: float = 0.0
    reset_body: float = 0.0
    trickle: float = 0.0
    stall: float = 0.0
    cut: float = 0.0
    stale_listing: float = 0.0
    slow_listing: float = 0.0
    trickle_seconds: float = 1.0
    stale_seconds: float = 2.0
    slow_seconds: float = 1.0

    def __post_init__(self) -> None:
        for kind, names in _OF_KIND.items():
            if sum(getattr(self, name) for name in names) > 1 + 1e-9:
                raise ValueError(f"the faults of {kind} are more likely than 1 together: a request has at most one")


def of_kind(kind: str) -> tuple[str, ...]:
    """The faults that a request of this kind (its method, or LIST) can meet."""
    return _OF_KIND.get(kind, _ANY)


def without_keys(listing: bytes, bucket: str, hidden: Set[str]) -> tuple[bytes, int]:
    """The XML of a listing without the keys that are in `hidden` as /bucket/key, and how many those were."""
    root = ElementTree.fromstring(listing)
    space = root.tag.removesuffix("ListBucketResult")
    entries = root.findall(f"{space}Contents")
    late = [e for e in entries if f"/{bucket}/{unquote_plus(e.findtext(f'{space}Key') or '')}" in hidden]
    for entry in late:
        root.remove(entry)
    count = root.find(f"{space}KeyCount")
    if count is not None:
        count.text = str(int(count.text or 0) - len(late))
    return ElementTree.tostring(root, "UTF-8", default_namespace=space.strip("{}") or None), len(late)
