"""Check every committed file of a run against its size, checksum and rows."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

from jobs.common import OK, SOME_FAILED, RunFolder, guarded, parsed, print_json
from pipeline.commit import verify_commit

READERS = 4


def _verify(command: RunFolder) -> int:
    out, manifest, commits = command.read()
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
    command = parsed(RunFolder, argv, "verify", __doc__)
    return guarded(lambda: _verify(command))


if __name__ == "__main__":
    sys.exit(main())
