"""What a real browser makes of a page, in numbers: widths, text sizes, contrasts, pictures."""

from __future__ import annotations

import base64
import html
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attn_plugins.analysis.panels import contrast

__all__ = ["CHROMIUM", "Seen", "check_access", "see"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# The page lies in a frame, which a phone's width can be given; a window has at least 500 pixels.
HARNESS = """<!doctype html><body style="margin:0">
<iframe id="page" style="width:%dpx;height:3000px;border:0" srcdoc="%s"></iframe><pre id="told"></pre><script>
addEventListener("load", () => {
  const page = document.getElementById("page").contentDocument, view = page.defaultView
  const ground = node => { for (; node; node = node.parentElement) {
    const colour = view.getComputedStyle(node).backgroundColor
    if (!/, 0\\)$|transparent/.test(colour)) return colour } return "rgb(255, 255, 255)" }
  const texts = []
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT)
  for (let node; node = walker.nextNode();) if (node.textContent.trim()) {
    const own = view.getComputedStyle(node.parentElement), box = node.parentElement.getBoundingClientRect()
    texts.push({text: node.textContent.trim().slice(0, 40), size: parseFloat(own.fontSize), colour: own.color,
      ground: ground(node.parentElement), right: box.right, scrolls: !!node.parentElement.closest(".scroll") ||
      node.parentElement.classList.contains("skip")}) }
  const images = [...page.images].map(one => ({width: one.clientWidth, natural: one.naturalWidth, source: one.src,
    alt: one.alt, right: one.getBoundingClientRect().right}))
  const tops = [...page.querySelectorAll(".panel:not(.wide)")].map(one => one.getBoundingClientRect().left)
  const named = node => node.getAttribute("aria-label") || node.textContent.trim()
  const stops = [...page.querySelectorAll("a[href], [tabindex]:not([tabindex='-1'])")].map(node => {
    node.focus()
    const own = view.getComputedStyle(node), box = node.getBoundingClientRect()
    return {name: named(node), href: node.getAttribute("href"), focused: node.matches(":focus-visible"),
      outline: own.outlineStyle === "none" ? 0 : parseFloat(own.outlineWidth), colour: own.outlineColor,
      ground: ground(node), left: box.left} })
  const scrolling = [...page.querySelectorAll("body *")].filter(node =>
    /auto|scroll/.test(view.getComputedStyle(node).overflowX) && (node.scrollWidth > node.clientWidth ||
    node.scrollHeight > node.clientHeight)).map(node => ({tabs: node.tabIndex, role: node.getAttribute("role"),
    name: node.getAttribute("aria-label")}))
  const tables = [...page.querySelectorAll("table")].map(node => ({caption: node.caption && node.caption.textContent,
    columns: [...node.tHead.rows[0].cells].every(cell => cell.tagName === "TH" && cell.scope === "col"),
    rows: [...node.tBodies[0].rows].every(row => row.cells[0].tagName === "TH" && row.cells[0].scope === "row")}))
  const pointed = [...page.querySelectorAll("[aria-labelledby], [aria-describedby], a[href^='#']")].map(node =>
    node.getAttribute("aria-labelledby") || node.getAttribute("aria-describedby") || node.getAttribute("href").slice(1))
  const access = {language: page.documentElement.lang, title: page.title, stops, scrolling, tables, pointed,
    ids: [...page.querySelectorAll("[id]")].map(node => node.id),
    levels: [...page.querySelectorAll("h1, h2, h3, h4, h5, h6")].map(node => +node.tagName[1]),
    landmarks: ["header", "nav", "main"].map(tag => page.querySelectorAll(tag).length),
    outside: [...page.body.children].map(node => node.tagName.toLowerCase()),
    unnamed: [...page.querySelectorAll("nav, section")].filter(node =>
      !node.getAttribute("aria-label") && !node.getAttribute("aria-labelledby")).length}
  document.getElementById("told").textContent = JSON.stringify({texts, images, tops, access,
    scroll: page.documentElement.scrollWidth, width: page.documentElement.clientWidth})
})</script>"""


@dataclass(frozen=True)
class Seen:
    """A page as it was laid out.

    Attributes:
        width: of the page in pixels.
        scroll: how wide its contents are.
        texts: each piece of text: size in pixels, colour, ground, right edge, whether it is in what scrolls.
        images: each picture: width on the page, its own, source, alt, right edge.
        columns: left edges of the panels of figures.
        access: what keyboards and screen readers meet: stops of the Tab key with their names and outlines, what
            scrolls, tables, ids and what points to them, levels of headings, landmarks.
    """

    width: int
    scroll: int
    texts: list[dict[str, Any]]
    images: list[dict[str, Any]]
    columns: set[int]
    access: dict[str, Any]

    def contrasts(self) -> dict[str, float]:
        """The lowest contrast of each pair of colours that text has on the page."""
        return {
            f"{one['text']}: {one['colour']} on {one['ground']}": contrast(_rgb(one["colour"]), _rgb(one["ground"]))
            for one in self.texts
        }

    def drawn_texts(self) -> list[tuple[str, float, str]]:
        """(alt, size in pixels on the page, colour) of every text in the drawings, which are outlines."""
        found = []
        for image in self.images:
            if image["source"].startswith("data:image/svg"):
                svg = base64.b64decode(image["source"].partition(",")[2]).decode()
                (wide,) = re.findall(r'viewBox="0 0 ([\d.]+) ', svg)
                texts = re.findall(r'<g style="fill: (#\w{6})" transform="[^"]*scale\(([\d.]+) -', svg)
                found += [
                    (image["alt"], 100 * float(size) * image["width"] / float(wide), fill) for fill, size in texts
                ]
        return found


def see(page: Path, width: int, dark: bool, folder: Path) -> Seen:
    """Lay a page out in a browser, in a frame of ``width`` pixels, in the light or the dark scheme."""
    harness = folder / "harness.html"
    harness.write_text(HARNESS % (width, html.escape(page.read_text(), quote=True)))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [f"--user-data-dir={folder}/profile", "--hide-scrollbars", "--window-size=1400,1000"]
    flags += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, harness.as_uri()], check=True, timeout=300, capture_output=True, text=True
    )
    told = json.loads(html.unescape(done.stdout.rpartition('<pre id="told">')[2].partition("</pre>")[0]))
    columns = {round(left) for left in told["tops"]}
    return Seen(told["width"], told["scroll"], told["texts"], told["images"], columns, told["access"])


