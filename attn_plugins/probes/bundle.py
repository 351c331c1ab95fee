"""A probe and its backbone in one safetensors file, which needs nothing beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..checkpoints.loading import backbone_and_heads
from ..files import written
from .predict import Predictor
from .run.reading import load_from_local, run_state_is_read
from .told import META_KEY, ProbeRecord
from .tuning import trained_weights

__all__ = ["is_bundle", "open_bundle", "write_bundle"]

_BACKBONE, _HEAD = "backbone.", "probe_head."


def is_bundle(path: Path) -> bool:
    """Whether a file is a safetensors file that says of itself to be a probe's."""
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return META_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def write_bundle(path: Path, predictor: Predictor) -> Path:
    """Write a loaded probe and its backbone's tensors into one file.

    Args:
        path: ends in ``.safetensors``.
        predictor: as ``load`` gives it.

    Raises:
        ValueError: another suffix, or a backbone that its tensors alone do not describe: a folder of transformers.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: a bundle is a .safetensors file")
    identity = predictor.model.backbone.identity
    source = Path(str(identity["checkpoint"]))
    if source.is_dir() or str(identity["arch"]).startswith("transformers/"):
        raise ValueError(f"{source} is a folder of transformers, whose config is no tensor: keep it beside the probe")
    with run_state_is_read():  # of a probe that holds its own backbone
        state, heads, info = backbone_and_heads(source)
    options = {**info.arch_options, **(predictor.record.backbone.get("arch_options") or {})}
    record = dataclasses.replace(
        predictor.record, backbone={**predictor.record.backbone, "arch": identity["arch"], "arch_options": options}
    )
    own = trained_weights(load_from_local(str(source)).get("state_dict", {})) if predictor.record.tuned else {}
    # Of a backbone that was trained, with the records of its spec.
    tensors = {f"{_BACKBONE}{name}": tensor for name, tensor in (own or state | heads).items()}
    tensors |= {f"{_HEAD}{name}": tensor for name, tensor in predictor.model.state_dict().items()}
    # Tensors of one memory cannot be stored twice; bundles are small.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    told = {META_KEY: record.text(), "classifier": json.dumps(predictor.classifier)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as partial:
        partial.write_bytes(save(tensors, metadata=told))  # save_file would set a mode of its own
    return path


def open_bundle(path: Path) -> tuple[ProbeRecord, dict[str, Any], str | None]:
    """What a bundle says of its probe, the head's state dict, and the classifier to predict with.

    Raises:
        ValueError: it is damaged; it is named.
    """
    try:
        with safe_open(path, framework="pt") as file:
            told, names = file.metadata(), file.keys()
            state: dict[str, Tensor] = {
                name.removeprefix(_HEAD): file.get_tensor(name) for name in names if name.startswith(_HEAD)
            }
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    extra = state.get("_extra_state")
    if extra is None or extra.dtype != torch.uint8:
        raise ValueError(f"{path} is damaged: its head does not say whose it is")
    classifier = json.loads(told.get("classifier", "null"))
    return ProbeRecord.parsed(told[META_KEY], str(path)), state, classifier
