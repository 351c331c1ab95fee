"""What is exported: a backbone, or a trained probe with its backbone, as one module of images alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.identity import identify_loaded
from ..checkpoints.reading import read
from ..codebases.positions import positions_by_tensors
from ..machine import versions
from ..probes.backbone import FrozenViT
from ..probes.predict import Predictor, is_probe, load
from ..probes.run.reading import run_state_is_read

__all__ = ["Graph", "graph_of"]

PIXELS = "RGB pixels, 0 to 255"
NORMALISED = "RGB, normalised as the backbone was trained"
_USUAL_SIDE = 224


@dataclass(frozen=True)
class Graph:
    """A module to export, and what is said of it.

    Attributes:
        module: ``images [B, 3, H, W]`` to a tuple of tensors, in eval mode.
        vit: the patched ViT in it.
        outputs: their names.
        size: the height and width that the model was made for.
        patch_size: pixels.
        told: metadata.
    """

    module: nn.Module
    vit: nn.Module
    outputs: Sequence[str]
    size: tuple[int, int]
    patch_size: int
    told: Mapping[str, str]


def graph_of(
    source: Path,
    checkpoint: Path | None = None,
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    **backbone: Any,
) -> Graph:
    """The graph of a trained probe, or of a backbone's checkpoint.

    Args:
        source: a probe's work dir, checkpoint or bundle; or a backbone's file or folder.
        checkpoint: the backbone of a probe, where it is not found by its digest.
        normalisation: mean and standard deviation, RGB, 0 to 255, of a backbone that shall take pixels.
        backbone: ``arch``, ``plugins`` and ``repo`` of a backbone.

    Raises:
        ValueError: options of the one for the other; the probe's backbone is not found.
        CheckpointError: a file that cannot be read safely, or does not fit.
    """
    if is_probe(source):
        given = [name for name, value in backbone.items() if value is not None] + ["mean"] * bool(normalisation)
        if given:
            raise ValueError(f"--{given[0]} is for a backbone, and {source} is a probe, which tells it")
        return _probe(load(source, checkpoint, "cpu"))
    if checkpoint is not None:
        raise ValueError(f"--checkpoint is for a probe, and {source} is a backbone, or nothing that is known")
    chosen = {name: value for name, value in backbone.items() if value is not None}
    return _backbone(FrozenViT(str(source), cls_token="tuple", **chosen), normalisation)


class _OnPixels(nn.Module):
    """What probes and backbones share: normalisation, and positions for any size while a program is recorded."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, frozen: FrozenViT, normalisation: tuple[Sequence[float], Sequence[float]] | None) -> None:
        super().__init__()
        frozen.autocast = None
        self.frozen = frozen
        self.vit = frozen.model  # which FrozenViT hides from its module tree
        for name, values in zip(("mean", "std"), normalisation or (None, None), strict=True):
            self.register_buffer(name, None if values is None else torch.tensor(values).view(3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """``images [B, 3, H, W]``, float32, to the outputs."""
        with self._positions():
            return self.compute(images if self.mean is None or self.std is None else (images - self.mean) / self.std)

    def _positions(self) -> AbstractContextManager[None]:
        return positions_by_tensors(self.vit) if torch.compiler.is_exporting() else nullcontext()

    def compute(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs of normalised images."""
        raise TypeError(f"{type(self).__name__} computes nothing")


class _BackboneGraph(_OnPixels):
    def compute(self, images: Tensor) -> tuple[Tensor, ...]:
        ((patches, cls),) = self.frozen(images)
        return patches, cls


class _ProbeGraph(_OnPixels):
    def __init__(self, predictor: Predictor) -> None:
        record = predictor.record
        super().__init__(predictor.model.backbone, (record.mean, record.std))
        self.model, self.task, self.classifier = predictor.model, record.task, predictor.classifier

    def compute(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.task == "classification":
            return (self.model(images)[self.classifier],)
        size = (images.shape[2], images.shape[3])
        metas = [{"img_shape": size, "pad_shape": size}]
        if self.task == "depth":
            return (self.model.inference(images, metas),)
        return (self.model.encode_decode(images, metas),)


def _backbone(frozen: FrozenViT, normalisation: tuple[Sequence[float], Sequence[float]] | None) -> Graph:
    told = {
        "task": "features",
        "input": PIXELS if normalisation else NORMALISED,
        "output": "patches [B, C, h, w] and cls [B, C] of the last block after the final norm",
        **_identity(frozen, normalisation),
    }
    module = _BackboneGraph(frozen, normalisation)
    return Graph(module.eval(), frozen.model, ("patches", "cls"), _native(frozen), frozen.patch_size, told)


def _probe(predictor: Predictor) -> Graph:
    record, frozen = predictor.record, predictor.model.backbone
    outputs = {
        "segmentation": ("logits", "logits [B, classes, H, W] at the input's size, of the whole image, no windows"),
        "depth": ("depth", "depth [B, 1, H, W] in metres at the input's size"),
        "classification": ("logits", "logits [B, classes]"),
    }
    name, output = outputs[record.task]
    told = {
        "task": record.task,
        "probe": record.name,
        "input": PIXELS,
        "output": output,
        **_identity(frozen, (record.mean, record.std)),
        "classes": json.dumps(list(record.classes)),
        "values": json.dumps(list(record.values)),
        "palette": json.dumps([list(colour) for colour in record.palette]),
        "scale": json.dumps(list(record.scale)),
    }
    if record.task == "depth":
        told["flip"] = json.dumps(bool(record.inference.get("flip")))
    size = _native(frozen)
    if record.task == "classification":
        size = int(record.scale[1]), int(record.scale[1])
    return Graph(_ProbeGraph(predictor).eval(), frozen.model, (name,), size, frozen.patch_size, told)


def _identity(frozen: FrozenViT, normalisation: tuple[Sequence[float], Sequence[float]] | None) -> dict[str, str]:
    identity = frozen.identity
    mean, std = normalisation or ((), ())
    return {
        "spec": str(identity["plugins"]),
        "spec_source": str(identity["plugins_source"]),
        "arch": str(identity["arch"]),
        "parent": Path(str(identity["checkpoint"])).name,
        "parent_digest": str(identity["digest"]),
        "parent_sha256": str(identity["sha256"] or ""),
        "patch_size": str(frozen.patch_size),
        "mean": json.dumps(list(mean)),
        "std": json.dumps(list(std)),
        "precision": "float32",
        "made_with": json.dumps(versions(("attn_plugins", "torch", "onnxscript"))),
    }


def _native(frozen: FrozenViT) -> tuple[int, int]:
    """Height and width that the positions of a ViT were trained for; 224 where they tell none."""
    path = Path(str(frozen.identity["checkpoint"]))
    with run_state_is_read():
        shape = identify_loaded(read(path, mmap=True), path).shape
    side = shape.grid * shape.patch_size if shape.grid else _USUAL_SIDE // frozen.patch_size * frozen.patch_size
    return side, side
