"""What a real browser makes of a page, in numbers: widths, text sizes, contrasts, pictures."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attn_plugins.analysis.panels import contrast

__all__ = ["CHROMIUM", "Seen", "see"]

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
  document.getElementById("told").textContent = JSON.stringify({texts, images, tops,
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
    """

    width: int
    scroll: int
    texts: list[dict[str, Any]]
    images: list[dict[str, Any]]
    columns: set[int]

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
    return Seen(told["width"], told["scroll"], told["texts"], told["images"], columns)


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
