"""Show how far a run is: shards, rows by status, seconds by step."""

from __future__ import annotations

import sys

from rich.console import Console

from jobs.common import OK, SOME_FAILED, RunFolder, counts_table, guarded, parsed, print_json
from pipeline.commit import read_commits, totals


def _status(command: RunFolder) -> int:
    out, manifest = command.open()
    commits = read_commits(out)
    done = {name: c for name, c in commits.items() if c.state == "done" and c.fingerprint == manifest.fingerprint}
    failed = {name: c.error for name, c in commits.items() if c.state == "failed"}
    counts, seconds = totals(done.values())
    missing = max(0, manifest.shards - len(done) - len(failed))
    facts = {
        "source": manifest.source,
        "model": manifest.settings["model"],
        "fingerprint": manifest.fingerprint,
        "shards": manifest.shards,
        "done": len(done),
        "failed": failed,
        "missing": missing,
        "counts": dict(counts),
        "seconds": dict(seconds),
    }
    if command.json:
        print_json(facts)
    else:
        console = Console()
        console.print(f"{manifest.source} → {out.redacted}, model {facts['model']}", markup=False, highlight=False)
        console.print(counts_table(counts, seconds, counts.total()))
        console.print(
            f"{len(done)} of {manifest.shards} shards done, {len(failed)} failed, {missing} missing", highlight=False
        )
        for name, error in failed.items():
            console.print(f"failed: {name}: {error}", style="red", markup=False, highlight=False)
    return SOME_FAILED if failed or missing else OK


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg status`; exit code 0 when every shard is done, 1 when some failed or are missing, 2 if refused."""
    command = parsed(RunFolder, argv, "status", __doc__)
    return guarded(lambda: _status(command))


if __name__ == "__main__":
    sys.exit(main())
