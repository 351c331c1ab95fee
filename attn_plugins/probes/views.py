"""Fixed views of images, whose features are computed once and kept: the fast probe's data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop
from mmengine.structures import PixelData
from mmseg.datasets.transforms import PackSegInputs
from mmseg.registry import DATASETS, HOOKS, TRANSFORMS
from mmseg.structures import SegDataSample
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..files import sha256
from ..progress import printed_progress
from .backbone import FrozenViT
from .ownership import probe_model
from .store import FeatureStore, key_of

__all__ = ["VIEWS", "FeatureStoreHook", "StoredViews"]

VIEWS: Sequence[tuple[float, bool]] = (
    (1.0, False),
    (1.0, True),
    (1.5, False),
    (0.75, True),
    (1.5, True),
    (0.75, False),
)
"""(factor on the scale, mirrored): ``views=K`` takes the first K."""


@DATASETS.register_module()
class StoredViews(Dataset[dict[str, Any]]):
    """A segmentation data set whose images are given as features of fixed views, from a ``FeatureStore``.

    ``fill`` computes what is missing; only then are there entries to draw. An entry's ``inputs`` are the maps of the
    backbone's layers, ``[C of all layers, h, w]``, float32, its ``data_samples`` what mmseg packs.

    Args:
        dataset: config of the data set, with the transforms of its labels alone as pipeline.
        image: config of the transform that reads an image.
        scale: (longest, shortest) side that images are resized to, their ratio kept; None for their own size.
        views: how many of ``VIEWS``.
        labels: labels a side of each patch, the nearest ones; None for all of the image's pixels, to be compared with.
        store: folder of the features.

    Raises:
        ValueError: more views than there are.
    """

    of = VIEWS
    # Images of one size that are taken through the backbone together.
    batch = 4
    # Where an image's labels are, what they are called once they are read, and what they are kept as.
    target: tuple[str, str, Any] = ("seg_map_path", "gt_seg_map", np.uint8)

    def __init__(
        self,
        dataset: dict[str, Any],
        image: dict[str, Any],
        scale: tuple[int, int] | None,
        views: int = 1,
        labels: int | None = None,
        store: str = "work_dirs/features",
    ) -> None:
        if not 1 <= views <= len(self.of):
            raise ValueError(f"views={views}; there are 1 to {len(self.of)} fixed views")
        self.dataset = DATASETS.build(dataset)
        self.image = TRANSFORMS.build(image)
        self.scale = None if scale is None else (int(scale[0]), int(scale[1]))
        self.views = self.of[:views]
        self.labels = labels
        self.store = FeatureStore(store)
        self.told = json.loads(json.dumps(dataset.get("pipeline", []), default=str))
        self.keys: list[list[str]] = []
        self.label_keys: list[str] = []

    @property
    def metainfo(self) -> dict[str, Any]:
        """The data set's."""
        return dict(self.dataset.metainfo)

    def full_init(self) -> None:
        """Read the list of images; mmengine calls it."""
        self.dataset.full_init()

    def __len__(self) -> int:
        return len(self.dataset) * len(self.views)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One view.

        Raises:
            ValueError: its features are not there.
        """
        if not self.keys:
            raise ValueError("StoredViews has no features yet: custom_hooks needs dict(type='FeatureStoreHook')")
        number, view = divmod(int(index), len(self.views))
        # One tensor: mmengine's collating takes lists apart.
        maps = torch.cat([self._map(self._kept(key)) for key in self.keys[int(index)]])
        if self.labels is not None:
            return {"inputs": maps, "data_samples": self._sample(self._kept(self.label_keys[int(index)])["labels"])}
        results = self.dataset[number]
        results.pop("img", None)  # whose features are given in its place
        results["ori_shape"] = results[self.target[1]].shape[:2]
        results["img_shape"] = self._resized(results["ori_shape"], self.views[view][0])
        return {"inputs": maps, **PackSegInputs().transform(results)}

    def _sample(self, labels: Tensor) -> SegDataSample:
        return SegDataSample(gt_sem_seg=PixelData(data=labels[None].long()))

    @staticmethod
    def _map(kept: Mapping[str, Tensor]) -> Tensor:
        """A layer's ``[C, h, w]``; ``[2C, h, w]`` where [CLS] is kept beside the patches."""
        patches = kept["patches"].float()
        return torch.cat([patches, kept["cls"].float()[:, None, None].expand_as(patches)]) if "cls" in kept else patches

    def _kept(self, key: str) -> dict[str, Tensor]:
        found = self.store.get(key)
        if found is None:
            raise ValueError(f"{self.store.path(key)} is gone or damaged since this probe began: start it again")
        return found

    def _resized(self, shape: tuple[int, int], factor: float) -> tuple[int, int]:
        height, width = shape
        if self.scale is None:
            return height, width
        longest, shortest = (side * factor for side in self.scale)
        ratio = min(longest / max(shape), shortest / min(shape))
        # As mmcv rounds.
        return int(height * ratio + 0.5), int(width * ratio + 0.5)

    @torch.no_grad()
    def fill(self, backbone: FrozenViT, mean: Tensor, std: Tensor) -> int:
        """Compute the features that the store lacks; processes share the work.

        Args:
            backbone: whose features; on its device.
            mean: ``[3, 1, 1]``, RGB, 0 to 255.
            std: as ``mean``.

        Returns:
            How many views this process has computed.
        """
        rank, world = get_dist_info()
        show = printed_progress("features") if rank == 0 else None
        keys: list[list[str]] = []
        waiting: dict[tuple[int, ...], list[tuple[list[str], Tensor]]] = {}
        computed = 0
        for number in range(len(self.dataset)):
            info = self.dataset.get_data_info(number)
            image = sha256(info["img_path"])
            mine = [self._keys(image, view, backbone, mean, std) for view in self.views]
            keys += mine
            if number % world == rank:
                missing = [v for v, names in enumerate(mine) if not all(map(self.store.intact, names))]
                pixels = self._pixels(number, info) if missing else None
                for view in missing:
                    inputs = _normalised(self._view(pixels, *self.views[view]), mean, std)
                    group = waiting.setdefault(tuple(inputs.shape), [])
                    group.append((mine[view], inputs))
                    if len(group) == self.batch:
                        computed += self._compute(backbone, waiting.pop(tuple(inputs.shape)))
            if show is not None:
                show(number + 1, len(self.dataset))
        computed += sum(self._compute(backbone, group) for group in waiting.values())
        barrier()
        if self.labels is not None:
            self.label_keys = [self._put_labels(index, keys[index]) for index in range(len(self))]
        self.keys = keys
        return computed

    def _put_labels(self, index: int, keys: Sequence[str]) -> str:
        """The key of a training view's labels, which are written if they are not there."""
        number, view = divmod(index, len(self.views))
        info = self.dataset.get_data_info(number)
        reading = [self.told, info.get("label_map"), info.get("reduce_zero_label"), self.dataset.metainfo["classes"]]
        path, name, kind = self.target
        key = key_of(features=list(keys), mask=sha256(info[path]), reading=reading, side=self.labels)
        if not self.store.intact(key):
            labels = self.dataset[number][name]
            shape = [(self.labels or 1) * side for side in self._kept(keys[0])["patches"].shape[1:]]
            labels = _nearest(labels[:, ::-1] if self.views[view][1] else labels, shape)
            self.store.put(key, {"labels": torch.from_numpy(np.ascontiguousarray(labels, dtype=kind))})
        return key

    def _pixels(self, number: int, info: dict[str, Any]) -> NDArray[Any]:
        """An image as it is read, ``[H, W, 3]``, BGR."""
        pixels: NDArray[Any] = self.image.transform(info)["img"]
        return pixels

    def _reading(self) -> dict[str, Any]:
        """What decides the pixels of a view, beside the file and the view itself."""
        return {"exif": bool(getattr(self.image, "exif", True)), "scale": self.scale and list(self.scale)}

    def _keys(self, image: str, view: tuple[float, bool], backbone: FrozenViT, mean: Tensor, std: Tensor) -> list[str]:
        told = backbone.identity
        common = {
            "image": image,
            **self._reading(),
            "view": list(view),
            "normalised": [*mean.flatten().tolist(), *std.flatten().tolist()],
            "backbone": told.get("digest") or told["sha256"],
            **{name: told[name] for name in ("norm", "cls_token", "autocast")},
        }
        return [key_of(layer=layer, **common) for layer in backbone.layers]

    def _view(self, pixels: Any, factor: float, mirrored: bool) -> Any:
        height, width = self._resized(pixels.shape[:2], factor)
        resized = pixels if pixels.shape[:2] == (height, width) else mmcv.imresize(pixels, (width, height))
        return resized[:, ::-1] if mirrored else resized

    def _compute(self, backbone: FrozenViT, group: Sequence[tuple[list[str], Tensor]]) -> int:
        maps = backbone(torch.stack([inputs for _, inputs in group]))
        for index, (names, _) in enumerate(group):
            for name, layer in zip(names, maps, strict=True):
                self.store.put(name, self._tensors(backbone.cls_token, layer, index))
        return len(group)

    def _tensors(self, cls_token: str, layer: Any, index: int) -> dict[str, Tensor]:
        """What is kept of a layer of one image."""
        if cls_token == "concat":  # the same at every patch: once
            patches, cls = layer[index].chunk(2)
            return {"patches": _half(patches), "cls": _half(cls[:, 0, 0])}
        return {"patches": _half(layer[index])}


