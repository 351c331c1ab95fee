"""The HTML of the report: no script, nothing from elsewhere, narrow screens first."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .exhibit import Exhibit

__all__ = ["Section", "page"]

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --card: #fff; --ground: #f6f7f9;
  --accent: #0072b2 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a4adb8; --line: #353b43; --card: #1d2126; --ground: #121417; --accent: #56b4e9 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 62rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .4rem 0 .3rem; letter-spacing: -.01em }
h2 { font-size: 1.15rem; margin: 0 0 .7rem }
p { margin: .5rem 0; color: var(--soft); font-size: .93rem }
nav { display: flex; flex-wrap: wrap; gap: .4rem .5rem; margin: .9rem 0 1.3rem }
nav a { padding: .25rem .7rem; border: 1px solid var(--line); border-radius: 99px; color: var(--accent);
  font-size: .88rem; text-decoration: none; background: var(--card) }
section { margin: 0 0 1.2rem; padding: 1.1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px }
figure { margin: 0 }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: 6px }
figcaption { margin-top: .7rem; color: var(--soft); font-size: .9rem }
.wide { overflow-x: auto }
.wide img { min-width: 34rem }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100% }
th, td { padding: .42rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card) }
th { color: var(--soft); font-weight: 600 }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .35rem 1rem; margin: 0;
  font-size: .86rem }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, Menlo, Consolas, monospace }
@media (max-width: 34rem) {
  dl { grid-template-columns: 1fr; gap: 0 }
  dd { margin-bottom: .6rem }
  section { padding: .8rem }
}
"""


@dataclass(frozen=True)
class Section:
    """A table of the report."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def page(title: str, tables: Sequence[Section], figures: Sequence[Exhibit], made_by: Sequence[tuple[str, str]]) -> str:
    """The whole document.

    Args:
        title: heading.
        tables: shown first.
        figures: embedded as SVG or PNG.
        made_by: provenance, name and value.
    """
    names = [*(table.title for table in tables), *(figure.title for figure in figures), "Provenance"]
    links = "".join(f'<a href="#s{index}">{escape(name)}</a>' for index, name in enumerate(names))
    bodies = [*map(_table, tables), *map(_figure, figures), _provenance(made_by)]
    sections = "\n".join(
        f'<section id="s{index}">\n<h2>{escape(name)}</h2>\n{body}\n</section>'
        for index, (name, body) in enumerate(zip(names, bodies, strict=True))
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<nav aria-label="Sections">{links}</nav>
<main>
{sections}
</main>
</body>
</html>
"""


def _table(table: Section) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
        f"\n<p>{escape(table.note)}</p>"
    )


def _figure(exhibit: Exhibit) -> str:
    form, kind = ("svg", "svg+xml") if exhibit.vector else ("png", "png")
    data = base64.b64encode(exhibit.render(form)).decode()
    image = f'<img src="data:image/{kind};base64,{data}" alt="{escape(exhibit.alt)}">'
    return f'<figure><div class="wide">{image}</div><figcaption>{escape(exhibit.caption)}</figcaption></figure>'


def _provenance(made_by: Sequence[tuple[str, str]]) -> str:
    lines = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in made_by)
    return f"<dl>\n{lines}\n</dl>"
