"""Panels of few and of many models: styles that differ, cells that can be read, scales that are shared."""

import base64
from typing import Any

import matplotlib
import numpy as np
import pytest

from attn_plugins.analysis.exhibit import Panel
from attn_plugins.analysis.panels import LINES, Series, by_layer, contrast, dots, heat_panels, styles


def series(count: int, epochs: bool = False, specs: int = 1, depth: int = 12) -> list[Series]:
    g = np.random.default_rng(0)
    made = []
    for index in range(count):
        value = np.cumsum(g.normal(size=depth)) + 30
        spec = f"spec{index % specs}"
        made.append(
            Series(f"{spec}, {index}", spec, 10 * (index // specs) if epochs else None, value, value - 1, value + 2)
        )
    return made


def drawn(panel: Panel) -> Any:
    return panel.drawing.axes[0]


@pytest.mark.parametrize("count", range(1, LINES + 1))
def test_lines_that_stand_together_differ(count: int) -> None:
    for some in (series(count), series(count, epochs=True)):
        looks = [(look["color"], look["marker"], str(look["linestyle"])) for look in styles(some)]
        assert len({colour for colour, *_ in looks}) == count
        assert all(contrast(matplotlib.colors.to_rgb(colour), (1, 1, 1)) >= 3 for colour, *_ in looks)
    two = styles(series(6, epochs=True, specs=2))
    assert two[0]["color"] == two[1]["color"] and two[0]["marker"] != two[1]["marker"], "one epoch of two specs"


def test_zeros_alone_are_drawn_on_a_scale_that_does_not_look_like_something() -> None:
    nothing = Series("a", "a", None, *(np.zeros(3) for _ in range(3)))
    (panel,) = by_layer("x", "A measure", "%", [nothing], bounds=(0, 100))
    assert drawn(panel).get_ylim() == (0, 1)


def test_a_line_may_have_the_style_that_its_model_has_elsewhere() -> None:
    some = series(3)
    (panel,) = by_layer("x", "A measure", "%", some[1:], looks=styles(some)[1:])
    assert [line.get_color() for line in drawn(panel).lines] == [look["color"] for look in styles(some)[1:]]


def test_scores_stand_beside_what_needs_no_model() -> None:
    panel = dots("x", "CorLoc", "%", [("a", 40.0, 30.0, 50.0), ("b", 70.0, 60.0, 80.0)], bound=("chance", 65.0))
    assert 65.0 in [line.get_xdata()[0] for line in drawn(panel).lines] and "chance: 65" in panel.alt


def test_few_models_are_lines_with_their_bands_and_many_are_heat_maps_of_value_and_spread() -> None:
    some = series(3)
    (panel,) = by_layer("x", "A measure", "%", some)
    assert len(drawn(panel).lines) == 3 and len(drawn(panel).collections) == 3
    np.testing.assert_array_equal(drawn(panel).lines[1].get_ydata(), some[1].value)
    many = series(20)
    value, spread = by_layer("x", "A measure", "%", many, spread="range")
    shown = drawn(value).images[0].get_array()
    np.testing.assert_array_equal(shown, np.stack([one.value for one in many], 1))
    np.testing.assert_allclose(drawn(spread).images[0].get_array(), 3)
    assert "range" in drawn(spread).get_title(loc="left") and len({value.name, spread.name}) == 2


def test_time_series_have_a_panel_each_on_one_scale_in_the_order_of_their_epochs() -> None:
    some = series(20, epochs=True, specs=2)[::-1]
    panels = heat_panels("x", "A measure", some)
    assert len(panels) == 2 and len({panel.name for panel in panels}) == 2
    assert len({drawn(panel).images[0].get_clim() for panel in panels}) == 1
    for panel in panels:
        labels = [label.get_text() for label in drawn(panel).get_xticklabels()]
        assert labels == [str(10 * n) for n in range(10)] and drawn(panel).get_xlabel() == "epoch"


@pytest.mark.parametrize("count", [1, 4, 8])
def test_numbers_in_cells_can_be_read(count: int) -> None:
    (panel,) = heat_panels("x", "A measure", series(count), foot=("chance", [28.0] * count))
    axes = drawn(panel)
    image = axes.images[0]
    assert len(axes.texts) == 13 * count
    for text in axes.texts:
        column, row = text.get_position()
        ground = image.cmap(image.norm(image.get_array()[int(row), int(column)]))[:3]
        assert contrast(matplotlib.colors.to_rgb(text.get_color()), ground) >= 4.5
        assert text.get_fontsize() >= 9
    assert ("–" in axes.texts[-1].get_text()) == (count <= 4)


def test_contrast_is_wcags() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast((0x76 / 255,) * 3, (1, 1, 1)) == pytest.approx(4.54, abs=0.005)  # the grey that just passes


def test_dots_have_a_row_a_model_and_say_their_numbers() -> None:
    panel = dots("x", "CorLoc", "%", [("a", 50.0, 40.0, 60.0), ("b" * 70, 55.0, 50.0, 58.0)], bounds=(0, 100))
    assert [label.get_text().replace("\n", "") for label in drawn(panel).get_yticklabels()] == ["a", "b" * 70]
    assert "50 (40 to 60)" in panel.alt


@pytest.mark.slow
def test_equal_drawings_have_equal_bytes() -> None:
    renders = [
        [panel.render(form) for panel in by_layer("x", "M", "", series(8)) for form in panel.forms] for _ in "ab"
    ]
    assert renders[0] == renders[1] and base64.b64encode(renders[0][0])