def check_access(seen: Seen) -> None:
    """A page for the keyboard and for screen readers: WCAG 2.2, 1.3.1, 1.4.11, 2.1.1, 2.4.1, 2.4.4, 2.4.6 and 2.4.7."""
    told = seen.access
    assert told["language"] == "en" and told["title"]
    assert told["landmarks"] == [1, 1, 1] and told["outside"] == ["a", "header", "main"] and not told["unnamed"]
    levels = told["levels"]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), "a level of headings is left out"
    assert len(told["ids"]) == len(set(told["ids"])) and set(told["pointed"]) <= set(told["ids"])
    skip, *others = told["stops"]
    assert skip["href"] == "#main" and skip["left"] >= 0, "the first stop skips the navigation, and is seen there"
    targets: dict[str, str] = {}
    for one in told["stops"]:
        assert one["name"] and one["focused"] and one["outline"] >= 2, one
        assert contrast(_rgb(one["colour"]), _rgb(one["ground"])) >= 3, one
        if one["href"] is not None:
            assert targets.setdefault(one["name"], one["href"]) == one["href"], "one name leads to two places"
    assert len(others) > 10
    for one in told["scrolling"]:
        assert one["tabs"] == 0 and one["role"] == "region" and one["name"], one
    for one in told["tables"]:
        assert one["caption"] and one["columns"] and one["rows"], one


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
