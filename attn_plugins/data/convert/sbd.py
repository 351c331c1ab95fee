"""PASCAL VOC 2012 with the Semantic Boundaries Dataset (SBD): the augmented training set, 10,582 images.

    VOCdevkit/VOC2012/...                                            of VOCtrainval_11-May-2012.tar
    benchmark_RELEASE/dataset/{cls/NAME.mat,train.txt,val.txt}       of benchmark.tgz

``trainaug.txt`` has VOC's training images and all of SBD's that are not in VOC's validation set; where VOC has a mask
of its own, which is finer and has a void border, it is taken: the set of mmseg's ``voc_aug.py`` and its configs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from attn_plugins.data.convert.labels import present, require
from attn_plugins.data.convert.mat import loaded
from attn_plugins.data.convert.plan import Converter, Link, Options, Plan, Write, as_png, inside, lines
from attn_plugins.data.layouts.voc import VOC_CLASSES, voc_palette
from attn_plugins.files import read_lines

__all__ = ["TRAINAUG"]

_VOC = "VOCdevkit/VOC2012"
_SBD = ("benchmark_RELEASE/dataset", "VOCdevkit/VOCaug/dataset")  # as it unpacks; where mmseg wants it
_SETS = "ImageSets/Segmentation"
_FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationObject", "Annotations")


def _sbd(source: Path) -> Path | None:
    return next((source / below for below in _SBD if (source / below / "cls").is_dir()), None)


def _recognises(source: Path) -> bool:
    return (source / _VOC / "SegmentationClass").is_dir() and _sbd(source) is not None


def _names(listed_in: Path) -> list[str]:
    if not listed_in.is_file():
        raise ValueError(f"{listed_in} does not exist: unpack the archive again")
    return [inside(line.strip(), listed_in) for line in read_lines(listed_in) if line.strip()]


def _mask(path: Path) -> bytes:
    """The class ids of one of SBD's files, as VOC stores its own."""
    content = loaded(path)
    try:
        ids = np.asarray(content["GTcls"][0]["Segmentation"][0])
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path} has no GTcls.Segmentation: use SBD's cls/, not inst/ or bndry/") from error
    if ids.ndim != 2 or ids.min() < 0 or ids.max() > len(VOC_CLASSES):
        raise ValueError(f"{path}: GTcls.Segmentation {ids.shape} from {ids.min()} to {ids.max()} are no ids 0..20")
    return as_png(ids.astype(np.uint8), voc_palette())


def _plan(source: Path, options: Options) -> Plan:
    voc, sbd = source / _VOC, _sbd(source)
    assert sbd is not None, "it was recognised"
    lists = [voc / _SETS / "train.txt", voc / _SETS / "val.txt", sbd / "train.txt", sbd / "val.txt"]
    train, val, *more = (_names(path) for path in lists)
    augmented = sorted({*train, *(name for names in more for name in names)} - set(val))
    require([voc / "JPEGImages" / f"{name}.jpg" for name in [*augmented, *val]], "listed images")
    own = {path.stem for path in present(voc / "SegmentationClass", "*.png")}
    require([voc / "SegmentationClass" / f"{name}.png" for name in [*train, *val]], "masks of VOC")
    require([sbd / "cls" / f"{name}.mat" for name in augmented if name not in own], "masks of SBD")
    items: list[Link | Write] = [
        Link(f"{folder}/{path.name}", str(path)) for folder in _FOLDERS for path in present(voc / folder, "*.*")
    ]
    for name in augmented:
        target = f"SegmentationClassAug/{name}.png"
        if name in own:
            items.append(Link(target, str(voc / "SegmentationClass" / f"{name}.png")))
        else:
            items.append(Write(target, partial(_mask, sbd / "cls" / f"{name}.mat")))
    texts = {f"{_SETS}/{name}.txt": lines(names) for name, names in (("train", train), ("val", val))}
    note = (
        f"{len(augmented):,} images in trainaug.txt, {sum(name not in own for name in augmented):,} of them with SBD's "
        "masks; train with train_dataloader.dataset.ann_file=ImageSets/Segmentation/trainaug.txt "
        "train_dataloader.dataset.data_prefix.seg_map_path=SegmentationClassAug"
    )
    return Plan(items, len(items), {**texts, f"{_SETS}/trainaug.txt": lines(augmented)}, tuple(lists), (note,))


TRAINAUG = Converter(
    "voc2012-sbd",
    f"{_VOC}/ beside SBD, {_SBD[0]}/cls/*.mat (or {_SBD[1]}); VOC alone needs no conversion",
    _recognises,
    _plan,
)
