"""One self-contained HTML page: Table 1, every figure, and what made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..files import require_plain, write_bytes
from ..machine import machine, versions
from .compare import changes, changes_table
from .diffusion import MEASURES as DIFFUSION
from .exhibit import Exhibit
from .figures import attention_exhibit, layers_exhibit, norms_exhibit, pib_exhibit
from .findings import KINDS, NEEDS, Findings, Settings, examine
from .images import MEAN, STD, Batch, Images, Sources
from .layers import collect_layers
from .measured import diffusion_exhibit, discovery_exhibit, drift_exhibit, reach_exhibit
from .page import Section, page
from .pib import PiB
from .picture_figures import maps_exhibit, overlay_exhibit, pca_exhibit
from .subjects import Subject, try_out

__all__ = ["exhibits", "provenance", "write_report"]


def exhibits(
    subjects: Sequence[Subject],
    images: Images | Sources,
    settings: Settings | None = None,
    kinds: Sequence[str] = KINDS,
) -> list[Exhibit]:
    """Examine each model in turn, one in memory at a time, and draw the figures.

    Args:
        subjects: the models.
        images: what they are shown; boxes and masks may be of images of their own.
        settings: sizes and limits.
        kinds: of ``findings.KINDS``; of several, those are left out that need what there is not.

    Raises:
        ValueError: no models, or no such kind.
    """
    settings = settings or Settings()
    return draw(examine_all(subjects, images, settings, kinds), images, settings)


def examine_all(
    subjects: Sequence[Subject], images: Images | Sources, settings: Settings, kinds: Sequence[str] = KINDS
) -> list[Findings]:
    """Examine each model in turn, all tried out first; arguments and errors are those of ``exhibits``."""
    if not subjects:
        raise ValueError("nothing to analyse: name at least one model or checkpoint")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"unknown analysis {unknown[0]!r}; choose from {', '.join(KINDS)}")
    sources = Sources.of(images)
    there = {"pib": sources.boxed, "discovery": sources.boxed or sources.masked, "drift": len(subjects) > 1}
    wanted = [kind for kind in kinds if there.get(kind, True)]
    if not wanted:
        raise ValueError(f"{kinds[0]} needs {NEEDS[kinds[0]]}, and there are none")
    for subject in subjects[1:]:  # the first shows itself at once
        try_out(subject, settings, wanted)
    found: list[Findings] = []
    for subject in subjects:
        found.append(examine(subject, sources, settings, wanted, found[0] if found else None))
    return found


def draw(found: Sequence[Findings], images: Images | Sources, settings: Settings) -> list[Exhibit]:
    """The figures of what was found."""
    drawn = []
    first, sources = found[0], Sources.of(images)
    shown = sources.images.sample(settings.pictures, settings.seed)
    if first.features is not None or first.overlay is not None or first.maps is not None:
        rgb = next(shown.batches(settings.view, settings.pictures)).rgb()
    if first.features is not None:
        drawn.append(pca_exhibit(found, rgb, settings))
    if first.pib is not None and sources.boxed is not None:
        drawn.append(pib_exhibit(found, settings, _examples(first.pib, sources.boxed, settings)))
    if first.measures.keys() & DIFFUSION.keys():
        drawn.append(diffusion_exhibit(found))
    if first.scores:
        drawn.append(discovery_exhibit(found, settings))
    if first.attention is not None:
        drawn += [attention_exhibit(found), overlay_exhibit(found, rgb, settings)]
    if first.maps is not None:
        drawn += [reach_exhibit(found), maps_exhibit(found, rgb)]
    if first.norms is not None:
        drawn.append(norms_exhibit(found, settings))
    if first.drift is not None:
        drawn.append(drift_exhibit(found))
    return drawn


def _examples(first: PiB, boxed: Images, settings: Settings) -> list[tuple[int, Batch]]:
    """Some of the images whose points were taken down, evenly chosen, with their place among these."""
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
    found: Sequence[Findings], images: Images | Sources | None, settings: Settings, command: str
) -> list[tuple[str, str]]:
    """What made the figures, line by line."""
    lines = [("command", command)]
    if images is not None:
        sources = Sources.of(images)
        named = {"images": sources.images, "images with boxes": sources.boxed, "images with masks": sources.masked}
        lines += [(what, f"{some.root} ({len(some)} files)") for what, some in named.items() if some is not None]
    for subject, one in ((one.subject, one) for one in found):
        told = [f"spec {subject.spec} ({subject.source})", one.arch, verdict_of(one)]
        if subject.checkpoint is not None:
            told += [str(subject.checkpoint), f"sha256 {subject.sha256}"]
        lines.append((subject.name, ", ".join(told)))
    if found:
        plain, boxes, masks = found[0].images
        lines += [
            ("statistics over", f"{plain} images, {boxes} with boxes, {masks} with masks"),
            ("pictures", f"{settings.view}; normalised with mean {MEAN} and standard deviation {STD}"),
            ("boxes", str(settings.rule)),
            ("settings", ", ".join(f"{key}={value}" for key, value in asdict(settings).items())),
            ("seed", str(settings.seed)),
        ]
    return [
        *lines,
        ("versions", ", ".join(f"{name} {version}" for name, version in versions().items())),
        ("machine", ", ".join(f"{key} {value}" for key, value in machine(settings.device).items() if value)),
    ]


def write_report(
    out: Path,
    subjects: Sequence[Subject],
    images: Images | Sources | None,
    settings: Settings | None = None,
    *,
    work_dirs: Sequence[Path] = (),
    layer_dirs: Sequence[Path] = (),
    tables: Sequence[Section] = (),
    command: str = "attn_plugins.analysis.report.write_report",
    title: str = "Attention plugins: report",
) -> Path:
    """Write ``out`` (HTML) and, beside it in a folder of its name, the files of every figure.

    Equal inputs give equal bytes.

    Args:
        out: the page, e.g. ``report.html``; figures go to ``report/``.
        subjects: the models; none for a report of probes alone.
        images: what they are shown; None without models.
        settings: sizes and limits.
        work_dirs: finished probes, for Table 1.
        layer_dirs: finished probes of single layers, for Figure 2b.
        tables: further tables, shown first.
        command: what to write down as having made it.
        title: of the page.

    Returns:
        ``out``.

    Raises:
        ValueError: neither models nor probes, models without images, damaged probe results, or ``out`` has no suffix,
            so that page and folder were one.
        FileExistsError: ``out`` is there and no regular file, or the folder's name is a file's.
    """
    settings = settings or Settings()
    # First what takes no time: a damaged result or a wrong name should not cost the analyses.
    _require_room(out)
    if subjects and images is None:
        raise ValueError("models are shown images: name a folder of them (--data)")
    if not (subjects or work_dirs or layer_dirs or tables):
        raise ValueError("nothing to report: name checkpoints, or finished probes (--work-dirs, --layer-dirs)")
    sections = list(tables)
    if work_dirs:
        sections.append(_table_1(work_dirs))
    figures = [layers_exhibit(collect_layers(layer_dirs))] if layer_dirs else []
    found: list[Findings] = []
    folder = out.with_suffix("")
    if subjects and images is not None:
        found = examine_all(subjects, images, settings)
        figures = draw(found, images, settings) + figures
        made = changes(found)
        if made:
            sections.append(changes_table(found, made))
            table = Exhibit("changes", "", "", "", (), [change.row() for change in made]).table()
            write_bytes(folder / "changes.csv", table.encode(errors="backslashreplace"))
    for exhibit in figures:
        exhibit.write(folder)
    content = page(title, sections, figures, provenance(found, images, settings, command), folder.name)
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
