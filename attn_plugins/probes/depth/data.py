"""Depth data sets by split files, and transforms that keep image and depth aligned."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmseg.registry import DATASETS, TRANSFORMS

from ...files import read_lines
from .metric import scaled_crop

__all__ = ["BorderCrop", "ColorAugment", "DepthSplit", "KBCrop", "LoadDepth", "RandomDepthRotate"]


@DATASETS.register_module()
class DepthSplit(BaseDataset):
    """Image and depth pairs by a split file of lines ``IMAGE DEPTH [FOCAL]``: BTS's NYUv2 and KITTI, SUN RGB-D.

    Args:
        ann_file: the split file.
        data_prefix: ``img_path`` and ``depth_map_path``, the folders that its paths are below.
        replace: (old, new) pairs applied to depth paths, for KITTI's raw ground truth. Lines without a depth path
            are then looked up by KITTI's own naming: DRIVE/proj_depth/NEW/CAMERA/NUMBER.png.
        kwargs: of mmengine's ``BaseDataset``.

    Raises:
        ValueError: an empty split, or a line that is not IMAGE DEPTH [FOCAL].
    """

    METAINFO: ClassVar[dict[str, Any]] = {"classes": ("depth",), "palette": [(0, 0, 0)]}

    def __init__(self, replace: tuple[tuple[str, str], ...] = (), **kwargs: Any) -> None:
        self.replace = replace
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry per line that has a depth map; how many have none (``None``) is logged."""
        entries, without = [], 0
        for number, line in enumerate(read_lines(self.ann_file), 1):
            if not line.strip():
                continue
            words = line.split()
            if len(words) not in (2, 3):
                raise ValueError(f"{self.ann_file}:{number}: expected 'IMAGE DEPTH [FOCAL]', got {line!r}")
            # BTS's paths begin with a slash, and are below the folder all the same.
            image, depth = (word.lstrip("/") for word in words[:2])
            for old, new in self.replace:
                depth = depth.replace(old, new) if depth != "None" else self._raw_map(image, new)
            if depth == "None":
                without += 1
                continue
            entries.append(
                {
                    "img_path": str(Path(self.data_prefix["img_path"]) / image),
                    "depth_map_path": str(Path(self.data_prefix["depth_map_path"]) / depth),
                    "seg_fields": [],
                }
            )
        if not entries:
            raise ValueError(f"{self.ann_file} names no image with depth: the split is empty")
        if without:
            note = f"{self.ann_file}: {len(entries)} images, {without} more have no ground truth"
            if self.replace:
                note += (
                    ". KITTI's archive of raw maps lacks them; projected from the drives' velodyne_points (as by "
                    f"monodepth2's export_gt_depth.py) into {self.data_prefix['depth_map_path']}, they are found"
                )
            print_log(note, logger="current")
        return entries

    def _raw_map(self, image: str, kind: str) -> str:
        """The raw map of a line that names none, if it is there: of ``DATE/DRIVE/CAMERA/data/NUMBER.png``."""
        parts = Path(image).parts
        if len(parts) != 5:
            return "None"
        path = f"{parts[1]}/proj_depth/{kind}/{parts[2]}/{parts[4]}"
        return path if (Path(self.data_prefix["depth_map_path"]) / path).is_file() else "None"


@TRANSFORMS.register_module()
class LoadDepth(BaseTransform):
    """Loads ``depth_map_path`` as ``gt_depth_map``: float32 metres, 0 = not measured; passes an image without one.

    Args:
        scale: stored units per metre (1000, KITTI 256).
        rotated: the 16 bits are rotated left by 3, as SUN RGB-D's files are.

    Raises:
        ValueError: unreadable, or not a 16-bit grey image; the file is named.
    """

    def __init__(self, scale: float, rotated: bool = False) -> None:
        self.scale = scale
        self.rotated = rotated

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        path = results.get("depth_map_path")
        if path is None:
            return results
        stored: Any = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        if stored is None or stored.dtype != np.uint16 or stored.ndim != 2:
            what = "unreadable" if stored is None else f"{stored.dtype} {stored.shape}"
            raise ValueError(f"{path} is {what}; expected a 16-bit grey PNG")
        if self.rotated:
            stored = (stored >> 3) | (stored << 13)
        results["gt_depth_map"] = stored.astype(np.float32) / np.float32(self.scale)
        results["seg_fields"].append("gt_depth_map")
        return results


