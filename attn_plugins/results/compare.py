"""Differences between the backbones of a table, column by column, with their uncertainty over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .images import IMAGES_FILE, difference, read_images
from .record import ProbeResult

__all__ = ["differences", "told"]

Runs = Mapping[str, tuple[Path, ProbeResult]]


def differences(rows: Sequence[tuple[str, Runs]]) -> list[dict[str, dict[str, Any]]]:
    """For each row, {column: how much it measures beyond the row that it is compared with}.

    A column's rows are compared with the one of softmax, or else the first: of the last evaluation, as the best is
    chosen on the images that it is measured on.

    Args:
        rows: (method, {column: (its ``probe.json``, what that says)}).

    Returns:
        Of each compared column ``than``, the other method, and what a ``Difference`` has; or ``why`` there is no
        difference to be told. Columns whose runs kept nothing of single images are left out.
    """
    found: list[dict[str, dict[str, Any]]] = [{} for _ in rows]
    columns = {key: None for _, runs in rows for key in runs}
    for key in columns:
        having = [i for i, (_, runs) in enumerate(rows) if key in runs and _images(runs[key][0]).is_file()]
        if len(having) < 2:
            continue
        base = next((i for i in having if rows[i][1][key][1].backbone["plugins"] == "softmax"), having[0])
        for i in having:
            if i != base:
                found[i][key] = {"than": rows[base][0], **_difference(rows[i][1][key], rows[base][1][key])}
    return found


def _images(result: Path) -> Path:
    return result.parent / IMAGES_FILE


def _difference(ours: tuple[Path, ProbeResult], theirs: tuple[Path, ProbeResult]) -> dict[str, Any]:
    (file, run), (other_file, other) = ours, theirs
    settings = [line for line in other.differences(run) if not line.startswith("backbone's")]
    if settings:
        return {"why": f"other settings: {'; '.join(settings)}"}
    kept = [read_images(_images(path)) for path in (file, other_file)]
    for (iteration, _), result in zip(kept, (run, other), strict=True):
        if iteration != result.evaluations[-1].iteration:
            return {"why": f"{IMAGES_FILE} is of iteration {iteration}, not of the last evaluation"}
    if kept[0][0] != kept[1][0]:
        return {"why": f"{kept[0][0]} iterations against {kept[1][0]}"}
    try:
        return vars(difference(kept[0][1], kept[1][1]))
    except ValueError as error:
        return {"why": str(error)}


def told(method: str, title: str, found: Mapping[str, Any], digits: int) -> str:
    """A difference in a line of text."""
    start = f"Δ {title}: {method} - {found['than']}"
    if "why" in found:
        return f"{start}: not compared, {found['why']}.\n"
    value, low, high = (f"{found[name]:+.{digits}f}" for name in ("value", "low", "high"))
    test = "" if found["p"] is None else _mcnemar(found)
    over = f"95 % paired bootstrap over {found['images']} images{test}"
    return f"{start} = {value} [{low}, {high}], {over}, last evaluation.\n"


def _mcnemar(found: Mapping[str, Any]) -> str:
    p = "p < 0.001" if found["p"] < 0.001 else f"p = {found['p']:.3f}"
    return f"; {found['gained']} images right here alone, {found['lost']} there alone, McNemar {p}"