def _normalised(bgr: Any, mean: Tensor, std: Tensor) -> Tensor:
    rgb = torch.from_numpy(np.ascontiguousarray(bgr[..., ::-1].transpose(2, 0, 1))).to(mean.device)
    return (rgb.float() - mean) / std


def _half(features: Tensor) -> Tensor:
    """In half precision, which is finer than what a head can tell apart; as they are beyond its range."""
    half = features.half()
    return half if bool(half.isfinite().all()) else features.float()


def _nearest(labels: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    rows, columns = (
        ((np.arange(to) + 0.5) * size / to).astype(int) for size, to in zip(labels.shape[:2], shape, strict=True)
    )
    near: NDArray[Any] = labels[rows[:, None], columns]
    return near


@HOOKS.register_module()
class FeatureStoreHook(Hook):
    """Computes the features of every split before the first iteration."""

    def before_run(self, runner: Any) -> None:
        """Fill the ``StoredViews`` of the loops that are there."""
        model = probe_model(runner)
        for role in ("train", "val", "test"):
            loop = getattr(runner, f"_{role}_loop")
            data = loop.dataloader.dataset if isinstance(loop, BaseLoop) else None
            if isinstance(data, StoredViews):
                computed = data.fill(model.backbone, model.data_preprocessor.mean, model.data_preprocessor.std)
                runner.logger.info(
                    f"{role}: features of {len(data)} views, {computed} computed now, in {data.store.folder}"
                )
