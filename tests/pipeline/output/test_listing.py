"""The listing of a run: what is written comes back, and its digest says when SRC is another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import RunTakenOver
from pipeline.output.commit import tag_of
from pipeline.output.listing import Listing, delete_other_listings, listing_paths, read_listing, write_listing
from pipeline.readers.samples import Shard
from pipeline.storage import Storage


def shard(name: str, version: str = "1") -> Shard:
    return Shard(name=name, url=f"in/{name}.tar", kind="tar", version=version)


def test_a_listing_comes_back_by_its_digest(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    listing = Listing.of([shard("b"), shard("a", "")]).with_kept(["old", "b"])
    assert listing.kept == {"old"}
    write_listing(out, listing)
    assert read_listing(out, listing.digest()) == listing
    assert listing_paths(out) == [f"listings/{listing.digest()}.txt"]
    assert read_listing(out, "0" * 16) is None


def test_listings_of_earlier_starts_are_deleted_if_out_still_belongs_to_the_run(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    listings = [Listing.of([shard(name)]) for name in "ab"]
    for listing in listings:
        write_listing(out, listing)

    def refuse() -> None:
        raise RunTakenOver

    with pytest.raises(RunTakenOver):
        delete_other_listings(out, listings[0].digest(), refuse)
    assert len(listing_paths(out)) == 2
    delete_other_listings(out, listings[0].digest(), lambda: None)
    assert listing_paths(out) == [f"listings/{listings[0].digest()}.txt"]
    delete_other_listings(out, listings[0].digest(), refuse)  # there is nothing to delete


def test_the_digest_depends_on_the_source_alone() -> None:
    listing = Listing.of([shard("a"), shard("b")])
    same = Listing.of([shard("b"), shard("a")]).with_kept(["old"])
    others = [[shard("a")], [shard("a"), shard("b", "2")], [shard("a"), shard("c")], [shard("a"), shard("b", "")]]
    assert listing.digest() == same.digest()
    assert len({Listing.of(other).digest() for other in others} | {listing.digest()}) == 5


def test_which_tags_a_listing_accepts() -> None:
    listing = Listing.of([shard("a"), shard("unknown", "")]).with_kept(["old"])
    right, other_inputs = tag_of("f", shard("a").digest()), tag_of("f", shard("a", "2").digest())
    assert listing.accepts("a", right, "f")
    assert not listing.accepts("a", other_inputs, "f")
    assert not listing.accepts("a", right, "other settings")
    for name in ("unknown", "old"):
        assert listing.accepts(name, other_inputs, "f")
        assert not listing.accepts(name, other_inputs, "other settings")
    assert not listing.accepts("gone", right, "f")
    assert Listing.of([shard("a")], ignore_changes=True).accepts("a", other_inputs, "f")


@pytest.mark.parametrize("damage", [b"", b"x", b"any a\n" * 2, b"\xff", b"any a b/c\n", b"kept \n"])
def test_a_damaged_listing_is_unknown(damage: bytes, tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    digest = Listing.of([shard("a")]).digest()
    out.write_bytes(f"listings/{digest}.txt", damage)
    assert read_listing(out, digest) is None
    assert read_listing(out, "../run") is None
