"""Monocular-Depth-Estimation-Toolbox's folders of NYUv2 and KITTI, linked as the probes' configs read them.

    nyu/SCENE/..., nyu_train.txt, nyu_test.txt                       training and test scenes beside each other
    kitti/input/DATE/..., kitti/gt_depth/DRIVE/..., kitti_eigen_train.txt, kitti_eigen_test.txt

Its SUN RGB-D folder is the layout that the probes read, with ``SUNRGBD_val_splits.txt`` of its ``splits/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from attn_plugins.data.convert.pairs import listed, pair_links
from attn_plugins.data.convert.plan import Converter, Link, Options, Plan, lines
from attn_plugins.data.layouts import kitti, nyuv2

__all__ = ["KITTI", "NYUV2"]


@dataclass(frozen=True)
class _Folders:
    """Where the toolbox has a split and where the probes want it: list, folder of images, folder of depth maps."""

    listed_in: str
    images: str
    depths: str
    to_list: str
    to_images: str
    to_depths: str
    unmeasured: bool = False


_NYU = {
    split: _Folders(f"nyu_{name}.txt", "", "", to_list, below, below)
    for (split, (to_list, below)), name in zip(nyuv2.SPLITS.items(), ("train", "test"), strict=True)
}
_KITTI = {
    split: _Folders(f"kitti_eigen_{name}.txt", "input", "gt_depth", to_list, "", kitti.IMPROVED, name == "test")
    for (split, to_list), name in zip(kitti.SPLITS.items(), ("train", "test"), strict=True)
}


def _plan(splits: Mapping[str, _Folders], source: Path, options: Options) -> Plan:
    links, texts = list[Link](), dict[str, str]()
    for of in splits.values():
        pairs = listed(source / of.listed_in, source / of.images, source / of.depths, unmeasured=of.unmeasured)
        links += pair_links(pairs, of.to_images, of.to_depths)
        texts[of.to_list] = lines(pair.line for pair in pairs)
    return Plan(links, len(links), texts, tuple(source / of.listed_in for of in splits.values()))


def _converter(name: str, splits: Mapping[str, _Folders]) -> Converter:
    files = [of.listed_in for of in splits.values()]
    return Converter(
        name,
        f"Monocular-Depth-Estimation-Toolbox's folder ({' and '.join(files)})",
        lambda source: any((source / file).is_file() for file in files),
        partial(_plan, splits),
    )


NYUV2 = _converter("nyuv2-toolbox", _NYU)
KITTI = _converter("kitti-toolbox", _KITTI)
