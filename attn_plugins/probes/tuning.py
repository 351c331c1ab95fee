"""A probe whose backbone is trained too: layer-wise learning rates, and the spec in what comes out.

Not the published protocol, whose backbones are frozen; the result says so. The defaults are those by which MAE is
fine-tuned on ADE20K in mmseg (``mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py``; He et al. 2022, arXiv 2111.06377,
appendix A.4): AdamW, 1e-4 at the last layer, 0.65 of that for each layer below, weight decay 0.05 of matrices alone.
Learning rates that fall layer by layer are those of BEiT (Bao et al. 2022, arXiv 2106.08254) and ELECTRA before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..checkpoints import identify
from ..checkpoints.digest import tensors_digest
from ..codebases.positions import positions_by_tensors, restore_positions
from .backbone import FrozenViT

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

__all__ = ["LAYER_DECAY", "LayerDecay", "TunedViT", "make_finetune", "trained_weights", "weights_digest"]

LAYER_DECAY = 0.65
_RATE, _WEIGHT_DECAY = 1e-4, 0.05
# The head begins at random, and has the learning rate of the probes: 1e-3.
_HEAD_TIMES = 10.0
# ImageNet's 1,024 images a step are more than small sets have.
_CLASSIFICATION_BATCH = 128


_INSIDE = "backbone.vit."


def trained_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of the backbone in a probe's state dict, by their names in the ViT; empty of a frozen one."""
    return {name.removeprefix(_INSIDE): tensor for name, tensor in state.items() if name.startswith(_INSIDE)}


def weights_digest(tensors: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of the tensors of a state dict."""
    return tensors_digest({name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}).hexdigest()


@MODELS.register_module()
class TunedViT(FrozenViT):
    """Features of a ViT that is trained: a ``FrozenViT`` whose ViT is in the module tree, as ``vit``.

    So its parameters reach the optimizer, DDP and the state dict, the records of its spec among them. What no feature
    depends on (a mask token, layers above the last that is read) is not trained.

    Args:
        kwargs: of ``FrozenViT``; ``arch_options=dict(drop_path_rate=0.1)`` where the codebase has it.

    Raises:
        ValueError: as ``FrozenViT``; or ``autocast="fp16"``, whose gradients underflow.
    """

    tuned = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.autocast == "fp16":
            raise ValueError("autocast='fp16' loses small gradients: use bf16, or leave it out")
        self.vit = self.model
        restore_positions(self.vit)
        checkpoint = self.identity["checkpoint"]
        told = {} if checkpoint is None or self._of_transformers() else identify(checkpoint).arch_options
        self.arch_options = {**told, **(kwargs.get("arch_options") or {})}
        self.identity["tuned"] = True
        self._keep_untrained()

    def _of_transformers(self) -> bool:
        return str(self.identity["arch"]).startswith("transformers/")

    def _keep_untrained(self) -> None:
        """Ask for gradients where a feature depends on a parameter; DDP waits for those of all that ask."""
        self.vit.requires_grad_(True)
        side = 2 * self.patch_size
        outputs = self(torch.zeros(1, 3, side, side))
        torch.stack([_total(output) for output in outputs]).sum().backward()
        for parameter in self.vit.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None

    def forward(self, images: Tensor) -> tuple[Any, ...]:
        """As ``FrozenViT``, with gradients."""
        with positions_by_tensors(self.vit):
            return self._features(images)

    def told(self) -> dict[str, Any]:
        """Of the backbone that it was, and a digest of what became of it."""
        return {**self.identity, "trained_digest": weights_digest(self.vit.state_dict())}

    def init_weights(self) -> None:
        """Nothing: mmengine would call the ViT's own, which draws random weights."""

    def layer_of(self) -> dict[int, int]:
        """{id of a parameter: 0 for what is below the blocks, i + 1 for block i, depth + 1 for what is above}."""
        found = {id(parameter): 0 for parameter in self.vit.parameters()}
        for number, block in enumerate(self._vit.blocks, 1):
            found |= {id(parameter): number for parameter in block.parameters()}
        norms = self._vit.final_norms
        found |= {id(parameter): self._vit.depth + 1 for norm in norms for parameter in norm.parameters()}
        return found

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self._vit.depth

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        BaseModule._apply(self, fn, recurse)  # the ViT is in the tree
        return self


def _total(output: Any) -> Tensor:
    tensors = output if isinstance(output, tuple) else (output,)
    # Of squares, since a sum over normed channels has no gradient.
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum()


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecay(DefaultOptimWrapperConstructor):
    """One parameter group for each layer of a ``TunedViT``, with and without weight decay, and the head's.

    A layer's learning rate is ``lr * layer_decay ** (depth + 1 - layer)``, counted as in BEiT: 0 below the blocks, and
    depth + 1 the final norm. Only matrices of linear layers and convolutions have weight decay: no norm, no bias, no
    token, no position, no register, no alpha.

    ``paramwise_cfg``: ``layer_decay``, and ``head_lr_mult`` of what is no part of the backbone.
    """

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **kwargs: Any) -> None:
        """Fill ``params`` with the groups of a probe over a ``TunedViT``.

        Raises:
            ValueError: another backbone.
        """
        backbone: Any = module.backbone
        if not isinstance(backbone, TunedViT):
            raise ValueError(f"LayerDecay is for a TunedViT, and the backbone is a {type(backbone).__name__}")
        layers, top = backbone.layer_of(), backbone.depth + 1
        decay, head = self.paramwise_cfg["layer_decay"], self.paramwise_cfg["head_lr_mult"]
        weighed = {id(parameter) for inner in module.modules() for parameter in _matrices(inner)}
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for parameter in module.parameters():
            if parameter.requires_grad:
                place = layers.get(id(parameter), top + 1)
                groups.setdefault((place, id(parameter) in weighed), []).append(parameter)
        for (layer, decays), members in sorted(groups.items(), reverse=True):
            times = head if layer > top else decay ** (top - layer)
            weight_decay = self.base_wd if decays else 0.0
            params.append({"params": members, "lr": self.base_lr * times, "weight_decay": weight_decay})


