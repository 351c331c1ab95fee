"""The record that travels with the weights: a small uint8 tensor in each patched attention layer.

Only tensors survive what happens to a state dict (renamed keys, safetensors, torch.distributed.checkpoint, half
precision, averaging), so what a layer computes is said by a tensor beside its weights: the buffer ``RECORD``.
Half a byte is kept in each element, in the middle of sixteen values, and a checksum at the end: casts to half
precision and the rounding of moving averages change nothing, and an average over different specs is noticed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["RECORD", "decode", "encode", "records_in"]

RECORD = "attn_plugins_record"
"""The buffer's name, in every patched attention layer: ``blocks.0.attn.attn_plugins_record``."""

_MAGIC = b"AP1"
_STEP = 16


def encode(record: Mapping[str, Any]) -> Tensor:
    """``[M]`` uint8 on the CPU, of a mapping that JSON can hold; ``"spec"`` is the layer's spec string."""
    payload = json.dumps(dict(record), sort_keys=True, separators=(",", ":")).encode()
    data = _MAGIC + payload + zlib.crc32(payload).to_bytes(4, "big")
    halves = [half * _STEP + _STEP // 2 for byte in data for half in divmod(byte, _STEP)]
    return torch.tensor(halves, dtype=torch.uint8, device="cpu")


def decode(tensor: Tensor) -> dict[str, Any]:
    """The mapping that ``encode`` was given, from a tensor of any dtype and device.

    Raises:
        ValueError: it is no record, or was damaged (the average of weights with different specs).
    """
    if tensor.dim() != 1 or tensor.is_meta or tensor.numel() % 2 or tensor.is_complex():
        raise ValueError(f"no record of attn_plugins: shape {tuple(tensor.shape)}, {tensor.dtype}, {tensor.device}")
    values = tensor.detach().to("cpu", torch.float64).round().nan_to_num(-1).div(_STEP, rounding_mode="floor")
    halves = values.to(torch.int64).tolist()
    if any(not 0 <= half < _STEP for half in halves):
        raise ValueError("a record of attn_plugins with values that no record has")
    data = bytes(high * _STEP + low for high, low in zip(halves[::2], halves[1::2], strict=True))
    payload, checksum = data[len(_MAGIC) : -4], data[-4:]
    if not data.startswith(_MAGIC) or zlib.crc32(payload).to_bytes(4, "big") != checksum:
        raise ValueError("a damaged record of attn_plugins (weights of different specs averaged?)")
    record = json.loads(payload)
    if not isinstance(record, dict) or not isinstance(record.get("spec"), str):
        raise ValueError(f"a record of attn_plugins without a spec: {record!r}")
    return record


def records_in(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{layer: record} of a state dict, the layer being what precedes ``.attn_plugins_record`` in its key.

    Raises:
        ValueError: a record is damaged; the message names its key.
    """
    found = {}
    for key, value in state.items():
        if isinstance(key, str) and isinstance(value, Tensor) and (key == RECORD or key.endswith("." + RECORD)):
            try:
                found[key.removesuffix(RECORD).removesuffix(".")] = decode(value)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
    return found
