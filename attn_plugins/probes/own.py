"""A user's own pictures as data sets of mmseg, and the transform that reads their masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, TRANSFORMS

from ..data.own import find_images, find_pairs, part_of
from ..data.own.scan import codes_of, read_labels
from .classification import ImageNetFolder

__all__ = ["LoadMask", "OwnClasses", "OwnDepth", "OwnMasks"]


class _Parted:
    """One part of a folder's images.

    Args:
        part: ``train`` or ``val``.
        share: of the images that are validated on, where neither lists nor folders tell.
        lists: files of the names of the training and the validation images.
        leave_out: names that are not used.
    """

    def __init__(
        self,
        part: str,
        share: float = 0.2,
        lists: Sequence[str] | None = None,
        leave_out: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        self.part, self.share, self.leave_out = part, share, frozenset(leave_out)
        self.lists = (lists[0], lists[1]) if lists else None
        super().__init__(**kwargs)

    def _chosen(self, names: Sequence[str]) -> set[str]:
        kept = [name for name in names if name not in self.leave_out]
        return set(part_of(kept, self.part, self.share, self.lists)[0])


@DATASETS.register_module()
class OwnMasks(_Parted, BaseSegDataset):
    """Images and masks in two folders, in pairs of the same name; see ``attn_plugins.data.own``.

    Args:
        data_prefix: ``img_path`` and ``seg_map_path``.
        metainfo: ``classes``, and a ``palette``.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """The pairs of the part."""
        pairs, _ = find_pairs(Path(self.data_prefix["img_path"]), Path(self.data_prefix["seg_map_path"]))
        chosen = self._chosen([pair.name for pair in pairs])
        return [
            {
                "img_path": str(pair.image),
                "seg_map_path": str(pair.target),
                "label_map": None,
                "reduce_zero_label": False,
                "seg_fields": [],
            }
            for pair in pairs
            if pair.name in chosen
        ]


@DATASETS.register_module()
class OwnDepth(_Parted, BaseDataset):
    """Images and depth maps in two folders, in pairs of the same name.

    Args:
        data_prefix: ``img_path`` and ``depth_map_path``.
    """

    METAINFO = {"classes": ("depth",), "palette": [(0, 0, 0)]}  # noqa: RUF012

    def load_data_list(self) -> list[dict[str, Any]]:
        """The pairs of the part."""
        pairs, _ = find_pairs(Path(self.data_prefix["img_path"]), Path(self.data_prefix["depth_map_path"]))
        chosen = self._chosen([pair.name for pair in pairs])
        return [
            {"img_path": str(pair.image), "depth_map_path": str(pair.target), "seg_fields": []}
            for pair in pairs
            if pair.name in chosen
        ]


@DATASETS.register_module()
class OwnClasses(_Parted, ImageNetFolder):
    """Images in a folder for each class, ``CLASS/…`` or ``train/CLASS/…`` and ``val/CLASS/…``.

    Args:
        data_prefix: ``img_path``.
        metainfo: ``classes``, the names of the folders.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """The images of the part."""
        files = find_images(Path(self.data_prefix["img_path"]))
        chosen = self._chosen(list(files))
        number = {name: label for label, name in enumerate(self.metainfo["classes"])}
        entries = [(path, name.split("/")[-2]) for name, path in files.items() if name in chosen]
        return [{"img_path": str(path), "gt_label": number[cls]} for path, cls in entries]


@TRANSFORMS.register_module()
class LoadMask(BaseTransform):
    """Reads ``seg_map_path`` as ``gt_seg_map``: ``[H, W]``, uint8, the number of the class, 255 where there is none.

    Args:
        values: the value, or the colour (R, G, B), of each class in the masks.
        void: values that are no class.

    Raises:
        ValueError: the mask cannot be read, or has another value; it is named.
    """

    def __init__(self, values: Sequence[Any], void: Sequence[Any] = ()) -> None:
        self.colours = not isinstance(values[0], int)
        codes = {self._code(value): number for number, value in enumerate(values)}
        codes |= {self._code(value): 255 for value in void}
        self.known = np.array(sorted(codes))
        self.labels = np.array([codes[code] for code in self.known.tolist()], np.uint8)

    def _code(self, value: Any) -> int:
        if not self.colours:
            return int(value)
        red, green, blue = value
        return (int(red) << 16) + (int(green) << 8) + int(blue)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pass an image without a mask."""
        path = results.get("seg_map_path")
        if path is None:
            return results
        stored, _ = read_labels(path)
        if (stored.ndim == 3) != self.colours:
            kinds = ("in colour", "of grey or palette values")
            raise ValueError(f"{path} is {kinds[stored.ndim == 2]}; expected a mask {kinds[not self.colours]}")
        codes = codes_of(stored)
        place = np.searchsorted(self.known, codes).clip(max=len(self.known) - 1)
        wrong = np.unique(codes[self.known[place] != codes])
        if len(wrong):
            told = [(c >> 16, c >> 8 & 255, c & 255) if self.colours else c for c in wrong[:5].tolist()]
            raise ValueError(f"{path} has values that are neither a class nor void: {told}; see `values` and `void`")
        results["gt_seg_map"] = self.labels[place]
        results["seg_fields"].append("gt_seg_map")
        return results
