"""Check Markdown pages against the repository: links, anchors, paths, commands and Python blocks.

Nothing is run: links and paths are looked up, commands are parsed by the real programs, and names in Python blocks are
resolved in the source text, so that neither torch nor Ray is imported.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from command_lines import CHECKED, ROOT, Refused, block_commands, parse
from doc_pages import Page, anchors, read_page

from jobs.cli import COMMANDS

PACKAGES = ("diffseg", "pipeline", "jobs")
TOP_FOLDERS = (*PACKAGES, "infra", "tests", "docs")

SHELL = ("sh", "bash", "shell", "")
"""Languages of fenced blocks whose lines may be commands; a block without a language may also be a listing."""

ELLIPSIS = "…"
PLACEHOLDERS = 3
"""Most words that an ellipsis in a command can stand for."""

_SOURCE_FILE = re.compile(r"(?P<path>[\w.-]+(?:/[\w.-]+)+\.py)(?:::(?P<test>\w+))?")
_IN_TOP_FOLDER = re.compile(rf"(?:{'|'.join(TOP_FOLDERS)})/[\w./-]*")
_DOTTED_NAME = re.compile(rf"(?P<name>(?:{'|'.join(PACKAGES)})(?:\.\w+)+)(?:\(.*\))?")
_FILE_SUFFIXES = ("json", "yaml", "env", "toml", "md", "png", "py")


def problems(page: Page) -> list[str]:
    """Return everything on the page that does not hold, as `path:line: message`."""
    checks = (link_problems, path_problems, command_problems, python_problems)
    return [f"{page.path}:{line}: {message}" for check in checks for line, message in check(page)]


def link_problems(page: Page) -> Iterator[tuple[int, str]]:
    """Yield links and images whose file or anchor does not exist; addresses of other sites are not followed."""
    for line, child in page.inline():
        target = str(child.attrs.get("href", child.attrs.get("src", "")))
        if not target or re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        path = (ROOT / page.path.parent / name).resolve() if name else ROOT / page.path
        if name and not (path.is_relative_to(ROOT) and path.exists()):
            yield line, f"link to {target}: no such file"
        elif anchor:
            linked = page if not name else read_page(path.relative_to(ROOT)) if path.suffix == ".md" else None
            if linked is None or anchor not in anchors(linked):
                yield line, f"link to {target}: no such heading"


def path_problems(page: Page) -> Iterator[tuple[int, str]]:
    """Yield paths, tests and dotted names of the project that do not exist, in inline code and in shell commands.

    Paths are relative to the root of the repository; those of test files may also be relative to tests/.
    """
    for line, text in page.inline_code():
        for word in text.split():
            yield from ((line, message) for message in _word_problems(word))
        if name := _DOTTED_NAME.fullmatch(text):
            yield from ((line, message) for message in _name_problems(name["name"]))
    for line, language, text in page.blocks():
        if language in SHELL[:-1]:
            for command in block_commands(str(page.path), text):
                yield from ((line, message) for word in command.words for message in _word_problems(word))


def _word_problems(word: str) -> Iterator[str]:
    if source := _SOURCE_FILE.fullmatch(word):
        path = ROOT / source["path"]
        if path.name.startswith("test_") and not path.is_file():
            path = ROOT / "tests" / source["path"]
        if not path.is_file():
            yield f"{word}: no such file"
        elif source["test"] and source["test"] not in _defined(path):
            yield f"{word}: no such test"
    elif _IN_TOP_FOLDER.fullmatch(word) and not (ROOT / word).exists():
        yield f"{word}: no such file or folder"


def _name_problems(name: str) -> Iterator[str]:
    """Yield a message if a dotted name is neither a module nor defined at the top level of one."""
    parts = name.split(".")
    if parts[-1] in _FILE_SUFFIXES:
        return
    for count in range(len(parts), 0, -1):
        folder = ROOT.joinpath(*parts[:count])
        module = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        if module.is_file():
            if parts[count:] and parts[count] not in _defined(module):
                yield f"{name}: {'.'.join(parts[:count])} does not define {parts[count]}"
            return
    yield f"{name}: no such module"


@functools.cache
def _defined(path: Path) -> frozenset[str]:
    """Return the names that a source file defines or imports, at its top level or further in."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name for alias in aliases}
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return frozenset(names)


