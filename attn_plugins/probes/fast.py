"""The fast probe: a linear head on features that were computed once. Not the published protocol, and says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.registry import MODELS
from torch import Tensor

from .segmentation import LinearProbe

__all__ = ["FastLinearProbe", "FeaturePreProcessor", "make_fast"]

_READS_IMAGES = ("LoadImageFromFile", "LoadProbeImage")
_NOT_LABELS = (*_READS_IMAGES, "Resize", "PackSegInputs")


def make_fast(config: Config, views: int = 1, scale: Sequence[int] | None = None, store: str | None = None) -> None:
    """Change a segmentation probe's config, in place, into the fast probe on the same data.

    Training and validation read stored features of whole images; schedule, losses, total batch, metrics and hooks
    stay. What a checkpoint of it holds is the same head, which predicts from images as any other does.

    Args:
        config: of a probe whose model is a `LinearProbe`.
        views: fixed views of each training image, of `attn_plugins.probes.views.VIEWS`.
        scale: (longest, shortest) side that images are resized to; by default the config's.
        store: folder of the features.

    Raises:
        ValueError: another kind of probe.
    """
    if config.model.type != "LinearProbe":
        raise ValueError(f"the fast probe trains linear segmentation heads, and this is a {config.model.type}")
    store = store or "work_dirs/features"
    image, resize, labels = _parts(config.val_dataloader.dataset.pipeline)
    scale = tuple(scale or resize["scale"])
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        inner = {**config[loader].dataset.to_dict(), "pipeline": labels}
        training = loader == "train_dataloader"
        wrapped = {
            "type": "StoredViews",
            "dataset": inner,
            "image": image,
            "scale": scale,
            "views": views if training else 1,
            "labels": 4 if training else None,
            "store": store,
            "_delete_": True,
        }
        # Mapped files are read in microseconds; and only this process knows the features.
        config.merge_from_dict({loader: {"dataset": wrapped, "num_workers": 0, "persistent_workers": False}})
    for transform in config.test_pipeline:
        if transform["type"] == "Resize":
            transform["scale"] = scale
    config.merge_from_dict(
        {
            "model": {
                "type": "FastLinearProbe",
                "data_preprocessor": {"type": "FeaturePreProcessor"},
                "test_cfg": {"mode": "whole", "_delete_": True},
            },
            "fast": {"views": views, "scale": scale},
        }
    )
    config.pop("tta_pipeline", None)
    config.pop("tta_model", None)
    config.custom_hooks = [*config.custom_hooks, {"type": "FeatureStoreHook"}]


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
    reader = {key: value for key, value in image[0].items() if key != "_scope_"} | {"type": "LoadProbeImage"}
    return reader, resize[0], [transform for transform in plain if transform["type"] not in _NOT_LABELS]


@MODELS.register_module()
class FeaturePreProcessor(SegDataPreProcessor):
    """mmseg's preprocessor for images, and what moves stored features to the device as float32."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """A batch of images, uint8 `[3, H, W]`, or of features, float32 `[C, h, w]`, which stay a list."""
        if data["inputs"][0].dtype == torch.uint8:
            return dict(super().forward(data, training))
        return dict(self.cast_data(data))


@MODELS.register_module()
class FastLinearProbe(LinearProbe):
    """A `LinearProbe` that also takes features in the place of images: a list of `[C, h, w]`, of any sizes.

    C is that of all layers, one behind the other.
    """

    def loss(self, inputs: Any, data_samples: Any) -> dict[str, Tensor]:
        """Losses over images `[B, 3, H, W]`, or over features, whose pixels count alike whatever their image's size."""
        if isinstance(inputs, Tensor):
            return dict(super().loss(inputs, data_samples))
        total: dict[str, Tensor] = {}
        for logits, samples in _alike(self._logits(inputs), data_samples):
            share = len(samples) / len(data_samples)
            for name, value in self.decode_head.loss_by_feat(logits, samples).items():
                total[f"decode.{name}"] = total.get(f"decode.{name}", torch.zeros_like(value)) + share * value
        return total

    def predict(self, inputs: Any, data_samples: Any = None) -> Any:
        """Classes of images `[B, 3, H, W]`, or of features, at the size of their images."""
        if isinstance(inputs, Tensor):
            return super().predict(inputs, data_samples)
        predicted = []
        for logits, sample in zip(self._logits(inputs), data_samples, strict=True):
            resized = self.decode_head.predict_by_feat(logits[None], [sample.metainfo])
            predicted += self.postprocess_result(resized, [sample])
        return predicted

    def _logits(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """`[K, h, w]` for each. Batch norm and a 1x1 convolution see tokens, not images: all of them at once."""
        sizes = [maps.shape[1:] for maps in inputs]
        tokens = torch.cat([maps.flatten(1) for maps in inputs], dim=1)[None, :, None]
        logits = self.decode_head(tokens.split(self.backbone.channels, dim=1))[0, :, 0]
        parts = logits.split([h * w for h, w in sizes], dim=1)
        return [part.unflatten(1, size) for part, size in zip(parts, sizes, strict=True)]


def _alike(logits: Sequence[Tensor], samples: Sequence[Any]) -> Iterator[tuple[Tensor, list[Any]]]:
    """Groups of the same sizes: logits `[B, K, h, w]` and their samples."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, (own, sample) in enumerate(zip(logits, samples, strict=True)):
        groups.setdefault((*own.shape, *sample.gt_sem_seg.shape), []).append(index)
    for indices in groups.values():
        yield torch.stack([logits[i] for i in indices]), [samples[i] for i in indices]
