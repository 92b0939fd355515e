"""Write the page of a run: index.html, and a folder of data that it loads as it is looked at.

Nothing of it needs a server or a network. The data of a page have a folder of their own, so that whoever has the page
open while another is written goes on with what he has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files

from pipeline.digest import short_digest
from pipeline.executor.parallel import parallel_map
from pipeline.output.commit import Commit
from pipeline.output.manifest import Manifest
from pipeline.readers.samples import Shard
from pipeline.report.datafiles import DataFolder, put_text
from pipeline.report.facts import Facts
from pipeline.report.html import Page, render
from pipeline.report.part import TILES_A_FILE, Common, Part, report_part
from pipeline.report.rowlist import RowList
from pipeline.storage import Storage

FOLDER = "report"
INDEX = f"{FOLDER}/index.html"
DATA = f"{FOLDER}/data"
SCRIPTS = ("data.js", "filters.js", "gallery.js", "detail.js", "page.js")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a page is made from. commits: of done shards, by name. failed: why shards failed, by name.

    sources: the shards that were labelled, by name; else photographs_gone says why there are none. rows: at most in
    the gallery, of evenly spread label shards.
    """

    out: Storage
    manifest: Manifest
    commits: Mapping[str, Commit]
    failed: Mapping[str, str]
    sources: Mapping[str, Shard]
    photographs_gone: str
    rows: int


def write_report(
    report: Report, *, processes: int, address: str | None, on_part: Callable[[], None] = lambda: None
) -> Facts:
    """Write the page into OUT/report, with so many processes or on the Ray cluster at the address."""
    parts = make_parts(report)
    data = DataFolder(out=report.out, path=f"{DATA}/{_digest(report)}")
    image_field = report.manifest.settings["image_field"]
    common = Common(out=report.out, data=data, image_field=image_field, photographs_gone=report.photographs_gone)
    facts, rows = Facts(), RowList(data)
    for of_part, entries in parallel_map(report_part, common, parts, processes=processes, address=address):
        facts.update(of_part)
        rows.add(entries)
        on_part()
    rows.write()
    tables = rows.tables()
    shards = [part.shard for part in parts]
    data.write("run", tables | {"shards": shards, "tilesAFile": TILES_A_FILE, "out": report.out.redacted})
    for name in ("page.css", *SCRIPTS):
        data.put(name, files("pipeline.report").joinpath("page", name).read_text("utf-8"))
    page = Page(
        out=report.out.redacted,
        manifest=report.manifest,
        commits=report.commits,
        failed=report.failed,
        photographs_gone=report.photographs_gone,
        facts=facts,
        data=data.path.removeprefix(f"{FOLDER}/"),
        shown=tables["rows"],
    )
    put_text(report.out, INDEX, render(page))
    for path, _ in report.out.files(DATA):
        if not path.startswith(f"{data.path}/"):
            report.out.delete(path)
    return facts


def make_parts(report: Report) -> list[Part]:
    """A part a label shard; where there are too many rows, those of every so many-th shard are shown."""
    total = sum(commit.rows for commit in report.commits.values())
    every = max(1, -(-total // report.rows))
    return [
        Part(shard=shard, number=number, shown=number % every == 0, source=report.sources.get(shard))
        for number, shard in enumerate(sorted(report.commits))
    ]


def _digest(report: Report) -> str:
    """16 hexadecimal digits of what the page shows."""
    records = [f"{commit.path} {commit.finished}" for _, commit in sorted(report.commits.items())]
    shown = [report.manifest.fingerprint, str(report.rows), report.photographs_gone, *sorted(report.sources), *records]
    return short_digest("\n".join(shown))
