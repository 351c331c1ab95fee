"""A tiny patched ViT of timm, and what happens to its state dict on the way to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import attn_plugins

ARCH = "timm/vit_tiny_patch16_224"
OPTIONS: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 48}
State = dict[str, Any]


def bare(seed: int = 0, **options: Any) -> nn.Module:
    """A ViT of three blocks with weights as if trained."""
    torch.manual_seed(seed)
    model = timm.create_model(ARCH.removeprefix("timm/"), num_classes=0, **OPTIONS | options)
    return trained(model)


def trained(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.dim() < 2 else 0.15)
    return model.eval()


def patched(spec: str, layers: Any = None, **options: Any) -> nn.Module:
    """:func:`bare` with plugins that have learned something."""
    return trained(attn_plugins.patch(bare(**options), spec, layers))


def images() -> Tensor:
    """``[2, 3, 32, 32]``."""
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(9))


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def ema(state: State) -> State:
    """An exponential moving average as people write it: over all tensors, started from the weights."""
    average = dict(state)
    for _ in range(3):
        average = {
            name: (0.99 * average[name].float() + 0.01 * tensor.float()).to(tensor.dtype)
            for name, tensor in state.items()
        }
    return average


def torch_file(contents: Any, folder: Path) -> Path:
    torch.save(contents, folder / "weights.pth")
    return folder / "weights.pth"


def safetensors(state: State, folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    return folder / "model.safetensors"


def shards(state: State, folder: Path) -> Path:
    import json

    from safetensors.torch import save_file

    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({name: state[name].contiguous() for name in keys}, folder / file)
    places = {name: file for file, keys in parts.items() for name in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def distributed(contents: State, folder: Path) -> Path:
    import torch.distributed.checkpoint as dcp

    dcp.save(contents, checkpoint_id=folder / "dcp", no_dist=True)
    return folder / "dcp"


def consolidated(contents: State, folder: Path) -> Path:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(distributed(contents, folder), folder / "whole.pth")
    return folder / "whole.pth"


def accelerate(state: State, folder: Path) -> Path:
    """What `Accelerator.save_state` leaves."""
    safetensors(state, folder)
    torch.save({"state": {}, "param_groups": []}, folder / "optimizer.bin")
    (folder / "random_states_0.pkl").write_bytes(b"whatever")
    return folder


def accelerate_fsdp(state: State, folder: Path) -> Path:
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": state}, checkpoint_id=folder / "pytorch_model_fsdp_0", no_dist=True)
    dcp.save({"optimizer": {"x": torch.zeros(2)}}, checkpoint_id=folder / "optimizer_0", no_dist=True)
    return folder


def lightning(state: State, folder: Path) -> Path:
    contents = {
        "state_dict": prefixed(state, "model.backbone."),
        "hyper_parameters": {"lr": 0.1},
        "epoch": 3,
        "callbacks": {"ModelCheckpoint{}": {"best": torch.tensor(0.5)}},
    }
    return torch_file(contents, folder)


CONTAINERS: dict[str, Callable[[State, Path], Path]] = {
    "plain": torch_file,
    "dict": lambda state, folder: torch_file(dict(state), folder),
    "DDP": lambda state, folder: torch_file({"state_dict": prefixed(state, "module.")}, folder),
    "compiled": lambda state, folder: torch_file(prefixed(state, "_orig_mod."), folder),
    "half": lambda state, folder: torch_file({name: tensor.half() for name, tensor in state.items()}, folder),
    "bfloat16": lambda state, folder: torch_file({name: t.bfloat16() for name, t in state.items()}, folder),
    "double": lambda state, folder: torch_file({name: t.double() for name, t in state.items()}, folder),
    "EMA": lambda state, folder: torch_file({"model_ema": ema(dict(state))}, folder),
    "MAE": lambda state, folder: torch_file({"model": dict(state), "optimizer": {}, "epoch": 1}, folder),
    "iBOT": lambda state, folder: torch_file(
        {
            "student": prefixed({**state, "masked_embed": torch.zeros(1, 48)}, "module.backbone."),
            "teacher": prefixed(dict(state), "backbone."),
        },
        folder,
    ),
    "Lightning": lightning,
    "nested": lambda state, folder: torch_file({"app": {"model": dict(state)}}, folder),
    "safetensors": safetensors,
    "safetensors, prefixed": lambda state, folder: safetensors(prefixed(state, "model."), folder),
    "shards": shards,
    "distributed": lambda state, folder: distributed({"model": dict(state)}, folder),
    "distributed, flat": lambda state, folder: distributed(dict(state), folder),
    "distributed, consolidated": lambda state, folder: consolidated({"app": {"model": dict(state)}}, folder),
    "accelerate": accelerate,
    "accelerate, FSDP": accelerate_fsdp,
}
