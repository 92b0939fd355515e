"""The faults that `FaultyProxy` injects into the requests to an object store, and the probability of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from urllib.parse import unquote_plus
from xml.etree import ElementTree

_ANY = ("slow_down", "error", "reset", "lost_answer")
BODY_FAULTS = ("reset_body", "trickle", "stall")
_OF_KIND = {
    "GET": (*_ANY, *BODY_FAULTS),
    "LIST": (*_ANY, *BODY_FAULTS, "stale_listing", "slow_listing"),
    "PUT": (*_ANY, "cut"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreFaults:
    """The probability (0 to 1) of each fault for a request that can have it, and the duration of slow faults.

    Attributes:
        slow_down: 503 SlowDown, as from a store that throttles. The request is not carried out.
        error: 500 InternalError. The request is not carried out.
        reset: The connection breaks before the server receives the request.
        lost_answer: The server carries the request out, and the connection breaks before its answer arrives.
        reset_body: GET: The connection breaks half way through the body.
        trickle: GET: The body takes `trickle_seconds`.
        stall: GET: After the headers and half of the body nothing follows until the client gives up.
        cut: PUT: Half of the body reaches the server, then both connections are dropped.
        stale_listing: A listing omits keys that were first written less than `stale_seconds` ago.
        slow_listing: A listing arrives `slow_seconds` late.
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
                raise ValueError(f"the probabilities of the faults of {kind} sum to more than 1")


def faults_of_kind(kind: str) -> tuple[str, ...]:
    """Return the names of the faults that a request of a kind (its method, or LIST) can have."""
    return _OF_KIND.get(kind, _ANY)


def without_keys(listing: bytes, bucket: str, hidden: Set[str]) -> tuple[bytes, int]:
    """Remove keys from the XML of a listing.

    Args:
        listing: The answer of the store.
        bucket: The name of the listed bucket.
        hidden: The keys to remove, as /bucket/key.

    Returns:
        The shortened XML, and the number of keys that were removed.
    """
    root = ElementTree.fromstring(listing)
    space = root.tag.removesuffix("ListBucketResult")
    entries = root.findall(f"{space}Contents")
    removed = [e for e in entries if f"/{bucket}/{unquote_plus(e.findtext(f'{space}Key') or '')}" in hidden]
    for entry in removed:
        root.remove(entry)
    count = root.find(f"{space}KeyCount")
    if count is not None:
        count.text = str(int(count.text or 0) - len(removed))
    return ElementTree.tostring(root, "UTF-8", default_namespace=space.strip("{}") or None), len(removed)
