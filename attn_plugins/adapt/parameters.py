"""Which parameters of a student train, and at which rate."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..codebases.features import ViTFeatures
from ..patching.sites import find_attention
from ..swap import PREFIX
from .recipe import Recipe

__all__ = ["add_lora", "choose", "groups", "merge_lora", "require_lora"]

_AFTER_HEADS = {"proj", "out_proj", "o_proj", "output"}
"""Projections behind the heads, of some codebases."""


def choose(model: nn.Module, train: str) -> list[str]:
    """Let the parameters that ``train`` names have gradients, and no others; their names. Plugins' own always train."""
    inside = {site.path for site in find_attention(model)}
    norms = {path for path, module in model.named_modules() if "norm" in type(module).__name__.lower()}

    def trains(name: str) -> bool:
        owner, parts = name.rpartition(".")[0], name.split(".")
        attends = any(name.startswith(path + ".") for path in inside)
        if PREFIX in name or train == "all":
            return True
        if train == "attention":
            return attends
        if train == "qkv+norms":
            return owner in norms or (attends and not _AFTER_HEADS & set(parts))
        return ".lora_" in name

    chosen = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad_(trains(name)).requires_grad:
            chosen.append(name)
    return chosen


def groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameter groups of AdamW, each with the ``rate`` that schedules multiply.

    Biases, norms and vectors are not decayed; factors on scores and a learned alpha have a rate of their own; with
    ``layer_decay`` the rate falls with each block below the last, and what is before the blocks comes last.
    """
    vit = ViTFeatures(model)
    block_of = {id(p): index for index, block in enumerate(vit.blocks) for p in block.parameters()}
    after = {id(p) for p in vit.norm.parameters()}
    made: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        below = 0 if id(parameter) in after else vit.depth - block_of.get(id(parameter), -1) - 1
        base = recipe.scale_lr if PREFIX in name and parameter.ndim <= 1 else recipe.lr
        decay = recipe.weight_decay if parameter.ndim > 1 and not name.endswith("bias") else 0.0
        made.setdefault((base * recipe.layer_decay**below, decay), []).append(parameter)
    return [{"params": own, "lr": rate, "rate": rate, "weight_decay": decay} for (rate, decay), own in made.items()]


def require_lora() -> None:
    """Raise ``ValueError`` where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ValueError("train='lora' needs peft: pip install 'attn_plugins[lora]'")


def add_lora(model: nn.Module, rank: int, seed: int) -> None:
    """Put peft's LoRA layers around the projections of attention.

    Raises:
        ValueError: attention has no projections of its own.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [
        f"{site.path}.{name}"
        for site in find_attention(model)
        for name, module in site.module.named_modules()
        if type(module) is nn.Linear and PREFIX not in name
    ]
    if not linear:
        raise ValueError("train='lora' finds no nn.Linear in the attention of this model; use train='attention'")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear), model)


def merge_lora(model: nn.Module) -> None:
    """Add what LoRA has learned to the weights, and take its layers off."""
    for path, layer in list(_lora_layers(model)):
        layer.merge()
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer.get_base_layer())


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            yield path, module
