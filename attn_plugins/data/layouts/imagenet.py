"""ImageNet-1K: a folder of JPEG images per class, and localisation boxes.

    train/n01440764/n01440764_1.JPEG
    val/n01440764/ILSVRC2012_val_00000001.JPEG          or, as the archive unpacks, val/ILSVRC2012_val_00000001.JPEG
    meta/val.txt                                        lines "FILE CLASS", CLASS counting sorted folders from 0
    Annotations/CLS-LOC/train/n01440764/n01440764_1.xml, Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml

The labels of the twenty object classes are ImageNet's first twenty synsets, so that indices agree with the full set.
An image's boxes are those of its own class.
"""

from __future__ import annotations

from pathlib import Path

from attn_plugins.data.layouts.common import Progress, build_root, samples, save_image, save_lines
from attn_plugins.data.layouts.voc import box_xml

__all__ = ["WNIDS", "write_imagenet"]

# fmt: off
WNIDS = (
    "n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331", "n01498041", "n01514668",
    "n01514859", "n01518878", "n01530575", "n01531178", "n01532829", "n01534433", "n01537544", "n01558993",
    "n01560419", "n01580077", "n01582220", "n01592084",
)
# fmt: on


def write_imagenet(
    root: str | Path,
    num_train: int = 400,
    num_val: int = 100,
    seed: int = 0,
    size: tuple[int, int] = (256, 256),
    *,
    flat_val: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write scenes below ``root``, as many of each class; see ``attn_plugins.data.layouts`` for arguments and errors.

    Args:
        flat_val: leave the validation images in one folder, labelled by meta/val.txt alone.

    Raises:
        ValueError: too few scenes for every class to have one in both splits.
    """
    if min(num_train, num_val) < len(WNIDS):
        raise ValueError(f"num_train={num_train}, num_val={num_val}: each must be at least {len(WNIDS)}, one a class")
    parameters = {
        "num_train": num_train, "num_val": num_val, "seed": seed, "size": list(size), "flat_val": flat_val
    }  # fmt: skip

    def fill(folder: Path) -> None:
        labels: list[str] = []
        for split, number, scene in samples(num_train, num_val, seed, size, progress=progress, balanced=True):
            wnid = WNIDS[scene.label - 1]
            if split == "train":
                name = f"{wnid}_{number // len(WNIDS) + 1}"
                image, boxes = f"train/{wnid}/{name}.JPEG", f"train/{wnid}/{name}.xml"
            else:
                name = f"ILSVRC2012_val_{number + 1:08d}"
                image, boxes = f"val/{name}.JPEG" if flat_val else f"val/{wnid}/{name}.JPEG", f"val/{name}.xml"
                labels.append(f"{name}.JPEG {scene.label - 1}")
            save_image(folder / image, scene.image)
            annotation = folder / "Annotations" / "CLS-LOC" / boxes
            annotation.parent.mkdir(parents=True, exist_ok=True)
            own = [(wnid, box) for box in scene.boxes if box.label == scene.label]
            annotation.write_bytes(box_xml(wnid, name, size, own))
        save_lines(folder / "meta" / "val.txt", labels)

    return build_root(root, "imagenet", parameters, fill)
