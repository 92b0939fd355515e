"""The `diffseg` command, which passes the rest of its command line to the module of the named command."""

from __future__ import annotations

import ast
import importlib
import sys
from importlib import resources

from jobs.streams import print_text, printing

COMMANDS = (
    "label",
    "generate",
    "recut",
    "name",
    "estimate",
    "submit",
    "status",
    "verify",
    "evaluate",
    "tune",
    "show",
    "report",
    "fit",
    "filter",
    "export",
    "train",
    "shard",
    "bench",
    "demo",
)


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg NAME …` and return the exit code of the command, or 2 if there is no such command."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        with printing():
            print_text(_help())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        with printing():
            print_text(f"diffseg: no command {name!r}; the commands are {', '.join(COMMANDS)}", error=True)
        return 2
    # Only this command is imported, because torch and ray take seconds to import.
    return importlib.import_module(f"jobs.{name}").main(rest)


def summary(name: str) -> str:
    """Return the first line of the docstring of a command's module, read from its source without importing it."""
    source = resources.files("jobs").joinpath(f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary(name)}" for name in COMMANDS]
    head = ["usage: diffseg COMMAND …", "", "Segmentation labels for millions of images without a human label.", ""]
    tail = [
        "",
        "`diffseg COMMAND --help` describes the options of a command.",
        "Each command is also a module, `python -m jobs.COMMAND`, for use with `ray job submit`.",
    ]
    return "\n".join([*head, *lines, *tail])


if __name__ == "__main__":
    sys.exit(main())
