"""From what the sources of the data sets ship to the layouts that the probes read: ``attn-plugins data convert``.

Files whose contents stay are given a second name (a hard link, which takes no room on the disk) and copied where that
is not possible; the source is never changed. An interrupted conversion goes on when it is called again.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from attn_plugins.data.convert import ade20k, cityscapes, kaggle, nyuv2, sbd, sunrgbd, toolbox
from attn_plugins.data.convert.plan import Converter, Options
from attn_plugins.data.convert.run import Done, carry_out, unfinished
from attn_plugins.progress import Progress

__all__ = ["CONVERTERS", "Done", "Options", "convert", "shipped_as", "unfinished"]

CONVERTERS: dict[str, tuple[Converter, ...]] = {
    "imagenet": (kaggle.KAGGLE,),
    "voc2012": (sbd.TRAINAUG,),
    "ade20k": (ade20k.CHALLENGE, ade20k.FULL),
    "cityscapes": (cityscapes.LABELS,),
    "nyuv2": (nyuv2.LABELED, toolbox.NYUV2),
    "kitti": (toolbox.KITTI,),
    "sunrgbd": (sunrgbd.RELEASE,),
}
"""{data set: the ways in which it is shipped}, the first that recognises a source converts it."""


def shipped_as(dataset: str, source: Path) -> Converter | None:
    """What recognises ``source`` as ``dataset`` the way it is shipped; None for no one."""
    return next((converter for converter in CONVERTERS.get(dataset, ()) if converter.recognises(source)), None)


def convert(
    dataset: str,
    source: str | Path,
    out: str | Path,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
) -> tuple[Done, tuple[str, ...]]:
    """Convert ``source`` into the data root ``out``, or go on with what an earlier call began.

    Args:
        dataset: a name in ``CONVERTERS``.
        source: what the data set's page ships, unpacked.
        out: the data root that the probe will be given: a folder that is empty or not there.
        options: what the user says beyond that.
        progress: called with (done, total) after each file.

    Returns:
        What was done, and notes on what the result differs in from what one may expect.

    Raises:
        ValueError: unknown data set or source, an option that is another converter's, or a file that cannot be used.
            What the source misses is said before anything is written.
        FileExistsError: ``out`` holds something else; nothing was changed.
    """
    source, out, options = Path(source), Path(out), options or Options()
    if dataset not in CONVERTERS:
        raise ValueError(f"no converter for {dataset!r}; there is one for {', '.join(CONVERTERS)}")
    if not source.exists():
        raise ValueError(f"{source} does not exist: name the folder that the data set was unpacked in")
    converter = shipped_as(dataset, source)
    if converter is None:
        known = "; or ".join(each.reads for each in CONVERTERS[dataset])
        raise ValueError(f"{source} is nothing that {dataset} is shipped as; it would hold {known}")
    foreign = [name for name, said in asdict(options).items() if said and name not in converter.options]
    if foreign:
        raise ValueError(f"--{foreign[0]} says nothing about {converter.reads}: leave it out")
    plan = converter.plan(source, options)
    return carry_out(converter, plan, source, out, options, progress), plan.notes
