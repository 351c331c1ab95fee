"""Segmentation: a linear head over patch features, and labels that fit its classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop
from mmseg.evaluation import IoUMetric
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import HOOKS, METRICS, MODELS, TRANSFORMS
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from .ownership import OwnedHead, SizedHead, joined, probe_model

__all__ = ["BNLinearHead", "CheckLabels", "ClassCountHook", "GlobalBatchNorm", "ImageIoU", "LinearProbe"]


@MODELS.register_module()
class LinearProbe(OwnedHead, SizedHead, EncoderDecoder):
    """mmseg's ``EncoderDecoder`` whose head is sized from a ``FrozenViT``.

    ``test_cfg`` may hold ``windows``, how many windows of a picture pass through the backbone at once (16).
    """

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Class logits ``[B, classes, H, W]``, in the mean over overlapping windows.

        The numbers are those of mmseg's method, which passes one window at a time and pads every map to the whole.

        Args:
            inputs: ``[B, 3, H, W]``, normalised.
            batch_img_metas: of each image.
        """
        size, step, (height, width) = self.test_cfg.crop_size, self.test_cfg.stride, inputs.shape[2:]
        h, w = min(size[0], height), min(size[1], width)
        corners = [(y, x) for y in _starts(height, h, step[0]) for x in _starts(width, w, step[1])]
        # mmseg resizes to a torch.Size as it stands, and knows a window by it.
        metas = [{**meta, "img_shape": torch.Size((h, w))} for meta in batch_img_metas]
        logits = inputs.new_zeros((len(inputs), self.out_channels, height, width))
        seen = inputs.new_zeros((height, width))
        at_once = self.test_cfg.get("windows", 16)
        for first in range(0, len(corners), at_once):
            some = corners[first : first + at_once]
            features = self.extract_feat(torch.cat([inputs[:, :, y : y + h, x : x + w] for y, x in some]))
            for i, (y, x) in enumerate(some):
                of_window = _part(features, slice(i * len(inputs), (i + 1) * len(inputs)))
                logits[:, :, y : y + h, x : x + w] += self.decode_head.predict(of_window, metas, self.test_cfg)
                seen[y : y + h, x : x + w] += 1
        return logits.div_(seen)


def _starts(length: int, window: int, step: int) -> list[int]:
    """Where windows begin on one side: every ``step``, the last one at the end."""
    return [min(start, length - window) for start in range(0, max(length - window + step - 1, 0) + 1, step)]


def _part(features: Any, part: slice) -> Any:
    """Some images of a batch's feature maps, which may be nested in tuples."""
    return features[part] if isinstance(features, Tensor) else tuple(_part(inner, part) for inner in features)


@MODELS.register_module()
class BNLinearHead(BaseDecodeHead):
    """Batch norm over the channels, then a 1x1 convolution; DINOv2, eval/segmentation/…/linear_head.py ``BNHead``.

    Args:
        in_channels: channels of each feature map; ``LinearProbe`` fills them in from the backbone.
        num_classes: classes.
        kwargs: of mmseg's ``BaseDecodeHead``.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes=num_classes, **joined(in_channels), **kwargs)
        self.bn = GlobalBatchNorm(self.channels)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Class logits ``[B, classes, h, w]`` from maps ``[B, C, h, w]``, resized to the first and concatenated."""
        logits: Tensor = self.cls_seg(self.bn(self._transform_inputs(inputs)))
        return logits


