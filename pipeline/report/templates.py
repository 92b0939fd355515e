"""The templates of the pages, in pipeline/report/page."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def page_template(name: str) -> Template:
    """Return the template of a page. It escapes all values, so that they appear as text whatever they contain."""
    loader = PackageLoader("pipeline.report", "page")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)
