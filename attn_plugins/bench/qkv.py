"""Queries, keys and values of a real model on real pictures, for benchmarks: random ones are less sparse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import AttentionCall
from ..attention.counting import unwatch, watch
from ..files import written
from ..patching import patched

__all__ = ["capture", "read_layers", "write_qkv"]

Layer = tuple[Tensor, Tensor, Tensor, float]
"""query, key, value ``[B, H, N, D]`` and the factor on their scores."""


@torch.no_grad()
def capture(model: nn.Module, images: Tensor, layers: Sequence[int]) -> dict[str, Layer]:
    """What the attention of ``layers`` is given, in the order in which they run, counted from 0.

    Args:
        model: any that ``attn_plugins.patch`` knows, as it computes unpatched.
        images: ``[B, 3, H, W]``, normalised.
        layers: which.

    Raises:
        ValueError: the model has no such layer, or its attention is computed from scores that its own code makes.
    """
    calls: list[AttentionCall] = []

    def keep(layer: Any, call: AttentionCall | None = None, **told: Any) -> None:
        if call is not None:
            calls.append(call)

    watch(keep)
    try:
        with patched(model, "softmax"):
            model.eval()(images)
    finally:
        unwatch(keep)
    beyond = [index for index in layers if not 0 <= index < len(calls)]
    if beyond:
        raise ValueError(f"layers {beyond}: {len(calls)} attention calls were seen, which are counted from 0")
    found: dict[str, Layer] = {}
    for index in layers:
        call = calls[index]
        query, key, value = (t.detach().float().contiguous() for t in (call.query, call.key, call.value))
        found[f"layer {index}"] = (query, key, value, call.scale)
    return found


def write_qkv(path: Path, layers: dict[str, Layer], **told: str) -> None:
    """Write them as safetensors, whole or not at all, with what ``told`` says of where they are from."""
    from safetensors.torch import save_file

    tensors = {f"{name}/{part}": t for name, layer in layers.items() for part, t in zip("qkv", layer[:3], strict=True)}
    scales = {f"scale {name}": repr(layer[3]) for name, layer in layers.items()}
    with written(path) as partial:
        save_file(tensors, partial, metadata={**scales, **told})


def read_layers(path: Path) -> dict[str, Layer]:
    """What ``write_qkv`` wrote.

    Raises:
        ValueError: it is another file.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Layer] = {}
    try:
        with safe_open(path, "pt") as file:
            told, names = file.metadata() or {}, {name.rpartition("/")[0] for name in file.keys()}  # noqa: SIM118
            for name in sorted(names, key=lambda name: (len(name), name)):
                q, k, v = (file.get_tensor(f"{name}/{part}") for part in "qkv")
                found[name] = (q, k, v, float(told[f"scale {name}"]))
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no file of queries, keys and values (attn-plugins bench qkv): {error}") from error
    return found
