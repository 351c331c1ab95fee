"""The fast probes: linear heads on features that were computed once. Not the published protocol, and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.registry import MODELS
from torch import Tensor

from .class_views import StoredClasses
from .classification import ClassifierGrid, ResizeCenterCrop
from .depth import DepthProbe, StoredDepth
from .segmentation import LinearProbe
from .views import StoredViews

__all__ = [
    "ClassFeaturePreProcessor",
    "FastClassifierGrid",
    "FastDepthProbe",
    "FastLinearProbe",
    "FeaturePreProcessor",
    "make_fast",
]

_Change = Callable[[Config, int, "Sequence[int] | None", str], dict[str, Any]]

_READS_IMAGES = ("LoadImageFromFile", "LoadProbeImage")
_NOT_LABELS = (*_READS_IMAGES, "Resize", "PackSegInputs")
_OF_DEPTH = (*_READS_IMAGES, "LoadDepth", "BorderCrop", "KBCrop")
_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def make_fast(config: Config, views: int = 1, scale: Sequence[int] | None = None, store: str | None = None) -> None:
    """Change a probe's config, in place, into the fast probe on the same data.

    Training and validation read stored features of fixed views; schedule, losses, total batch, metrics and hooks stay.
    What a checkpoint of it holds is the same head, which predicts from images as any other does. Depth is taken of
    whole images at their own size, and validated without the mirrored one; classes are those of centre crops.

    Args:
        config: of a probe whose model is a ``LinearProbe``, a ``DepthProbe`` or a ``ClassifierGrid``.
        views: fixed views of each training image, of ``attn_plugins.probes.views.VIEWS``.
        scale: (longest, shortest) side that images are resized to, of segmentation; by default the config's.
        store: folder of the features.

    Raises:
        ValueError: another kind of probe, or more views than it has.
    """
    kinds: dict[str, tuple[_Change, type[StoredViews]]] = {
        "LinearProbe": (_fast_masks, StoredViews),
        "DepthProbe": (_fast_depth, StoredDepth),
        "ClassifierGrid": (_fast_classes, StoredClasses),
    }
    if config.model.type not in kinds:
        raise ValueError(f"the fast probe trains the heads of {', '.join(kinds)}, and this is a {config.model.type}")
    change, data = kinds[config.model.type]
    if not 1 <= views <= len(data.of):
        raise ValueError(f"views={views}; there are 1 to {len(data.of)} fixed views")
    model = change(config, views, scale, store or "work_dirs/features")
    for loader in _LOADERS:
        # Mapped files are read in microseconds; and only this process knows the features.
        config.merge_from_dict({loader: {"num_workers": 0, "persistent_workers": False}})
    config.merge_from_dict({"model": model, "fast": {"views": views, "scale": scale}})
    config.pop("tta_pipeline", None)
    config.pop("tta_model", None)
    config.custom_hooks = [*config.custom_hooks, {"type": "FeatureStoreHook"}]


def _fast_masks(config: Config, views: int, scale: Sequence[int] | None, store: str) -> dict[str, Any]:
    image, resize, labels = _parts(config.val_dataloader.dataset.pipeline)
    scale = tuple(scale or resize["scale"])
    for loader in _LOADERS:
        training = loader == "train_dataloader"
        more = {"image": image, "scale": scale, "labels": 4 if training else None}
        _wrap(config, loader, "StoredViews", labels, {**more, "views": views if training else 1, "store": store})
    for transform in config.test_pipeline:
        if transform["type"] == "Resize":
            transform["scale"] = scale
    return {
        "type": "FastLinearProbe",
        "data_preprocessor": {"type": "FeaturePreProcessor"},
        "test_cfg": {"mode": "whole", "_delete_": True},
    }


def _fast_depth(config: Config, views: int, scale: Sequence[int] | None, store: str) -> dict[str, Any]:
    for loader in _LOADERS:
        training = loader == "train_dataloader"
        plain = [dict(transform) for transform in config[loader].dataset.pipeline]
        pipeline = [_reader(t) if t["type"] in _READS_IMAGES else t for t in plain if t["type"] in _OF_DEPTH]
        labels = config.model.decode_head.upsample if training else None
        more = {"image": pipeline[0], "scale": None, "labels": labels, "views": views if training else 1}
        _wrap(config, loader, "StoredDepth", pipeline, {**more, "store": store})
    return {
        "type": "FastDepthProbe",
        "data_preprocessor": {"type": "FeaturePreProcessor"},
        "test_cfg": {"mode": "whole", "flip": False},
    }


def _fast_classes(config: Config, views: int, scale: Sequence[int] | None, store: str) -> dict[str, Any]:
    by_type = {transform["type"]: dict(transform) for transform in config.val_dataloader.dataset.pipeline}
    cut = ResizeCenterCrop(**{key: value for key, value in by_type["ResizeCenterCrop"].items() if key != "type"})
    for loader in _LOADERS:
        more = {"image": _reader(by_type["LoadProbeImage"]), "scale": (cut.resize, cut.crop), "store": store}
        views_of = views if loader == "train_dataloader" else 1
        _wrap(config, loader, "StoredClasses", [], {**more, "views": views_of})
    return {"type": "FastClassifierGrid", "data_preprocessor": {"type": "ClassFeaturePreProcessor"}}


def _wrap(config: Config, loader: str, kind: str, pipeline: Sequence[Any], more: Mapping[str, Any]) -> None:
    """Put a data set of stored features around that of a loader."""
    inner = {**config[loader].dataset.to_dict(), "pipeline": pipeline}
    config.merge_from_dict({loader: {"dataset": {"type": kind, "dataset": inner, **more, "_delete_": True}}})


def _reader(transform: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in transform.items() if key != "_scope_"} | {"type": "LoadProbeImage"}


def _parts(pipeline: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """(what reads an image, what resizes it, what its labels go through)."""
    plain = [dict(transform) for transform in pipeline]
    image = [transform for transform in plain if transform["type"] in _READS_IMAGES]
    resize = [transform for transform in plain if transform["type"] == "Resize"]
    if len(image) != 1 or len(resize) != 1:
        raise ValueError(
            f"the fast probe needs a test pipeline that reads an image and resizes it once, and this one is "
            f"{', '.join(transform['type'] for transform in plain)}"
        )
    return _reader(image[0]), resize[0], [transform for transform in plain if transform["type"] not in _NOT_LABELS]


@MODELS.register_module()
class FeaturePreProcessor(SegDataPreProcessor):
    """mmseg's preprocessor for images, and what moves stored features to the device as float32."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """A batch of images, uint8 ``[3, H, W]``, or of features, float32 ``[C, h, w]``, which stay a list."""
        if data["inputs"][0].dtype == torch.uint8:
            return dict(super().forward(data, training))
        return dict(self.cast_data(data))


