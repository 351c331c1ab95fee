"""The trade-off of a calibration as it is drawn: one scale for all sizes, and what was measured on how many images."""

from __future__ import annotations

from typing import Any

import pytest

from attn_plugins.adapt.calibrate import Calibration, Likeness
from attn_plugins.adapt.figure import drawn
from attn_plugins.patching.scales import Scales


@pytest.mark.parametrize("sizes", [("224x224",), ("224x224", "448x448")])
@pytest.mark.parametrize("held_out", [True, False])
def test_panels_share_their_scales_and_everything_lies_inside(sizes: tuple[str, ...], held_out: bool) -> None:
    def lines(*zeros: float) -> tuple[Likeness, ...]:
        return tuple(
            Likeness(size, share + 0.05 * place, 1 - share / 3, 1 - share / 2, 1 - share / 4)
            for place, size in enumerate(sizes)
            for share in zeros
        )

    fitted = {"images": 12, "measured_on": 7, "held_out": held_out}
    scales = Scales("entmax15:scale=per_head", (), {}, fitted)
    figure: Any = drawn(Calibration(scales, lines(0.9), lines(0.5), lines(0.6, 0.8)))
    figure.canvas.draw()
    assert [axes.get_title(loc="left") for axes in figure.axes] == [f"{s.replace('x', ' x ')} pixels" for s in sizes]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}) == 1
    told = " ".join(figure.get_suptitle().split())
    assert told.startswith("entmax15:scale=per_head, fitted on 12 images")
    assert told.endswith("measured on 7 others" if held_out else "measured on these")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][-2:] == ["calibrated", "as patched"]
    for part in (legend, figure._suptitle):
        box = part.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width