class GlobalBatchNorm(nn.BatchNorm2d):
    """``SyncBatchNorm`` that runs on CPUs (gloo) too, where torch's does not.

    Frozen features need no gradient through the statistics; those of a backbone that is trained have it. One process:
    plain batch norm. State dict keys are batch norm's.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input [B, C, H, W]``."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        mean, var = self._global_statistics(input.detach())
        if input.requires_grad:
            return self._differentiable(input)
        return nn.functional.batch_norm(input, mean, var, self.weight, self.bias, training=False, eps=self.eps)

    def _differentiable(self, input: Tensor) -> Tensor:
        """As above, with the gradient through mean and variance of all processes."""
        count = input.new_tensor(input.numel() / input.shape[1])
        dist.all_reduce(count)
        mean = all_reduce(input.sum((0, 2, 3))) / count
        centred = input - mean[:, None, None]
        var = all_reduce(centred.square().sum((0, 2, 3))) / count
        scale = (var + self.eps).rsqrt() * self.weight
        output: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return output

    @torch.no_grad()
    def _global_statistics(self, input: Tensor) -> tuple[Tensor, Tensor]:
        count = torch.tensor([input.numel() / input.shape[1]], device=input.device, dtype=torch.float64)
        total = input.sum((0, 2, 3), dtype=torch.float64)
        moments = torch.cat([total, count])
        dist.all_reduce(moments)
        count = moments[-1]
        mean = moments[:-1] / count
        # Two passes, as the one-pass E[x²] - E[x]² cancels where a channel's mean is large.
        squares = (input - mean.to(input.dtype)[:, None, None]).square().sum((0, 2, 3), dtype=torch.float64)
        dist.all_reduce(squares)
        mean, var = mean.to(input.dtype), (squares / count).to(input.dtype)
        unbiased = (squares / (count - 1)).to(input.dtype)
        self.get_buffer("num_batches_tracked").add_(1)
        self.get_buffer("running_mean").lerp_(mean, self.momentum or 0.0)
        self.get_buffer("running_var").lerp_(unbiased, self.momentum or 0.0)
        return mean, var


@METRICS.register_module()
class ImageIoU(IoUMetric):
    """mmseg's ``IoUMetric``, which also keeps what each image contributes, for differences between models.

    Attributes:
        images: {image's path: [intersections, unions] of each class, in pixels} of the last evaluation.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.images: dict[str, Any] = {}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Add images; each keeps its path."""
        for sample in data_samples:
            super().process(data_batch, [sample])
            self.results[-1] = (*self.results[-1], sample["img_path"])

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """As ``IoUMetric`` does."""
        self.images = {path: [intersect.tolist(), union.tolist()] for intersect, union, _, _, path in results}
        return dict(super().compute_metrics([result[:4] for result in results]))


@TRANSFORMS.register_module()
class CheckLabels(BaseTransform):
    """Stops at a segmentation map with a label that is no class, naming the file; passes an image without labels.

    Args:
        classes: number of classes; by default the data set's, which ``ClassCountHook`` fills in.
        ignore: the label that means "none".

    Raises:
        ValueError: a label is neither below ``classes`` nor ``ignore``; or nobody has said how many classes there are.
    """

    def __init__(self, classes: int | None = None, ignore: int = 255) -> None:
        self.classes = classes
        self.ignore = ignore

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if "gt_seg_map" not in results:
            return results
        if self.classes is None:
            raise ValueError(
                "CheckLabels does not know the number of classes: ClassCountHook takes it from the data set "
                "(default_hooks.class_count=dict(type='ClassCountHook')), or give classes="
            )
        labels = np.unique(results["gt_seg_map"])
        wrong = labels[(labels >= self.classes) & (labels != self.ignore)]
        if len(wrong):
            raise ValueError(
                f"{results['seg_map_path']} has labels {wrong.tolist()}; expected 0 to {self.classes - 1} and "
                f"{self.ignore}. Is it a colour-coded mask, or another data set's? See `attn-plugins data check`"
            )
        return results


@HOOKS.register_module()
class ClassCountHook(Hook):
    """Takes the number of classes from the data set: tells it to ``CheckLabels``, and refuses a head with another."""

    def before_run(self, runner: Any) -> None:
        """Compare with the classes of every split that is used, before the first iteration.

        Raises:
            ValueError: the head, or a ``CheckLabels(classes=...)``, has another number.
        """
        for role in ("train", "val", "test"):
            loop = getattr(runner, f"_{role}_loop")
            if isinstance(loop, BaseLoop):
                self._check(probe_model(runner), loop.dataloader.dataset)

    @staticmethod
    def _check(model: Any, dataset: Any) -> None:
        has, needs = model.decode_head.num_classes, len(dataset.metainfo["classes"])
        if has != needs:
            raise ValueError(
                f"the head has {has} classes, {type(dataset).__name__} has {needs}: set model.decode_head.num_classes "
                f"to {needs}, or the data set's metainfo to its classes"
            )
        for check in _label_checks(dataset):
            if check.classes not in (None, needs):
                told = f"CheckLabels has classes={check.classes}, {type(dataset).__name__} has {needs}"
                raise ValueError(f"{told}: leave classes= out")
            check.classes = needs


def _label_checks(dataset: Any) -> Iterator[CheckLabels]:
    """Every ``CheckLabels`` of a data set, through wrappers of data sets and of transforms."""
    inner = getattr(dataset, "datasets", None) or [d for d in [getattr(dataset, "dataset", None)] if d is not None]
    for part in inner:
        yield from _label_checks(part)
    if hasattr(dataset, "pipeline"):
        yield from _checks_in(dataset.pipeline)


def _checks_in(transform: Any) -> Iterator[CheckLabels]:
    if isinstance(transform, CheckLabels):
        yield transform
    parts = getattr(transform, "transforms", getattr(transform, "subroutines", ()))
    for part in parts if isinstance(parts, list | tuple) else [parts]:
        yield from _checks_in(part)
