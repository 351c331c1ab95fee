"""The splits that the paper's columns are measured on: how many images the official releases have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .record import DataSplit

__all__ = ["OFFICIAL", "TRAINAUG", "Official", "variant"]


@dataclass(frozen=True)
class Official:
    """A split as its release has it.

    Attributes:
        dataset: class of the data set in the config.
        split: its split file, or the folder of its images.
        images: how many.
    """

    dataset: str
    split: str
    images: int


_NYU_TRAIN = Official("DepthSplit", "nyudepthv2_train_files_with_gt.txt", 24_231)
_SUN_TEST = Official("DepthSplit", "SUNRGBD_val_splits.txt", 5_050)

OFFICIAL: Mapping[str, Mapping[str, Official]] = {
    "imagenet": {
        "train": Official("ImageNetFolder", "train", 1_281_167),
        "val": Official("ImageNetFolder", "meta/val.txt", 50_000),
    },
    "voc2012": {
        "train": Official("PascalVOCDataset", "ImageSets/Segmentation/train.txt", 1_464),
        "val": Official("PascalVOCDataset", "ImageSets/Segmentation/val.txt", 1_449),
    },
    "ade20k": {
        "train": Official("ADE20KDataset", "images/training", 20_210),
        "val": Official("ADE20KDataset", "images/validation", 2_000),
    },
    "cityscapes": {
        "train": Official("CityscapesDataset", "leftImg8bit/train", 2_975),
        "val": Official("CityscapesDataset", "leftImg8bit/val", 500),
    },
    "nyuv2": {"train": _NYU_TRAIN, "val": Official("DepthSplit", "nyudepthv2_test_files_with_gt.txt", 654)},
    # Of Eigen's 697 test images, 652 have improved ground truth.
    "kitti": {
        "train": Official("DepthSplit", "eigen_train_files_with_gt.txt", 23_158),
        "val": Official("DepthSplit", "eigen_test_files_with_gt.txt", 652),
    },
    "sunrgbd": {"train": _NYU_TRAIN, "val": _SUN_TEST},
    "sunrgbd_train": {"train": Official("DepthSplit", "SUNRGBD_train_splits.txt", 5_285), "val": _SUN_TEST},
}
"""{probe: {``train`` or ``val``: split}}; a test is on the validation split."""

TRAINAUG = 10_582
"""Images of VOC's augmented training set, ``trainaug.txt``."""


def variant(probe: str, data: Mapping[str, DataSplit]) -> str:
    """What distinguishes the data that a probe used from its column's: "train: trainaug, 10582"; "" for nothing."""
    told = {}
    for role, used in data.items():
        of = "train" if role == "train" else "val"
        expected = OFFICIAL[probe][of]
        if (used.dataset, used.split, used.images) != (expected.dataset, expected.split, expected.images):
            name = used.split.rsplit("/", 1)[-1].removesuffix(".txt")
            kind = "" if used.dataset == expected.dataset else f" of {used.dataset}"
            told[of] = f"{of}: {name}{kind}, {used.images}"
    return "; ".join(told[of] for of in ("train", "val") if of in told)
