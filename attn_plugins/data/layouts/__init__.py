"""Writers of the built-in scenes in the layouts of real data sets, by the name that the probes use.

Each is ``writer(root, num_train, num_val, seed, size, *, progress=None) -> data root``:

    root: folder that the official archives would be unpacked in
    num_train, num_val: scenes in each split, at least 1 (ImageNet: 20, one a class)
    seed: of the scenes; the first n stay the same when more are asked for
    size: (H, W) in pixels
    progress: called with (done, total) after each scene; ``printed_progress`` makes one

It returns the data root that a probe's config takes: ``root/VOCdevkit/VOC2012`` for VOC,
``root/ADEChallengeData2016`` for ADE20K, ``root`` for the others. The data root appears complete or not at all.
One that was written with the same arguments is used as it is; anything else there is a FileExistsError, and nothing
changes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attn_plugins.data.layouts.ade20k import write_ade20k
from attn_plugins.data.layouts.cityscapes import write_cityscapes
from attn_plugins.data.layouts.imagenet import write_imagenet
from attn_plugins.data.layouts.kitti import write_kitti
from attn_plugins.data.layouts.nyuv2 import write_nyuv2
from attn_plugins.data.layouts.sunrgbd import write_sunrgbd
from attn_plugins.data.layouts.voc import write_voc
from attn_plugins.progress import printed_progress

__all__ = ["LAYOUTS", "printed_progress"]

LAYOUTS: dict[str, Callable[..., Path]] = {
    "voc2012": write_voc,
    "ade20k": write_ade20k,
    "cityscapes": write_cityscapes,
    "nyuv2": write_nyuv2,
    "kitti": write_kitti,
    "sunrgbd": write_sunrgbd,
    "imagenet": write_imagenet,
}
