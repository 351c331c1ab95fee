"""The report's template: everything is escaped, and its parts are where the links lead."""

import re
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from attn_plugins.analysis.exhibit import Exhibit, Panel
from attn_plugins.analysis.page import Section, page

EVIL = "<script>alert('\"x\"')</script>&"
ESCAPED = "&lt;script&gt;alert(&#39;&#34;x&#34;&#39;)&lt;/script&gt;&amp;"


class Figure:
    def savefig(self, out: BytesIO, **kwargs: Any) -> None:
        out.write(b"picture")


def figure(name: str, title: str = "", caption: str = "", alt: str = "", panels: int = 1) -> Exhibit:
    drawn = tuple(Panel("" if panels == 1 else str(n), title, alt, Figure()) for n in range(panels))
    return Exhibit(name, title, caption, alt, drawn, [])


def test_what_comes_from_elsewhere_is_escaped() -> None:
    table = Section(EVIL, EVIL, (EVIL,), ((EVIL,),))
    text = page(EVIL, [table], [figure(EVIL, EVIL, EVIL, EVIL)], [(EVIL, EVIL)], "folder")
    assert "<script" not in text
    assert f'alt="{ESCAPED}"' in text and f"<h3>{ESCAPED}</h3>" in text and f"<dt>{ESCAPED}</dt>" in text
    assert text.count("alert(") == text.count("alert(&#39;")
    assert 'src="data:image/svg+xml;base64,cGljdHVyZQ=="' in text


def test_every_link_leads_to_its_section() -> None:
    figures = [figure(name, f"Figure {name}") for name in "ab"]
    text = page("Report", [Section("Table", "", ("x",), (("1",),))], figures, [("seed", "0")])
    links = dict(re.findall(r'<a href="#(s\d+)">([^<]+)</a>', text))
    sections = dict(re.findall(r'<section id="(s\d+)" aria-labelledby="h\d+">\s*<h2 id="h\d+">([^<]+)</h2>', text))
    assert links == sections and list(links.values()) == ["Table", "Figure a", "Figure b", "Provenance"]
    assert "{{" not in text and "{%" not in text


def test_files_are_linked_as_they_are_written(tmp_path: Path) -> None:
    figures = [figure("one", "One"), figure("two", "Two", panels=2)]
    text = page("Report", [], figures, [], "my report")
    linked = {unquote(href) for href in re.findall(r'href="([^#"]+)"', text)}
    written = {f"my report/{path.name}" for one in figures for path in one.write(tmp_path)}
    assert linked == written and len(linked) == 2 + 3 * 2
    labels = re.findall(r'aria-label="([^"]+)"', text)
    assert len(set(labels)) == len(labels), "links that read alike lead to different files"


def test_no_tables_and_no_figures() -> None:
    assert "<dd>0</dd>" in page("Report", [], [], [("seed", "0")])


def test_a_panel_is_drawn_once_for_the_page_and_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[str] = []
    save = Figure.savefig

    def counted(own: Figure, out: Any, **options: Any) -> None:
        drawn.append(options["format"])
        save(own, out, **options)

    monkeypatch.setattr(Figure, "savefig", counted)
    one = figure("one", alt="A line.")
    page("t", [], [one], [], "folder")
    one.write(tmp_path)
    assert sorted(drawn) == ["png", "svg"] and (tmp_path / "one.svg").read_bytes() == b"picture"
