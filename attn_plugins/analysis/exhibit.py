"""A figure with what belongs to it: title, words for those who cannot see it, its panels and its numbers."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..files import write_bytes
from .pictures import sheet

__all__ = ["Exhibit", "Panel"]


@dataclass(frozen=True)
class Panel:
    """One part of a figure: panels stand beside one another where there is room, and below one another on a phone.

    Attributes:
        name: of its files, behind the figure's; empty for the only one.
        title: above it on the page; empty where the drawing has one itself.
        alt: what one sees, in words.
        drawing: a matplotlib figure, or a picture ``[H, W, 3]`` of bytes.
        wide: whether it takes the whole width of the page.
        note: below it on the page: what is measured, and from whom.
    """

    name: str
    title: str
    alt: str
    drawing: Any = field(repr=False)
    wide: bool = False
    note: str = ""
    _rendered: dict[str, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def forms(self) -> tuple[str, ...]:
        """What it is written as; the first is what the page holds."""
        return ("webp", "png") if isinstance(self.drawing, np.ndarray) else ("svg", "png")

    def render(self, form: str) -> bytes:
        """The panel as "png", "svg" or "webp"; the same drawing gives the same bytes."""
        if form not in self._rendered:  # the page and the file beside it hold the same, and drawing takes long
            self._rendered[form] = self._drawn(form)
        return self._rendered[form]

    def _drawn(self, form: str) -> bytes:
        out = io.BytesIO()
        if isinstance(self.drawing, np.ndarray):
            _picture(self.drawing).save(out, form, **({"quality": 75, "method": 6} if form == "webp" else {}))
            return out.getvalue()
        import matplotlib

        metadata = {"Date": None} if form == "svg" else {"Software": None}
        with matplotlib.rc_context({"svg.hashsalt": f"{self.name} {self.alt}"}):
            self.drawing.savefig(out, format=form, dpi=150, facecolor="white", metadata=metadata)
        return out.getvalue()


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels))


@dataclass(frozen=True)
class Exhibit:
    """One figure.

    Attributes:
        name: of its files.
        title: heading.
        caption: what is shown and how it was computed.
        alt: what one sees, in words.
        panels: its parts.
        rows: the numbers behind it.
    """

    name: str
    title: str
    caption: str
    alt: str
    panels: tuple[Panel, ...] = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)

    def stem(self, panel: Panel) -> str:
        """What a panel's files are called, without suffix."""
        return f"{self.name}-{panel.name}" if panel.name else self.name

    def table(self) -> str:
        """The rows as CSV."""
        text = io.StringIO()
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def write(self, folder: Path) -> list[Path]:
        """Write NAME.csv and each panel into ``folder``, which is made if need be, each whole or not at all.

        Line art is written as PNG and SVG, pictures as PNG, and where there are several, all of them as NAME.png too.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files: dict[Path, bytes] = {}
        pictures = [(panel.title, panel.drawing) for panel in self.panels if isinstance(panel.drawing, np.ndarray)]
        if len(pictures) > 1:
            files[folder / f"{self.name}.png"] = Panel("", "", "", sheet(pictures)).render("png")
        for panel in self.panels:
            for form in panel.forms:
                if form != "webp":
                    files[folder / f"{self.stem(panel)}.{form}"] = panel.render(form)
        # Last: numbers that are there have their pictures.
        files[folder / f"{self.name}.csv"] = self.table().encode(errors="backslashreplace")
        for path, content in files.items():
            write_bytes(path, content)
        return list(files)
