"""Write the page of a run: index.html, and a folder of data files that it loads on demand.

The page needs neither a server nor a network. Each version of the page has its own data folder, so a page that is open
in a browser keeps working while a new version is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import Any

from diffseg.scoring.scores import IMAGE_SCORES
from pipeline.digest import short_digest
from pipeline.executor.parallel import parallel_map
from pipeline.output.commit import Commit, LabelShard
from pipeline.output.levels import has_levels
from pipeline.output.manifest import Manifest
from pipeline.output.selection import RowSelection
from pipeline.readers.samples import Shard
from pipeline.report.data_files import DataFolder, put_text
from pipeline.report.html import Page, render
from pipeline.report.row_list import RowList
from pipeline.report.row_statistics import RowStatistics
from pipeline.report.scores import Evaluations, read_evaluations
from pipeline.report.shard import TILES_PER_FILE, ReportContext, ReportTask, count_selected, report_shard
from pipeline.storage import Storage

FOLDER = "report"
INDEX = f"{FOLDER}/index.html"
DATA = f"{FOLDER}/data"
FULL_SIZE_ROWS = 2000
"""Largest number of rows of a gallery whose pictures are stored in full size too."""
DELETERS = 8
"""Files of an earlier page that are deleted at the same time."""
SCRIPTS = (
    "data.js",
    "draw.js",
    "filters.js",
    "marks.js",
    "gallery.js",
    "levels.js",
    "detail.js",
    "address.js",
    "page.js",
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a page is written from.

    Attributes:
        out: OUT of the run.
        manifest: Manifest of the run.
        commits: Commit records of done shards by name.
        failed: Reason of each failed shard by name.
        sources: Source shards by name.
        images_missing: Why the source shards are missing; empty if they are not.
        rows: Largest number of rows in the gallery; more rows are reduced to those of evenly spaced label shards.
        selection: Rows that the page is about.
    """

    out: Storage
    manifest: Manifest
    commits: Mapping[LabelShard, Commit]
    failed: Mapping[str, str]
    sources: Mapping[str, Shard]
    images_missing: str
    rows: int
    selection: RowSelection = field(default_factory=RowSelection)


def write_report(
    report: Report, *, processes: int, address: str | None, on_shard: Callable[[], None] = lambda: None
) -> RowStatistics:
    """Write the page into OUT/report.

    Args:
        report: What the page shows.
        processes: Number of processes on this machine.
        address: Ray cluster to use instead of local processes.
        on_shard: Called after each label shard.

    Returns:
        Statistics over all rows.
    """
    run = partial(parallel_map, processes=processes, address=address)
    evaluations = read_evaluations(report.out, {shard: commit.tag for shard, commit in report.commits.items()})
    selected = _count_selected(report, run)
    tasks = make_tasks(report, evaluations, selected)
    data = DataFolder(out=report.out, path=f"{DATA}/{_digest(report)}")
    context = ReportContext(
        out=report.out,
        data=data,
        image_field=report.manifest.settings["image_field"],
        images_missing=report.images_missing,
        selection=report.selection,
        full=min(selected, sum(report.commits[task.shard].rows for task in tasks if task.shown)) <= FULL_SIZE_ROWS,
        levels=has_levels(report.manifest),
    )
    statistics, rows = RowStatistics(), RowList(data)
    for shard_statistics, entries in run(report_shard, context, tasks):
        statistics.update(shard_statistics)
        rows.add(entries)
        on_shard()
    rows.write()
    tables = rows.tables(statistics)
    _write_common_files(report, data, tables, tasks)
    page = Page(
        out=report.out.redacted,
        manifest=report.manifest,
        commits=report.commits,
        failed=report.failed,
        images_missing=report.images_missing,
        statistics=statistics,
        data=data.path.removeprefix(f"{FOLDER}/"),
        scripts=SCRIPTS,
        shown=tables["rows"],
        names=tables["names"],
        evaluations=evaluations,
        selection=report.selection,
    )
    put_text(report.out, INDEX, render(page))
    _delete_other_data(report.out, data)
    return statistics


def make_tasks(report: Report, evaluations: Evaluations, selected: int) -> list[ReportTask]:
    """Return one task for each label shard; every n-th shard is shown if there are more rows than the gallery takes.

    Args:
        report: What the page shows.
        evaluations: The scores of all rows.
        selected: Number of rows that the page is about.
    """
    every = max(1, -(-selected // report.rows))
    return [
        ReportTask(
            shard=shard,
            number=number,
            shown=number % every == 0,
            source=report.sources.get(shard),
            scores=evaluations.of_shard(shard),
        )
        for number, shard in enumerate(sorted(report.commits))
    ]


def _write_common_files(
    report: Report, data: DataFolder, tables: Mapping[str, Any], tasks: Sequence[ReportTask]
) -> None:
    """Write what the page always loads: the data of the whole run, the scripts and the style sheet."""
    about = {
        "shards": [task.shard for task in tasks],
        "tilesAFile": TILES_PER_FILE,
        "scores": IMAGE_SCORES,
        "fullSizeRows": FULL_SIZE_ROWS,
        "fingerprint": report.manifest.fingerprint,
    }
    data.write("run", {**tables, **about})
    for name in ("page.css", *SCRIPTS):
        data.put(name, files("pipeline.report").joinpath("page", name).read_text("utf-8"))


def _count_selected(report: Report, run: Callable[..., Iterable[int]]) -> int:
    """Return the number of rows that the page is about.

    Args:
        report: What the page shows.
        run: Calls a function for each label shard.
    """
    total = sum(commit.rows for commit in report.commits.values())
    if report.selection == RowSelection() or total <= min(FULL_SIZE_ROWS, report.rows):
        return total  # the exact number would change nothing
    return sum(run(count_selected, (report.out, report.selection), sorted(report.commits)))


def _delete_other_data(out: Storage, data: DataFolder) -> None:
    """Delete the data of earlier pages."""
    paths = [path for path, _ in out.files(DATA) if re.fullmatch(rf"{DATA}/[0-9a-f]{{16}}/.+", path)]
    with ThreadPoolExecutor(DELETERS) as pool:
        for _ in pool.map(out.delete, [path for path in paths if not path.startswith(f"{data.path}/")]):
            pass


def _digest(report: Report) -> str:
    """Return 16 hexadecimal digits that identify what the page shows."""
    records = [f"{commit.path} {commit.finished}" for _, commit in sorted(report.commits.items())]
    selection = json.dumps(report.selection.plain())
    run = [report.manifest.fingerprint, str(report.rows), report.images_missing, selection]
    shown = [*run, *sorted(report.sources), *records]
    return short_digest("\n".join(shown))
