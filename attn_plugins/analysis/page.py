"""The HTML of the report: no script, nothing from elsewhere, narrow screens first."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .exhibit import Exhibit, Panel

__all__ = ["Section", "page"]


@dataclass(frozen=True)
class Section:
    """A table of the report."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def page(
    title: str,
    tables: Sequence[Section],
    figures: Sequence[Exhibit],
    made_by: Sequence[tuple[str, str]],
    folder: str | None = None,
) -> str:
    """The whole document, from ``templates/report.html``.

    Args:
        title: heading.
        tables: shown first.
        figures: embedded, line art as SVG and pictures as WebP.
        made_by: provenance, name and value.
        folder: where the figures' files lie, relative to the page; None: nothing is linked.
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
    environment.filters["link"] = lambda name: f"{quote(folder or '')}/{quote(name)}"
    template = environment.get_template("report.html")
    linked = folder is not None
    return (
        template.render(title=title, names=names, tables=tables, figures=figures, made_by=made_by, linked=linked) + "\n"
    )


def _image(panel: Panel) -> str:
    form = panel.forms[0]
    content = panel.render(form)
    if form == "svg":
        return f"data:image/svg+xml;base64,{base64.b64encode(_compact(content)).decode()}"
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"


def _compact(svg: bytes) -> bytes:
    """Without comments, metadata and the space between tags, an eighth of what matplotlib writes."""
    told = re.sub(rb"<!--.*?-->|<metadata>.*?</metadata>", b"", svg, flags=re.S)
    return re.sub(rb" ?\n *", b" ", re.sub(rb">\s+<", b"><", told))
