"""Loading that names what is wrong with an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmengine.fileio
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import Registry
from mmseg.datasets.transforms.loading import InferencerLoader, LoadImageFromNDArray
from mmseg.registry import TRANSFORMS

from ..data.images import TurnedImageError, decode_image, opened

__all__ = ["LoadProbeImage"]


# mmseg's inference API looks for a transform that is called LoadImageFromFile, and puts the other two in its place. In
# this scope, the name is ours.
_SCOPE = Registry("transform", parent=ROOT_TRANSFORMS, scope="attn_plugins")
_SCOPE.register_module(module=InferencerLoader)
_SCOPE.register_module(module=LoadImageFromNDArray)


@_SCOPE.register_module(name="LoadImageFromFile")
@TRANSFORMS.register_module()
class LoadProbeImage(BaseTransform):
    """Reads ``img_path`` as ``img`` ``[H, W, 3]``, uint8, BGR, as mmcv's ``LoadImageFromFile``; see ``data.images``.

    Args:
        exif: turn the picture as its EXIF orientation says. With a mask or depth map beside it, sizes have to fit.
        skip_unreadable: draw another image instead of stopping; refused by data sets in test mode.
        backend_args: of mmengine's file backend, for files that are not local.

    Raises:
        ValueError: the image is missing or damaged, or turned and its labels are not; the file is named.
    """

    def __init__(
        self, exif: bool = True, skip_unreadable: bool = False, backend_args: dict[str, Any] | None = None
    ) -> None:
        self.exif = exif
        self.skip_unreadable = skip_unreadable
        self.backend_args = backend_args
        self.skipped: set[str] = set()

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        path = results["img_path"]
        try:
            content = self._content(path)
            image = decode_image(content, path, exif=self.exif, over=_labels(results))
        except TurnedImageError:
            raise
        except ValueError as error:
            if not self.skip_unreadable:
                raise ValueError(f"{error}. Replace it, or set skip_unreadable=True on LoadProbeImage") from error
            self.skipped.add(path)
            print_log(f"skipped: {error}; {len(self.skipped)} so far in this process", logger="current")
            return None
        results["img"] = np.ascontiguousarray(image[..., ::-1])
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results

    def _content(self, path: str) -> bytes:
        try:
            content: bytes = mmengine.fileio.get(path, backend_args=self.backend_args)
            return content
        except OSError as error:
            raise ValueError(f"cannot read image {path}: {error}") from error


def _labels(results: dict[str, Any]) -> Any:
    """What gives the size of the mask or depth map of an image; None for an image without."""
    path = results.get("seg_map_path") or results.get("depth_map_path")
    if path is None:
        return None

    def size() -> tuple[int, int]:
        width, height = opened(Path(path), path).size
        return height, width

    return size
