"""A figure with what belongs to it: title, words for those who cannot see it, and its numbers."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_bytes

__all__ = ["Exhibit"]


@dataclass(frozen=True)
class Exhibit:
    """One figure.

    Attributes:
        name: of its files.
        title: heading.
        caption: what is shown and how it was computed.
        alt: what one sees, in words.
        figure: matplotlib figure.
        rows: the numbers behind it.
        vector: whether it is line art, for which SVG is best; otherwise PNG.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Any = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)
    vector: bool = True

    def render(self, form: str) -> bytes:
        """The figure as "png" or "svg"; the same figure gives the same bytes."""
        import matplotlib

        out = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        with matplotlib.rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(out, format=form, dpi=150, bbox_inches="tight", facecolor="white", metadata=metadata)
        return out.getvalue()

    def table(self) -> str:
        """The rows as CSV."""
        text = io.StringIO()
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def write(self, folder: Path) -> list[Path]:
        """Write NAME.png and NAME.csv into ``folder``, which is made if need be, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        files = {
            folder / f"{self.name}.png": self.render("png"),
            folder / f"{self.name}.csv": self.table().encode(errors="backslashreplace"),
        }
        for path, content in files.items():
            write_bytes(path, content)
        return list(files)
