"""Hostile tars: members that are not files, odd names, and headers that are damaged or declare too much."""

from __future__ import annotations

import gzip
import random
import tarfile
from collections.abc import Iterator

from hostile_images import Bad, photograph
from hostile_shard import OK, ExpectedRow, HostileShard

Member = tuple[str | bytes, bytes] | bytes
"""A name and data, or the complete bytes of headers and their data."""


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> bytes:
    """Return the header of a member, with a GNU long name if it is needed."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def padded(data: bytes) -> bytes:
    """Pad data to whole blocks."""
    return data + bytes(-len(data) % 512)


def tar_of(members: list[Member], *, end: int = 1024) -> tuple[bytes, list[int]]:
    """Return a tar and the offset behind each member. `end` is the number of zeros of the end marker."""
    data, offsets = bytearray(), []
    for member in members:
        if isinstance(member, bytes):
            data += member
        else:
            name = member[0].decode("utf-8", "surrogateescape") if isinstance(member[0], bytes) else member[0]
            data += header(name, size=len(member[1])) + padded(member[1])
        offsets.append(len(data))
    return bytes(data) + bytes(end), offsets


def pax(body: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """Return a PAX header with this content, which precedes the member that it describes."""
    return header("pax", kind, len(body)) + padded(body)


def record(name: bytes, value: bytes) -> bytes:
    """Return a well-formed line of a PAX header."""
    rest = b" " + name + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def sample_tar(rng: random.Random, bad: list[Bad]) -> HostileShard:
    """Put bad images between good ones in a tar; each has its row."""
    members: list[Member] = []
    expected = []
    for number, case in enumerate(bad):
        extension = rng.choice(["jpg", "png", "tiff", "JPEG", "webp"])
        members += [(f"g/{number}.png", photograph(rng)), (f"b/{number}.{extension}", case.data)]
        if "pickle" in case.kind:
            members += [(f"b/{number}.{name}", case.data) for name in ("pkl", "pyd", "npy", "pth", "txt", "json")]
        expected += [ExpectedRow(f"g/{number}", OK), ExpectedRow(f"b/{number}", case.statuses, case.kind)]
    data, _ = tar_of(members)
    zipped = rng.random() < 0.5
    return HostileShard(
        "images in a tar", ".tar.gz" if zipped else ".tar", gzip.compress(data, 1) if zipped else data, expected
    )


def strange_members(rng: random.Random, outside: str) -> HostileShard:
    """Return a tar of links, devices, sparse files, folders, nested tars and odd names."""
    good = photograph(rng)
    no_image = frozenset({"no_image"})
    members: list[Member] = [("first.png", good)]
    expected = [ExpectedRow("first", OK)]

    def add(member: Member, key: str, statuses: frozenset[str], kind: str) -> None:
        number = len(expected)
        members.extend([member, (f"good{number}.png", good)])
        expected.extend([ExpectedRow(key, statuses, kind), ExpectedRow(f"good{number}", OK)])

    for name, kind in {"symlink": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE}.items():
        for target in (f"{outside}/x", "../../../etc/passwd", "/dev/zero", "first.png"):
            add(header(f"{name}{len(expected)}.jpg", kind, 0, target), f"{name}{len(expected)}", no_image, name)
    for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"Z"):
        add(header(f"device{len(expected)}.jpg", kind), f"device{len(expected)}", no_image, "device")
    sparse = record(b"GNU.sparse.map", b"0,0") + record(b"GNU.sparse.size", b"%d" % 2**60)
    add(pax(sparse) + header("sparse.jpg"), "sparse", no_image, "sparse")
    inner, _ = tar_of([("inner.jpg", good)])
    add(("nested.tar", inner), "nested", no_image, "nested tar")
    add(("nested2.jpg", inner), "nested2", frozenset({"undecodable"}), "nested tar")
    names = [
        "../../up", f"{outside}/absolute", "//x", "a//b", "./../x", "a/./b", "%2e%2e%2fx", "%00", "line\nbreak",
        "\x1b[31mred", "C:\\x", "a\\b", " ", "con", "-rf", "é漢", "x" * 300, "/".join("d" * 400), "\udcff\udcfe",
        "../" * 40 + "etc/cron.d/x", "~/x", "$(touch x)", "`id`", "'", '"', "{0}", "a:b", "*", "?",
    ]  # fmt: skip
    for name in names:
        key = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        add((f"{name}.png", good), key, OK, "key")
    for name in ("a/..png", ".png", "/", "..", "...", "noextension", "__x__", "d/.hidden.png"):
        members.append((name, good))  # belongs to no sample
    add(("first.png", good), "first", frozenset({"duplicate_key"}), "duplicated key")
    long = "k" * 10_000_000
    add((f"{long}.png", good), long, frozenset({"too_large"}), "10 MB key")
    named = pax(record(b"path", b"p" * 10_000_000 + b".png")) + header("x", size=len(good)) + padded(good)
    add(named, "p" * 10_000_000, frozenset({"too_large"}), "10 MB key")
    add((f"{'/' * 10_000_000}x.png", good), f"{'/' * 10_000_000}x", frozenset({"too_large"}), "10 MB key")
    add(("long." + "x" * 1_000_000, good), "long", no_image, "long extension")
    add(("text.txt", b"t"), "text", no_image, "no image")
    json_of_10_mb = b'{"a": "' + b"x" * 10_000_000 + b'"}'
    members += [("json.png", good), ("json.json", json_of_10_mb), ("deep.png", good), ("deep.json", b"[" * 1_000_000)]
    expected += [ExpectedRow("json", OK, "10 MB JSON"), ExpectedRow("deep", OK, "deep JSON")]
    members += [("many.png", good), *((f"many.{number}", b"") for number in range(3000))]
    expected.append(ExpectedRow("many", OK, "many members"))
    return HostileShard("strange members", ".tar", tar_of(members)[0], expected)


def broken_headers(rng: random.Random) -> Iterator[HostileShard]:
    """Yield tars with a good sample and then a false header, about which at most one row reports."""
    good = photograph(rng)
    before, _ = tar_of([("a.png", good)], end=0)
    after, _ = tar_of([("b.png", good), ("c.png", good)])
    numbers = [b"-5", b"-1", b"nan", b"inf", b"1e99", b"9" * 30, b"9" * 5000, b"", b"\xff", b"0x10", b"%d" % 2**63]
    headers: dict[str, list[bytes]] = {
        "pax numbers": [
            pax(record(name, number)) for name in (b"size", b"mtime", b"uid", b"GNU.sparse.size") for number in numbers
        ],
        "pax garbage": [pax(rng.randbytes(rng.randrange(1, 2000))) for _ in range(20)]
        + [pax(b"9" * length + b" path=x\n") for length in (3, 20, 5000)]
        + [pax(record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0"))]
        + [pax(record(b"a", b"b"), tarfile.XGLTYPE), pax(bytes(2**20), tarfile.XGLTYPE)],
        "huge sizes": [
            header(name, kind, size)
            for name in ("h.jpg", "h.txt")
            for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.LNKTYPE)
            for size in (2**31, 2**33, 2**60, -1, -512)
        ],
        "endless headers": [pax(record(b"a", b"b")) * 2000, (header("x", b"L", 4) + padded(b"a.b\0")) * 2000],
        "no header": [bytes(512), b"\xff" * 512, rng.randbytes(512), bytes(2048), rng.randbytes(5000)],
    }
    for kind, variants in headers.items():
        for false_header in variants:
            yield HostileShard(kind, ".tar", before + false_header + after, [ExpectedRow("a", OK)], beyond=4)


def damaged_tars(rng: random.Random, count: int) -> Iterator[HostileShard]:
    """Yield ``count`` small tars that are truncated or have a flipped bit. Samples before the damage are read."""
    members: list[Member] = []
    for number in range(4):
        members += [(f"s{number}.png", photograph(rng)), (f"s{number}.txt", b"text")]
    data, offsets = tar_of(members)
    for number in range(count):
        edge = rng.choice(offsets)
        place = rng.choice([rng.randrange(len(data)), min(edge + rng.randrange(-600, 600), len(data) - 1)])
        place = max(place, 0)
        if number % 4 == 0:  # in a compressed tar the damage is noticed earlier
            zipped = bytearray(gzip.compress(data, 0))
            place = min(place, len(zipped) - 1)
            whole = sum(offset + 200 < place for offset in offsets[1::2])
            if number % 8:
                yield _damaged("cut tar.gz", ".tar.gz", bytes(zipped[:place]), whole, refused=place < 1500)
            else:
                zipped[place] ^= 1 << rng.randrange(8)
                yield _damaged("flipped tar.gz", ".tar.gz", bytes(zipped), whole, refused=place < 1500)
        elif number % 4 == 1:
            flipped = bytearray(data)
            flipped[place] ^= 1 << rng.randrange(8)
            whole = sum(offset <= place for offset in offsets[1::2])
            yield _damaged("flipped tar", ".tar", bytes(flipped), whole, refused=place < 512)
        else:
            whole = sum(offset <= place for offset in offsets[1::2])
            yield _damaged("cut tar", ".tar", data[:place], whole, refused=place < 512)


def _damaged(kind: str, suffix: str, data: bytes, whole: int, *, refused: bool) -> HostileShard:
    expected = [ExpectedRow(f"s{number}", OK) for number in range(whole)]
    return HostileShard(kind, suffix, data, expected, beyond=9 - whole, refused="may" if refused else "never")


def odd_tars(rng: random.Random) -> Iterator[HostileShard]:
    """Yield empty tars, concatenated tars, and files that are not tars."""
    good = photograph(rng)
    data, _ = tar_of([("a.png", good)])
    first = [ExpectedRow("a", OK)]
    yield HostileShard("empty tar", ".tar", bytes(1024), [])
    yield HostileShard("empty tar", ".tar", bytes(10240), [])
    yield HostileShard("two tars", ".tar", data + data, first, beyond=1)
    yield HostileShard("two tars", ".tar.gz", gzip.compress(data) + gzip.compress(data), first, beyond=1)
    yield HostileShard("junk at the end", ".tar.gz", gzip.compress(data) + b"junk", first, beyond=1)
    for suffix in (".tar", ".tar.gz"):
        for junk in (
            b"",
            b"\0",
            b"\x1f\x8b",
            rng.randbytes(600),
            b"PK\3\4" + bytes(600),
            gzip.compress(b"x"),
            bytes(9),
        ):
            yield HostileShard("no tar", suffix, junk, [], refused="must")
    nested = data
    for _ in range(3):
        nested = gzip.compress(nested)
    yield HostileShard("nested gzip", ".tar.gz", nested, [], refused="must")


def bombs(rng: random.Random) -> Iterator[HostileShard]:
    """Yield compressed tars that unpack to hundreds of megabytes, or to very many headers."""
    data, _ = tar_of([("a.png", photograph(rng))])
    first = [ExpectedRow("a", OK)]
    yield HostileShard("tar of zeros", ".tar.gz", gzip.compress(bytes(50_000_000)), [])
    flood = header("f.jpg", size=2**28 + 512) + bytes(2**28 + 512)
    yield HostileShard(
        "gzip bomb", ".tar.gz", gzip.compress(flood + data, 1), [ExpectedRow("f", frozenset({"too_large"})), *first]
    )
    flood = header("f.bin", size=2**28) + bytes(2**28)
    yield HostileShard(
        "gzip bomb", ".tar.gz", gzip.compress(flood + data, 1), [ExpectedRow("f", frozenset({"no_image"})), *first]
    )
    old = bytearray(header("s.jpg", tarfile.GNUTYPE_SPARSE))
    old[482] = 1  # the map of the sparse file continues, again and again
    old[148:156] = b"        "
    old[148:156] = b"%06o\0 " % sum(old)
    more = bytes(504) + b"\1" + bytes(7)
    yield HostileShard(
        "endless sparse map", ".tar.gz", gzip.compress(data[:-1024] + bytes(old) + more * 200_000, 1), first, beyond=1
    )