@MODELS.register_module()
class ClassFeaturePreProcessor(ImgDataPreprocessor):
    """mmengine's preprocessor for images, and what moves stored features ``[C]`` to the device, stacked."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """A batch of images, uint8 ``[3, H, W]``, or of features."""
        if data["inputs"][0].dtype == torch.uint8:
            return dict(super().forward(data, training))
        return {**self.cast_data(data), "inputs": torch.stack(self.cast_data(data["inputs"]))}


@MODELS.register_module()
class FastLinearProbe(LinearProbe):
    """A ``LinearProbe`` that also takes features in the place of images: a list of ``[C, h, w]``, of any sizes.

    C is that of all layers, one behind the other.
    """

    def loss(self, inputs: Any, data_samples: Any) -> dict[str, Tensor]:
        """Losses over images ``[B, 3, H, W]``, or over features, whose pixels count alike at any size of image."""
        if isinstance(inputs, Tensor):
            return dict(super().loss(inputs, data_samples))
        pairs = list(zip(self._logits(inputs), data_samples, strict=True))
        return _losses(self.decode_head, [(torch.stack(maps), samples) for maps, samples in _alike(pairs)], len(pairs))

    def predict(self, inputs: Any, data_samples: Any = None) -> Any:
        """Classes of images ``[B, 3, H, W]``, or of features, at the size of their images."""
        if isinstance(inputs, Tensor):
            return super().predict(inputs, data_samples)
        predicted = []
        for logits, sample in zip(self._logits(inputs), data_samples, strict=True):
            resized = self.decode_head.predict_by_feat(logits[None], [sample.metainfo])
            predicted += self.postprocess_result(resized, [sample])
        return predicted

    def _logits(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """``[K, h, w]`` for each. Batch norm and a 1x1 convolution see tokens, not images: all of them at once."""
        sizes = [maps.shape[1:] for maps in inputs]
        tokens = torch.cat([maps.flatten(1) for maps in inputs], dim=1)[None, :, None]
        logits = self.decode_head(tokens.split(self.backbone.channels, dim=1))[0, :, 0]
        parts = logits.split([h * w for h, w in sizes], dim=1)
        return [part.unflatten(1, size) for part, size in zip(parts, sizes, strict=True)]


@MODELS.register_module()
class FastDepthProbe(DepthProbe):
    """A ``DepthProbe`` that also takes features in the place of images, as ``FastLinearProbe`` does."""

    def loss(self, inputs: Any, data_samples: Any) -> dict[str, Tensor]:
        """Losses over images ``[B, 3, H, W]``, or over features, against depth at the resolution of the prediction."""
        if isinstance(inputs, Tensor):
            return dict(super().loss(inputs, data_samples))
        groups = _alike(list(zip(inputs, data_samples, strict=True)))
        return _losses(self.decode_head, [(self._depth(maps), samples) for maps, samples in groups], len(data_samples))

    def predict(self, inputs: Any, data_samples: Any = None) -> Any:
        """Depth of images ``[B, 3, H, W]``, or of features, at the size of their images."""
        if isinstance(inputs, Tensor):
            return super().predict(inputs, data_samples)
        predicted = []
        for maps, sample in zip(inputs, data_samples, strict=True):
            resized = self.decode_head.predict_by_feat(self._depth([maps]), [sample.metainfo])
            predicted += self.postprocess_result(resized, [sample])
        return predicted

    def _depth(self, maps: Sequence[Tensor]) -> Tensor:
        depth: Tensor = self.decode_head(torch.stack(list(maps)).split(self.backbone.channels, dim=1))
        return depth


@MODELS.register_module()
class FastClassifierGrid(ClassifierGrid):
    """A ``ClassifierGrid`` that also takes features in the place of images: ``[B, C · (layers + 1)]``.

    They are [CLS] of each layer, and the mean patch of the last one.
    """

    def _features(self, inputs: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
        if inputs.ndim == 4:
            return super()._features(inputs)
        *cls, mean = inputs.split([*self.backbone.channels, self.backbone.channels[-1]], dim=1)
        return [(mean[:, :, None, None], layer) for layer in cls]


def _losses(head: Any, groups: Sequence[tuple[Tensor, list[Any]]], count: int) -> dict[str, Tensor]:
    """A head's losses over groups of images of one size, which count by their images."""
    total: dict[str, Tensor] = {}
    for prediction, samples in groups:
        for name, value in head.loss_by_feat(prediction, samples).items():
            share = len(samples) / count if "images_" not in name else 1.0  # a number of images is a sum
            total[f"decode.{name}"] = total.get(f"decode.{name}", torch.zeros_like(value)) + share * value
    return total


def _alike(pairs: Sequence[tuple[Tensor, Any]]) -> Iterator[tuple[list[Tensor], list[Any]]]:
    """Groups of maps ``[C, h, w]`` of one size whose labels have one size, and their samples."""
    groups: dict[tuple[int, ...], list[tuple[Tensor, Any]]] = {}
    for own, sample in pairs:
        labels = sample.gt_sem_seg if "gt_sem_seg" in sample else sample.gt_depth_map
        groups.setdefault((*own.shape, *labels.shape), []).append((own, sample))
    for members in groups.values():
        yield [own for own, _ in members], [sample for _, sample in members]
