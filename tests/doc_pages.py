"""Markdown pages of the repository: their inline parts, code blocks and the anchors of their headings."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from command_lines import ROOT
from markdown_it import MarkdownIt
from markdown_it.token import Token


@dataclass(frozen=True)
class Page:
    """A Markdown page.

    Attributes:
        path: Path below the root of the repository.
        text: The page's Markdown.
    """

    path: Path
    text: str

    @functools.cached_property
    def tokens(self) -> list[Token]:
        """The blocks of the page."""
        return MarkdownIt("commonmark").enable("table").parse(self.text)

    def inline(self) -> Iterator[tuple[int, Token]]:
        """Yield the inline parts of the page, each with the line number on which its block begins."""
        line = 1
        for token in self.tokens:
            line = token.map[0] + 1 if token.map else line
            for child in token.children or ():
                yield line, child

    def inline_code(self) -> Iterator[tuple[int, str]]:
        """Yield the line number and the text of every inline code span."""
        return ((line, child.content) for line, child in self.inline() if child.type == "code_inline")

    def blocks(self) -> Iterator[tuple[int, str, str]]:
        """Yield the line number of the first line, the language and the text of every code block."""
        for token in self.tokens:
            if token.type in ("fence", "code_block") and token.map:
                fenced = token.type == "fence"
                yield token.map[0] + 1 + fenced, token.info.split(" ")[0] if fenced else "", token.content


def read_page(path: Path) -> Page:
    """Read a page; `path` is relative to the root of the repository."""
    return Page(path=path, text=(ROOT / path).read_text(encoding="utf-8"))


def anchors(page: Page) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    slugs: set[str] = set()
    uses: Counter[str] = Counter()
    for token, following in zip(page.tokens, page.tokens[1:], strict=False):
        if token.type != "heading_open":
            continue
        text = "".join(child.content for child in following.children or () if child.type in ("text", "code_inline"))
        slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        slugs.add(f"{slug}-{uses[slug]}" if uses[slug] else slug)
        uses[slug] += 1
    return slugs
