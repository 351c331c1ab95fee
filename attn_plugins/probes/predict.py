"""Predict with a trained probe: from one file, on images of any size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ..data.images import read_image
from ..results import FILE_NAME, read_result
from .backbone_file import find_backbone
from .classification import ResizeCenterCrop
from .ownership import identity_inside
from .run.reading import load_from_local, run_state_is_read
from .told import META_KEY, ProbeRecord
from .tuning import trained_weights, weights_digest

__all__ = ["Prediction", "Predictor", "is_probe", "load"]

# Depth is predicted on whole images, whose attention grows with the square of their pixels.
_MOST_PIXELS = 1_500_000


@dataclass(frozen=True)
class Prediction:
    """What a probe says of one image.

    Attributes:
        image: ``[H, W, 3]``, RGB, uint8: the image as it was read.
        mask: ``[H, W]``, uint8: the number of the class; of segmentation.
        depth: ``[H, W]``, float32: metres; of depth.
        scores: {class: probability}, the most probable first; of classification.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None = None
    depth: NDArray[np.float32] | None = None
    scores: Mapping[str, float] | None = None


class Predictor:
    """A trained probe and its backbone.

    Args:
        record: what the probe says of itself.
        model: with the head's weights, in eval mode.
        classifier: of a grid of classifiers, the one to predict with.

    Attributes:
        record: as given.
        model: as given.
    """

    def __init__(self, record: ProbeRecord, model: Any, classifier: str | None = None) -> None:
        self.record = record
        self.model = model
        self.classifier = classifier

    @torch.no_grad()
    def predict(self, image: str | Path | NDArray[np.uint8] | Image.Image) -> Prediction:
        """Predict an image at its own size.

        Args:
            image: a file, a Pillow image, or ``[H, W, 3]``, RGB, 0 to 255.

        Raises:
            ImageError: a file that cannot be read.
            ValueError: an array of another shape or type.
        """
        pixels = self._pixels(image)
        if self.record.task == "segmentation":
            return Prediction(pixels, mask=self._mask(pixels))
        if self.record.task == "depth":
            return Prediction(pixels, depth=self._depth(pixels))
        return Prediction(pixels, scores=self._scores(pixels))

    def _pixels(self, image: str | Path | NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]:
        if isinstance(image, str | Path):
            return read_image(image, exif=self.record.exif)
        if isinstance(image, Image.Image):
            image = np.asarray(image.convert("RGB"))
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"an image is [H, W, 3], RGB, uint8; this is {list(image.shape)}, {image.dtype}")
        return image

    def _input(self, pixels: NDArray[np.uint8]) -> Tensor:
        """``[1, 3, H, W]``, normalised, on the model's device."""
        device = self.model.data_preprocessor.mean.device
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).to(device)
        mean, std = (
            torch.tensor(values, device=device).view(3, 1, 1) for values in (self.record.mean, self.record.std)
        )
        return ((tensor.float() - mean) / std)[None]

    def _mask(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        scale = self.record.scale
        resized = mmcv.imrescale(pixels, (int(scale[0]), int(scale[1])))
        logits = self.model.inference(self._input(resized), [_meta(resized)])
        best: Tensor | None = None
        # Class by class: all of them at a large image's size would not fit into memory.
        for number in range(logits.shape[1]):
            own = interpolate(logits[:, number : number + 1], pixels.shape[:2], mode="bilinear", align_corners=False)
            if best is None:
                best, classes = own, torch.zeros_like(own, dtype=torch.uint8)
                continue
            better = own > best
            classes[better] = number
            best = torch.maximum(own, best)
        return np.asarray(classes[0, 0].cpu().numpy())

    def _depth(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        height, width = pixels.shape[:2]
        factor = min((_MOST_PIXELS / (height * width)) ** 0.5, 1.0)
        resized = pixels if factor == 1 else mmcv.imrescale(pixels, factor)
        depth = self.model.inference(self._input(resized), [_meta(resized)])
        if factor < 1:
            depth = interpolate(depth, (height, width), mode="bilinear", align_corners=False)
        return np.asarray(depth[0, 0].float().cpu().numpy())

    def _scores(self, pixels: NDArray[np.uint8]) -> dict[str, float]:
        resize, crop = self.record.scale
        cut = ResizeCenterCrop(int(resize), int(crop)).transform({"img": pixels})["img"]
        logits = self.model(self._input(cut))[self.classifier][0]
        probabilities, order = logits.float().softmax(0).sort(descending=True)
        names = self.record.classes or [str(number) for number in range(len(order))]
        return {names[i]: float(p) for i, p in zip(order.tolist(), probabilities.tolist(), strict=True)}


def _meta(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    size = pixels.shape[:2]
    return {"ori_shape": size, "img_shape": size, "pad_shape": size, "padding_size": [0, 0, 0, 0]}


def load(
    probe: str | Path, checkpoint: str | Path | None = None, device: str | torch.device | None = None
) -> Predictor:
    """A trained probe, ready to predict.

    Args:
        probe: a probe's work dir (its best checkpoint is taken, else its last), a checkpoint of one, or a bundle.
        checkpoint: the backbone; by default it is searched for by its digest, or comes from the bundle.
        device: default ``cuda`` where there is one.

    Raises:
        ValueError: no such probe; one that was written before probes said how they predict; the backbone is not
            found, or is another one than the head was trained on.
        CheckpointError: a file that cannot be read safely.
    """
    from .bundle import is_bundle, open_bundle

    file = _file(Path(probe))
    if is_bundle(file):
        record, state, classifier = open_bundle(file)
        found = Path(checkpoint or file)
    else:
        contents = load_from_local(str(file))
        meta = contents.get("meta", {}) if isinstance(contents, Mapping) else {}
        if META_KEY not in meta:
            raise ValueError(
                f"{file} does not say how its probe predicts: it was written by an earlier release, or is no probe's. "
                "mmseg's init_model(CONFIG, HEAD) and inference_model predict with it"
            )
        record, state = ProbeRecord.parsed(meta[META_KEY], str(file)), contents["state_dict"]
        classifier = _best_classifier(record, file)
        if record.tuned and checkpoint:
            raise ValueError(f"{file} holds its own backbone, which was trained with it: leave --checkpoint out")
        found = Path(checkpoint) if checkpoint else file if record.tuned else find_backbone(meta["backbone"], file)
    with run_state_is_read():
        model = _build(record, found)
    if trained := trained_weights(state):
        state = _without_backbone(state, weights_digest(trained), model, file)
    model.load_state_dict(state)
    return Predictor(record, model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), classifier)


def _without_backbone(state: Mapping[str, Any], digest: str, model: Any, file: Path) -> dict[str, Any]:
    """The head's part of a probe that was trained with its backbone, which ``model`` has from the same file.

    Raises:
        ValueError: the head was trained with other weights than the file holds.
    """
    theirs = identity_inside(state.get("_extra_state"))
    if theirs.get("trained_digest") != digest:
        raise ValueError(
            f"{file} is damaged: its head was trained with weights of digest {theirs.get('trained_digest')}, and those "
            f"in it have {digest}"
        )
    head = {name: tensor for name, tensor in state.items() if not name.startswith("backbone.")}
    return {**head, "_extra_state": model.get_extra_state()}


def is_probe(path: Path) -> bool:
    """Whether a work dir, a checkpoint or a bundle is a probe's, and not a backbone's.

    Raises:
        CheckpointError: a file that cannot be read safely.
    """
    from .bundle import is_bundle

    if path.is_dir():
        return bool(_heads(path))
    if path.suffix == ".safetensors":
        return is_bundle(path)
    contents = load_from_local(str(path))
    meta = contents.get("meta") if isinstance(contents, Mapping) else None
    return isinstance(meta, Mapping) and META_KEY in meta


def _heads(work_dir: Path) -> list[Path]:
    """Checkpoints, the best and the last ones last."""
    return [path for kind in ("iter_*.pth", "best_*.pth") for path in sorted(work_dir.glob(kind), key=_iteration)]


def _file(probe: Path) -> Path:
    """The checkpoint that is meant.

    Raises:
        ValueError: there is none.
    """
    if probe.is_file():
        return probe
    heads = _heads(probe)
    if not heads:
        raise ValueError(f"{probe} holds no checkpoint of a probe (best_*.pth or iter_*.pth)")
    return heads[-1]


def _iteration(path: Path) -> int:
    return int("".join(filter(str.isdigit, path.stem.rpartition("iter_")[2])) or 0)


def _build(record: ProbeRecord, checkpoint: Path) -> Any:
    backbone = {name: value for name, value in record.backbone.items() if value is not None}
    backbone |= {"type": "FrozenViT", "checkpoint": str(checkpoint)}
    preprocessor = {"mean": list(record.mean), "std": list(record.std), "bgr_to_rgb": True}
    told: dict[str, Any] = {"backbone": backbone}
    if record.task == "classification":
        told |= {"type": "ClassifierGrid", "data_preprocessor": {"type": "ImgDataPreprocessor", **preprocessor}}
        told |= record.head
    else:
        segments = record.task == "segmentation"
        losses = {} if segments else {"loss_decode": [{"type": "SigLoss"}]}
        told |= {
            "type": "LinearProbe" if segments else "DepthProbe",
            "data_preprocessor": {"type": "SegDataPreProcessor", **preprocessor},
            "decode_head": {"type": "BNLinearHead" if segments else "DepthBinsHead", **losses, **record.head},
            "train_cfg": {},
            "test_cfg": dict(record.inference),
        }
    with DefaultScope.overwrite_default_scope("mmseg"):
        return MODELS.build(ConfigDict(told))


def _best_classifier(record: ProbeRecord, file: Path) -> str | None:
    """The classifier that was best at the last validation.

    Raises:
        ValueError: the probe's result is not beside its checkpoint.
    """
    if record.task != "classification":
        return None
    result = file.parent / FILE_NAME
    if not result.is_file():
        raise ValueError(
            f"{result} is needed, as it tells which of the classifiers is best: keep it beside {file.name}"
        )
    history = read_result(result).evaluations
    each = {name: value for name, value in history[-1].metrics.items() if name.startswith("top1_")} if history else {}
    if not each:
        raise ValueError(f"{result} holds no validation, which tells the best classifier")
    return max(each, key=lambda name: each[name]).removeprefix("top1_")


def describe(prediction: Prediction, record: ProbeRecord) -> dict[str, Any]:
    """A prediction in numbers, for JSON: size, and shares of classes, depths, or the five most probable classes."""
    height, width = prediction.image.shape[:2]
    told: dict[str, Any] = {"height": height, "width": width, "task": record.task, "probe": record.name}
    told["plugins"] = record.backbone["plugins"]
    if prediction.mask is not None:
        counts = np.bincount(prediction.mask.ravel(), minlength=len(record.classes))
        told["classes"] = {
            name: {"pixels": int(count), "share": float(count) / prediction.mask.size}
            for name, count in zip(record.classes, counts, strict=True)
            if count
        }
    if prediction.depth is not None:
        low, median, high = np.quantile(prediction.depth, (0, 0.5, 1)).tolist()
        told["metres"] = {"least": low, "median": median, "most": high}
    if prediction.scores is not None:
        told["scores"] = dict(list(prediction.scores.items())[:5])
    return told