def _matrices(module: nn.Module) -> Sequence[nn.Parameter]:
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
    return [p for p in module.parameters(recurse=False) if p.ndim > 1] if isinstance(module, kinds) else []


def make_finetune(config: Config, layer_decay: float = LAYER_DECAY, drop_path: float = 0.0) -> None:
    """Change a probe's config, in place, into one that trains the backbone too, on the same data.

    Heads, losses, augmentation, metrics, warm-up and decay stay. ImageNet's grid of classifiers becomes one, since
    thirteen would pull at one backbone.

    Args:
        config: of any shipped probe, or of one's own pictures.
        layer_decay: factor from a layer's learning rate to that of the layer below.
        drop_path: rate of stochastic depth, which the codebase has to have.

    Raises:
        ValueError: a layer decay outside (0, 1], or a drop path outside [0, 1).
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer decay {layer_decay} is not in (0, 1]; 0.65 to 0.9 are usual, 1 is none")
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop path {drop_path} is not in [0, 1); 0.1 is usual")
    config.model.backbone.type = "TunedViT"
    if drop_path:
        config.merge_from_dict({"model": {"backbone": {"arch_options": {"drop_path_rate": drop_path}}}})
    config.optim_wrapper = {
        "type": "OptimWrapper",
        "constructor": "LayerDecay",
        "optimizer": {"type": "AdamW", "lr": _RATE, "betas": (0.9, 0.999), "weight_decay": _WEIGHT_DECAY},
        "clip_grad": config.optim_wrapper.get("clip_grad"),
        "paramwise_cfg": {"layer_decay": layer_decay, "head_lr_mult": _HEAD_TIMES},
    }
    config.finetune = {"layer_decay": layer_decay, "drop_path": drop_path}
    if config.model.type == "ClassifierGrid":
        config.model.learning_rates = [_RATE * _HEAD_TIMES]
        config.auto_scale_lr = {"enable": False}
        config.train_cfg.total_batch_size = min(config.train_cfg.total_batch_size, _CLASSIFICATION_BATCH)
