"""One self-contained HTML page: Table 1, every figure, and what made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..files import require_plain, write_bytes
from ..machine import machine, versions
from .exhibit import Exhibit
from .figures import (
    attention_exhibit,
    layers_exhibit,
    norms_exhibit,
    overlay_exhibit,
    pca_exhibit,
    pib_exhibit,
)
from .findings import BOXED, KINDS, Findings, Settings, examine
from .images import MEAN, STD, Batch, Images
from .layers import collect_layers
from .measured import diffusion_exhibit
from .page import Section, page
from .subjects import Subject

__all__ = ["exhibits", "provenance", "write_report"]


def exhibits(
    subjects: Sequence[Subject],
    images: Images,
    settings: Settings | None = None,
    kinds: Sequence[str] = KINDS,
    boxed: Images | None = None,
) -> list[Exhibit]:
    """Examine each model in turn, one in memory at a time, and draw the figures.

    Args:
        subjects: the models.
        images: what they are shown.
        settings: sizes and limits.
        kinds: of :data:`.findings.KINDS`; what needs boxes is left out of several where no annotations are known.
        boxed: images with boxes, for what needs them; by default ``images``.

    Raises:
        ValueError: no models, or no such kind.
    """
    settings = settings or Settings()
    found = examine_all(subjects, images, settings, kinds, boxed)
    return draw(found, images, settings, kinds, boxed)


def examine_all(
    subjects: Sequence[Subject],
    images: Images,
    settings: Settings,
    kinds: Sequence[str] = KINDS,
    boxed: Images | None = None,
) -> list[Findings]:
    """Examine each model in turn; arguments and errors are those of :func:`exhibits`."""
    if not subjects:
        raise ValueError("nothing to analyse: name at least one model or checkpoint")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"unknown analysis {unknown[0]!r}; choose from {', '.join(KINDS)}")
    annotated = (boxed or images).annotations is not None
    wanted = [kind for kind in kinds if kind not in BOXED or annotated or len(kinds) == 1]
    return [examine(subject, images, settings, wanted, boxed) for subject in subjects]


def draw(
    found: Sequence[Findings],
    images: Images,
    settings: Settings,
    kinds: Sequence[str],
    boxed: Images | None = None,
) -> list[Exhibit]:
    """The figures of what was found."""
    drawn = []
    shown = images.sample(settings.pictures, settings.seed)
    if {"pca", "attention"} & set(kinds):
        rgb = next(shown.batches(settings.view, settings.pictures)).rgb()
    if "pca" in kinds:
        drawn.append(pca_exhibit(found, rgb, settings))
    if "pib" in kinds and all(one.pib is not None for one in found):
        drawn.append(pib_exhibit(found, settings, _examples(found, boxed or images, settings)))
    if "diffusion" in kinds:
        drawn.append(diffusion_exhibit(found))
    if "attention" in kinds:
        drawn += [attention_exhibit(found), overlay_exhibit(found, rgb, settings)]
    if "norms" in kinds:
        drawn.append(norms_exhibit(found, settings))
    return drawn


def _examples(found: Sequence[Findings], boxed: Images, settings: Settings) -> list[tuple[int, Batch]]:
    """Some of the images whose points were taken down, evenly chosen, with their place among these."""
    first = found[0].pib
    if first is None:
        return []
    some = boxed.sample(settings.limit, settings.seed)
    count = min(settings.pictures, first.images)
    chosen = [round((index + 0.5) * first.images / count - 0.5) for index in range(count)]
    examples = []
    for image in chosen:
        one = replace(some, files=(some.files[first.kept[image]],))
        examples.append((image, next(one.batches(settings.view, 1, rule=settings.rule))))
    return examples


def verdict_of(found: Findings) -> str:
    """What one forward of a model showed, in a line."""
    said = found.verified
    if said is None:
        return "not patched"
    if not said["ok"]:
        return f"NOT VERIFIED: {'; '.join(said['problems'])}"
    zeros = "" if said["zeros"] is None else f", {said['zeros']:.0%} exact zeros"
    return f"verified: {said['layers']} layers computed by {', '.join(said['backends'])}{zeros} on noise"


def provenance(
    found: Sequence[Findings], images: Images, settings: Settings, command: str, boxed: Images | None = None
) -> list[tuple[str, str]]:
    """What made the figures, line by line."""
    lines = [("command", command), ("images", f"{images.root} ({len(images)} files)")]
    if boxed is not None:
        lines.append(("images with boxes", f"{boxed.root} ({len(boxed)} files)"))
    for subject, one in ((one.subject, one) for one in found):
        told = [f"spec {subject.spec} ({subject.source})", one.arch, verdict_of(one)]
        if subject.checkpoint is not None:
            told += [str(subject.checkpoint), f"sha256 {subject.sha256}"]
        lines.append((subject.name, ", ".join(told)))
    plain, with_boxes = found[0].images
    lines += [
        ("statistics over", f"{plain} images" + (f"; {with_boxes} images with boxes" if with_boxes else "")),
        ("pictures", f"{settings.view}; normalised with mean {MEAN} and standard deviation {STD}"),
        ("boxes", str(settings.rule)),
        ("settings", ", ".join(f"{key}={value}" for key, value in asdict(settings).items())),
        ("seed", str(settings.seed)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions().items())),
        ("machine", ", ".join(f"{key} {value}" for key, value in machine(settings.device).items() if value)),
    ]
    return lines


def write_report(
    out: Path,
    subjects: Sequence[Subject],
    images: Images,
    settings: Settings | None = None,
    *,
    boxed: Images | None = None,
    work_dirs: Sequence[Path] = (),
    layer_dirs: Sequence[Path] = (),
    tables: Sequence[Section] = (),
    command: str = "attn_plugins.analysis.report.write_report",
    title: str = "Attention plugins: report",
) -> Path:
    """Write ``out`` (HTML) and, beside it in a folder of its name, PNG and CSV of every figure.

    Args:
        out: the page, e.g. ``report.html``; figures go to ``report/``.
        subjects: the models.
        images: what they are shown.
        settings: sizes and limits.
        boxed: images with boxes, for what needs them; by default ``images``.
        work_dirs: finished probes, for Table 1.
        layer_dirs: finished probes of single layers, for Figure 2b.
        tables: further tables, shown first.
        command: what to write down as having made it.
        title: of the page.

    Returns:
        ``out``.

    Raises:
        ValueError: no models, damaged probe results, or ``out`` has no suffix, so that page and folder were one.
        FileExistsError: ``out`` is there and no regular file, or the folder's name is a file's.
    """
    settings = settings or Settings()
    # First what takes no time: a damaged result or a wrong name should not cost the analyses.
    _require_room(out)
    sections = list(tables)
    if work_dirs:
        sections.append(_table_1(work_dirs))
    by_layer = [layers_exhibit(collect_layers(layer_dirs))] if layer_dirs else []
    found = examine_all(subjects, images, settings, boxed=boxed)
    figures = draw(found, images, settings, KINDS, boxed) + by_layer
    for exhibit in figures:
        exhibit.write(out.with_suffix(""))
    content = page(
        title, sections, figures, provenance(found, images, settings, command, boxed), out.with_suffix("").name
    )
    write_bytes(out, content.encode(errors="backslashreplace"))  # names of files may hold bytes that are no UTF-8
    return out


def _require_room(out: Path) -> None:
    folder = out.with_suffix("")
    if folder == out:
        raise ValueError(f"{out} has no suffix: call the page {out.name}.html, its figures go to {out.name}/")
    require_plain(out)
    folder.mkdir(parents=True, exist_ok=True)


def _table_1(work_dirs: Sequence[Path]) -> Section:
    import csv

    from ..results import collect, render

    head, *rows = csv.reader(render(collect(work_dirs), "csv").splitlines())
    note = "Linear probes of the frozen backbones; the paper's rows are DINOv1 ViT-S/16, 200 epochs on ImageNet-1K. "
    note += "A star marks a run that has not finished."
    return Section("Table 1", note, tuple(head), tuple(map(tuple, rows)))


def as_table(rows: Sequence[dict[str, Any]], title: str, note: str = "") -> Section:
    """A section from rows of equal keys."""
    head = tuple(rows[0])
    return Section(title, note, head, tuple(tuple(str(row[key]) for key in head) for row in rows))
