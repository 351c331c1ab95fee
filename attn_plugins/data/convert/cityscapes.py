"""Cityscapes as leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip unpack: label ids become the 19 train ids.

Pixel by pixel that is what cityscapesScripts' ``createTrainIdLabelImgs`` draws: what has a negative id is drawn in
neither picture, and everything else that is none of the 19 classes is 255.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from attn_plugins.data.convert.labels import exchanged, present, require
from attn_plugins.data.convert.plan import Converter, Link, Options, Plan, Write
from attn_plugins.data.layouts.cityscapes import LABEL_IDS

__all__ = ["LABELS"]

_IMAGE, _LABELS, _TRAIN = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
_LAST_ID = 33
_TABLE = np.full(256, -1, np.int16)
_TABLE[: _LAST_ID + 1] = 255
_TABLE[list(LABEL_IDS)] = range(len(LABEL_IDS))


def _masks(source: Path) -> list[Path]:
    return [mask for split in ("train", "val") for mask in present(source / "gtFine" / split, f"*/*{_LABELS}")]


def _recognises(source: Path) -> bool:
    there = (source / "leftImg8bit").is_dir()
    return there and any(not mask.with_name(mask.name.replace(_LABELS, _TRAIN)).is_file() for mask in _masks(source))


def _plan(source: Path, options: Options) -> Plan:
    items: list[Link | Write] = []
    masks = []
    for split in ("train", "val"):
        images = present(source / "leftImg8bit" / split, f"*/*{_IMAGE}")
        if not images:
            raise ValueError(f"{source / 'leftImg8bit' / split} holds no CITY/*{_IMAGE}: unpack both archives there")
        for image in images:
            below = f"{split}/{image.parent.name}"
            stem = image.name.removesuffix(_IMAGE)
            mask = source / "gtFine" / below / f"{stem}{_LABELS}"
            masks.append(mask)
            items.append(Link(f"leftImg8bit/{below}/{image.name}", str(image)))
            items.append(Write(f"gtFine/{below}/{stem}{_TRAIN}", partial(exchanged, mask, _TABLE, "label ids (0..33)")))
    require(masks, "masks of label ids")
    return Plan(items, len(items))


LABELS = Converter(
    "cityscapes-label-ids",
    f"leftImg8bit/ and gtFine/ with CITY/*{_LABELS} that have no *{_TRAIN}",
    _recognises,
    _plan,
)
