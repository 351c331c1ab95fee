"""The report's template: everything is escaped, and its parts are where the links lead."""

import re

from attn_plugins.analysis.exhibit import Exhibit
from attn_plugins.analysis.page import Section, page

EVIL = "<script>alert('\"x\"')</script>&"
ESCAPED = "&lt;script&gt;alert(&#39;&#34;x&#34;&#39;)&lt;/script&gt;&amp;"


class Figure:
    def savefig(self, out, **kwargs):
        out.write(b"picture")


def test_what_comes_from_elsewhere_is_escaped():
    figure = Exhibit("name", EVIL, EVIL, EVIL, Figure(), [])
    text = page(EVIL, [Section(EVIL, EVIL, (EVIL,), ((EVIL,),))], [figure], [(EVIL, EVIL)])
    assert "<script" not in text
    assert text.count(ESCAPED) == 2 + 2 + (1 + 1 + 1 + 1) + (1 + 1 + 1) + 2
    assert f'alt="{ESCAPED}"' in text
    assert 'src="data:image/svg+xml;base64,cGljdHVyZQ=="' in text


def test_every_link_leads_to_its_section():
    figures = [Exhibit(name, f"Figure {name}", "", "", Figure(), [], vector=False) for name in "ab"]
    text = page("Report", [Section("Table", "", ("x",), (("1",),))], figures, [("seed", "0")])
    links = dict(re.findall(r'<a href="#(s\d+)">([^<]+)</a>', text))
    sections = dict(re.findall(r'<section id="(s\d+)">\s*<h2>([^<]+)</h2>', text))
    assert links == sections and list(links.values()) == ["Table", "Figure a", "Figure b", "Provenance"]
    assert "{{" not in text and "{%" not in text


def test_no_tables_and_no_figures():
    assert "<dd>0</dd>" in page("Report", [], [], [("seed", "0")])