def command_problems(page: Page) -> Iterator[tuple[int, str]]:
    """Yield commands that the real program would refuse, in code blocks and in inline code."""
    for line, language, text in page.blocks():
        if language not in SHELL:
            continue
        lines = text if language else "".join(f"{each}\n" for each in text.splitlines() if _is_command(each))
        for command in block_commands(str(page.path), lines):
            yield from ((line, message) for message in _refusals(command.words, complete=True))
    for line, text in page.inline_code():
        if _is_command(text):
            yield from ((line, message) for message in _refusals(tuple(shlex.split(text)), complete=False))


def _is_command(text: str) -> bool:
    return re.match(r"(diffseg|make) |python -m jobs\.", text) is not None


@functools.cache
def _refusals(words: tuple[str, ...], *, complete: bool) -> Sequence[str]:
    """Return why a command is refused, empty if it is accepted.

    Args:
        words: The command. An ellipsis stands for up to three words, or for the value of a variable of make.
        complete: Whether all arguments are given. In prose a command may leave out its positional arguments and the
            value of its last flag.
    """
    program, *rest = words
    if program not in CHECKED or (program == "python" and not rest[1:2][0].startswith("jobs.")):
        return ()
    name = rest[1].removeprefix("jobs.") if program == "python" else rest[0]
    if name.isupper() or name == ELLIPSIS:  # `diffseg COMMAND`: any command
        return ()
    if program == "make":
        return _refusals_of_make(words)
    if not complete and not name.startswith("-") and words[-1].removeprefix("jobs.") == name:
        return () if name in COMMANDS else (f"no command {shlex.join(words)}",)
    refusals = []
    for candidate in (
        [words] if complete and ELLIPSIS not in words else _completions(words, start=words.index(rest[0]) + 1)
    ):
        try:
            parse(candidate)
        except Refused as error:
            refusals.append(str(error))
        else:
            return ()
    return (f"{shlex.join(words)}: {refusals[0]}",)


def _completions(words: tuple[str, ...], start: int) -> Iterator[tuple[str, ...]]:
    """Yield commands with words for the ellipsis, or for the positional arguments that `start` at a place."""
    before, after = words[:start], words[start:]
    if ELLIPSIS in words:
        before, after = words[: words.index(ELLIPSIS)], words[words.index(ELLIPSIS) + 1 :]
    for count in range(PLACEHOLDERS + 1):
        for value in ((), ("1",)):
            # "heads" is a kind that `diffseg fit` knows; elsewhere it is a path like any other
            yield (*before, *["heads"] * count, *after, *value)


def _refusals_of_make(words: tuple[str, ...]) -> Sequence[str]:
    if any(word.startswith("NAME=") and ELLIPSIS in word for word in words):  # `make proof NAME=…`: any proof
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return () if words[1] in targets else (f"{shlex.join(words)}: no such target",)
    try:
        parse(words)
    except Refused as error:
        return (str(error),)
    return ()


def python_problems(page: Page) -> Iterator[tuple[int, str]]:
    """Yield Python blocks that do not compile, and imports and attributes of the project that do not exist."""
    for line, language, text in page.blocks():
        if language not in ("python", "py"):
            continue
        try:
            tree = ast.parse(text)
        except SyntaxError as error:
            yield line - 1 + (error.lineno or 1), f"Python block: {error.msg}"
            continue
        for node in ast.walk(tree):
            for name in _dotted_names(node):
                top = name.partition(".")[0]
                if top in PACKAGES and "." in name:
                    found = list(_name_problems(name))
                else:
                    found = [] if importlib.util.find_spec(top) else [f"no module {top}"]
                yield from ((line - 1 + node.lineno, message) for message in found)  # type: ignore[attr-defined]


def _dotted_names(node: ast.AST) -> list[str]:
    """Return the full names that an import or an attribute of one of our packages refers to."""
    match node:
        case ast.Import(names=aliases):
            return [alias.name for alias in aliases]
        case ast.ImportFrom(module=str(module), names=aliases):
            return [f"{module}.{alias.name}" for alias in aliases]
        case ast.Attribute():
            name = ast.unparse(node)
            return [name] if name.startswith(tuple(f"{package}." for package in PACKAGES)) else []
    return []
