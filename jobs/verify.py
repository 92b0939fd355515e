"""Check every committed file of a run against its size, checksum and rows."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

from jobs.common import OK, SOME_FAILED, guarded, print_json, storage_options
from pipeline.commit import read_commits, verify_commit
from pipeline.manifest import read_manifest
from pipeline.storage import SourceError, Storage

READERS = 4


@dataclass(frozen=True, kw_only=True)
class VerifyCommand:
    """The flags of `diffseg verify`."""

    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder or URL of a run."""
    storage_options: str = ""
    """JSON object for fsspec (credentials, endpoint)."""
    json: bool = False
    """Print JSON."""


def _verify(command: VerifyCommand) -> int:
    out = Storage(url=command.out, options=storage_options(command.storage_options))
    manifest = read_manifest(out)
    if manifest is None:
        raise SourceError(f"{out.redacted}: no run.json here; expected the OUT of `diffseg label`")
    commits = read_commits(out)
    done = [commit for _, commit in sorted(commits.items()) if commit.is_done(manifest.fingerprint)]
    with ThreadPoolExecutor(READERS) as pool:
        problems = [line for found in pool.map(lambda commit: verify_commit(out, commit), done) for line in found]
    if len(done) < manifest.shards:
        problems.append(f"{manifest.shards - len(done)} of {manifest.shards} shards have no commit; run `label` again")
    committed = {path for commit in done for path in commit.files}
    stray = [path for folder in ("labels", "webdataset") for path, _ in out.files(folder) if path not in committed]
    problems += [f"{path}: belongs to no commit; `label` will write it again or it may be deleted" for path in stray]
    rows = sum(commit.rows for commit in done)
    if command.json:
        print_json({"shards": len(done), "rows": rows, "files": len(committed), "problems": problems})
    else:
        console = Console()
        for line in problems:
            console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
        verdict = f"{len(problems)} problems" if problems else "all as committed"
        console.print(f"{len(done)} shards, {rows} rows, {len(committed)} files: {verdict}", highlight=False)
    return SOME_FAILED if problems else OK


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg verify`; exit code 0 when all is as committed, 1 when something is not, 2 if refused."""
    arguments = sys.argv[1:] if argv is None else argv
    command = tyro.cli(VerifyCommand, args=arguments, prog="diffseg verify", description=__doc__)
    return guarded(lambda: _verify(command))


if __name__ == "__main__":
    sys.exit(main())
