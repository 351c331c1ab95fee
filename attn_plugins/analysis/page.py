"""The HTML of the report: no script, nothing from elsewhere, narrow screens first."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .exhibit import Exhibit

__all__ = ["Section", "page"]


@dataclass(frozen=True)
class Section:
    """A table of the report."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def page(title: str, tables: Sequence[Section], figures: Sequence[Exhibit], made_by: Sequence[tuple[str, str]]) -> str:
    """The whole document, from `templates/report.html`.

    Args:
        title: heading.
        tables: shown first.
        figures: embedded as SVG or PNG.
        made_by: provenance, name and value.
    """
    names = [*(table.title for table in tables), *(figure.title for figure in figures), "Provenance"]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["image"] = _image
    template = environment.get_template("report.html")
    return template.render(title=title, names=names, tables=tables, figures=figures, made_by=made_by) + "\n"


def _image(exhibit: Exhibit) -> str:
    form, kind = ("svg", "svg+xml") if exhibit.vector else ("png", "png")
    return f"data:image/{kind};base64,{base64.b64encode(exhibit.render(form)).decode()}"