class _Crop(BaseTransform):
    """Crops image and depth to ``box(height, width) -> (top, bottom, left, right)``.

    The crops belong to the data sets: a picture without a depth map, to be predicted, stays whole.
    """

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        raise TypeError(f"{type(self).__name__} has no box")

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if "gt_depth_map" not in results:
            return results
        height, width = results["img"].shape[:2]
        top, bottom, left, right = self.box(height, width)
        for key in ("img", "gt_depth_map"):
            results[key] = np.ascontiguousarray(results[key][top:bottom, left:right])
        # Predictions are compared at the crop's size.
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class BorderCrop(_Crop):
    """NYUv2's white border cut off: rows 45 to 472, columns 43 to 608 of 480x640 (BTS); scaled with the image.

    Args:
        crop: top, bottom, left, right of 480x640.

    Raises:
        ValueError: the image has another shape than 3:4.
    """

    def __init__(self, crop: tuple[int, int, int, int] = (45, 472, 43, 608)) -> None:
        self.crop = crop

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        return scaled_crop(self.crop, height, width)


@TRANSFORMS.register_module()
class KBCrop(_Crop):
    """KITTI benchmark crop: the lowest ``height`` rows, the middle ``width`` columns.

    Raises:
        ValueError: the image is smaller.
    """

    def __init__(self, height: int = 352, width: int = 1216) -> None:
        self.size = (height, width)

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        if height < self.size[0] or width < self.size[1]:
            raise ValueError(f"image of {height}x{width} is smaller than the KITTI crop {self.size[0]}x{self.size[1]}")
        top, left = height - self.size[0], (width - self.size[1]) // 2
        return top, height, left, left + self.size[1]


@TRANSFORMS.register_module()
class RandomDepthRotate(BaseTransform):
    """Rotates image (bilinear) and depth (nearest) by the same angle; what comes from outside is 0.

    Args:
        prob: probability.
        degree: angles are uniform in ±degree.
    """

    def __init__(self, prob: float = 0.5, degree: float = 2.5) -> None:
        self.prob = prob
        self.degree = degree

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if np.random.rand() < self.prob:
            angle = np.random.uniform(-self.degree, self.degree)
            results["img"] = mmcv.imrotate(results["img"], angle)
            results["gt_depth_map"] = mmcv.imrotate(results["gt_depth_map"], angle, interpolation="nearest")
        return results


@TRANSFORMS.register_module()
class ColorAugment(BaseTransform):
    """Gamma, brightness and a factor per colour channel, on 0-255 as DINOv2's depth toolbox does; clipped.

    Args:
        prob: probability.
        gamma: range of the exponent.
        brightness: range of the factor.
        color: range of the channels' factors.
    """

    def __init__(
        self,
        prob: float = 0.5,
        gamma: tuple[float, float] = (0.9, 1.1),
        brightness: tuple[float, float] = (0.9, 1.1),
        color: tuple[float, float] = (0.9, 1.1),
    ) -> None:
        self.prob = prob
        self.gamma = gamma
        self.brightness = brightness
        self.color = color

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if np.random.rand() < self.prob:
            image = results["img"].astype(np.float32) ** np.random.uniform(*self.gamma)
            image *= np.random.uniform(*self.brightness) * np.random.uniform(*self.color, size=3)
            results["img"] = np.clip(image, 0, 255).astype(np.float32)
        return results
