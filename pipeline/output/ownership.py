"""Which files of a folder belong to this program. Only those are ever deleted."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RunRefused
from pipeline.output.commit import FAILURES, FOLDER, parse_name, read_records
from pipeline.output.intents import list_intents
from pipeline.output.listing import listing_paths
from pipeline.output.manifest import PATH, PROGRESS_PATH, is_run
from pipeline.output.reader import label_metadata
from pipeline.storage import Storage

_LABELS, _TARS, _REPORT = "labels", "webdataset", "report"
_REPORT_DATA = re.compile(rf"{_REPORT}/data/[0-9a-f]{{16}}/.+")
_FILTER = re.compile(r"filter/(?:keep\.parquet|filter\.json|parts/[0-9a-f]{16}/.+)")
_IGNORED_NAMES = frozenset(("lost+found",))


def refuse_foreign_folder(folder: Storage, marker: str) -> None:
    """Check that a command may write into a folder: it is empty, or holds the file by which the command knows it.

    Args:
        folder: The destination of a command.
        marker: Path of that file, such as run.json. Empty if the command writes only into empty folders.

    Raises:
        RunRefused: The folder holds other files. Hidden ones do not count.
    """
    names = [name for name in folder.names() if not name.startswith(".") and name not in _IGNORED_NAMES]
    if not names or (marker and folder.is_file(marker)):
        return
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    reason = f"holds {shown}, but no {marker}" if marker else f"holds {shown}"
    raise RunRefused(
        f"{folder.redacted}: {reason}, so these files belong to something else. "
        f"Name an empty or a new folder, such as {folder.joined('diffseg')}"
    )


def clear_run(out: Storage) -> None:
    """Delete the files of a run from OUT, and no other file.

    A file belongs to the run if a commit record names it or if it is a label shard that this program wrote. The records
    go first, so that a half-deleted run is never mistaken for a finished one. run.json goes last, so that the same
    command can continue after a kill.

    Raises:
        RunRefused: OUT holds files, but no run.json.
    """
    refuse_foreign_folder(out, PATH)
    if not is_run(out):
        return
    listed = [path for folder in (FOLDER, FAILURES) for path, _ in out.files(folder)]
    records = read_records(out, listed)
    # A record that cannot be read is recognised by its name.
    own_records = [path for path in listed if path in records or parse_name(path) is not None]
    data = [
        path for record in records.values() for path in record.files if path.startswith((f"{_LABELS}/", f"{_TARS}/"))
    ]
    for path in [
        *own_records,
        *data,
        *_uncommitted_files(out, frozenset(data)),
        *_report_files(out),
        *_filter_files(out),
        *(intent.path for intent in list_intents(out)),
        *listing_paths(out),
        PROGRESS_PATH,
        PATH,
    ]:
        out.delete(path)


def _uncommitted_files(out: Storage, committed: frozenset[str]) -> list[str]:
    """Return the label shards, with their tars, that a killed worker wrote without a record."""
    tars = {path for path, _ in out.files(_TARS)}
    paths = []
    for path, _ in out.files(_LABELS):
        if path not in committed and is_label_shard(out, path):
            tar = f"{_TARS}/{path.removeprefix(_LABELS + '/').removesuffix('.parquet')}.tar"
            paths += [path, tar] if tar in tars else [path]
    return paths


def is_label_shard(out: Storage, path: str) -> bool:
    """Return True if a file is Parquet with the metadata that `writer.py` puts into each label shard."""
    if not path.endswith(".parquet"):
        return False
    try:
        with out.open(path) as file:
            return "fingerprint" in label_metadata(pq.read_schema(file))
    except (pa.ArrowException, OSError):
        return False


def _report_files(out: Storage) -> list[str]:
    """Return the files of the report page."""
    paths = [path for path, _ in out.files(_REPORT)]
    data = [path for path in paths if _REPORT_DATA.fullmatch(path)]
    return [*data, f"{_REPORT}/index.html"] if data else []


def _filter_files(out: Storage) -> list[str]:
    """Return the files of `diffseg filter`."""
    return [path for path, _ in out.files("filter") if _FILTER.fullmatch(path)]
