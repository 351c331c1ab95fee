"""Register tokens: learnable tokens after [CLS] that no output holds."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.proxies import is_proxy
from ..codebases import dinov1, dinov2, dinov3, timm, transformers
from ..codebases.parts import Parts
from ..codebases.vit import ViT
from ..errors import UnsupportedModelError
from ..functional.plain import sizes
from ..registry import register_mechanism
from ..swap import add_layer
from .base import Mechanism, Owned

__all__ = ["Registers", "decided"]

STD, DECAY = 1e-6, False
"""What is meant where nothing is said: by a file, and by a patch that no trainer makes."""


@register_mechanism("registers")
class Registers(Mechanism):
    """Learnable tokens after [CLS], without position embedding; outputs are those of the model without them.

    Darcet et al., "Vision Transformers Need Registers", ICLR 2024. DINOv2, DINOv3 and timm have them too, and are
    told of these as of their own: ``x_norm_patchtokens``, ``get_intermediate_layers``, ``num_prefix_tokens`` and
    ``forward_intermediates`` are right; timm's ``forward_features`` returns all tokens, as ever. DINOv1 and
    transformers models return what they would without registers: all their outputs leave them out (rows of
    attention maps then no longer sum to one). Adds num * C parameters; adding them changes the model's output.

    Args:
        num: how many.
        std: standard deviation of the normal distribution that they start from. None: 1e-6, as in timm; in a trainer
            that the flag or the launcher patches, what its codebase gives registers of its own: 1e-6 in DINOv2, 0.02 in
            DINOv3. The record says it then.
        decay: whether trainers that go by names decay them. None: no, as in timm; in such a trainer as its codebase
            does: DINOv2 and DINOv3 decay theirs. Their key in a state dict ends in ``weight`` if so and in ``bias``
            otherwise; either is loaded where the other is held.
    """

    training_only = ("std", "decay")

    def __init__(self, num: int = 4, std: float | None = None, decay: bool | None = None) -> None:
        if not isinstance(num, int) or num < 1:
            raise ValueError(f"registers: num={num!r}; use a whole number of at least 1")
        std, decay = STD if std is None else std, DECAY if decay is None else decay
        if isinstance(std, bool) or not isinstance(std, (int, float)) or not 0 < std < math.inf:
            raise ValueError(f"registers: std={std!r}; use a finite number above 0, such as 1e-6 or 0.02")
        if not isinstance(decay, bool):
            raise ValueError(f"registers: decay={decay!r}; it is true or false")
        self.extra_tokens, self.std, self.decay = num, std, decay

    @classmethod
    def trained(cls, params: Mapping[str, Any], known: Parts) -> dict[str, Any]:
        own = known.own_registers
        return dict(params) if own is None else {"std": own.std, "decay": own.decay, **params}

    def check(self, vit: ViT) -> None:
        name, option = type(vit.root).__qualname__, vit.known.option
        if vit.registers:
            raise UnsupportedModelError(
                f"registers: {name} has {vit.registers} register tokens of its own; for another number build it with "
                f"{option}={self.extra_tokens} instead"
            )
        if vit.known.uncounted(vit.root):
            raise UnsupportedModelError(
                f"registers: {name} counts its tokens in places that cannot be told of registers; "
                f"use the plain model{f', or build it with {option}=N' if option else ''}"
            )

    def apply(self, vit: ViT) -> None:
        root = vit.root
        if not hasattr(root, "attn_plugins_registers"):
            root.attn_plugins_registers = _Tokens(
                self.extra_tokens, vit.cls_token.shape[-1], self.std, self.decay
            ).like(vit.cls_token)
        for path, overrides in vit.known.enter:
            add_layer(root.get_submodule(path), overrides)
        # The first block proves that they came: what embeds and what counts the tokens may be different code.
        root.attn_plugins_registers__seen = _Seen()
        vit.blocks[0].attn_plugins_registers__seen = root.attn_plugins_registers__seen
        add_layer(vit.blocks[0], _proves)


class _Seen:
    """Numbers of tokens that the embedding has had, without and with registers.

    Attributes:
        without: as upstream counts them.
        entered: as they go into the first block.
    """

    def __init__(self) -> None:
        self.without: set[int] = set()
        self.entered: set[int] = set()

    def note(self, with_registers: Tensor, num: int) -> None:
        """``with_registers: [B, N, C]``, of which ``num`` are registers."""
        if not torch.compiler.is_compiling() and not is_proxy(with_registers):
            number = sizes(with_registers)[1]
            self.entered.add(number)
            self.without.add(number - num)


def _proves(base: Any) -> dict[str, Any]:
    @functools.wraps(base.forward)
    def forward(self: Any, x: Tensor | list[Tensor], *args: Any, **kwargs: Any) -> Any:
        seen = self.attn_plugins_registers__seen
        if not torch.compiler.is_compiling():
            for tokens in x if isinstance(x, (list, tuple)) else [x]:
                if is_proxy(tokens):
                    continue
                number = sizes(tokens)[1]
                if not seen.entered or (number in seen.without and number not in seen.entered):
                    raise UnsupportedModelError(
                        f"registers: {number} tokens reach the first block, and no registers are among them: the model "
                        "embeds its input by code that does not know them (a wrapper, or a forward_features of its "
                        "own). Use a normalizer alone, or a model that is built with registers"
                    )
        return base.forward(self, x, *args, **kwargs)

    return {"forward": forward}


def decided(key: str) -> str:
    """A key of a state dict as it would be if its registers were not decayed; other keys as they are."""
    return key.replace("attn_plugins_registers.register_tokens.weight", "attn_plugins_registers.register_tokens.bias")


class _Tokens(Owned):
    """Trainers go by names: ``register_tokens`` gets the first layer's learning rate, ``.bias`` no weight decay."""

    # Models that were pickled before there was a choice have these.
    std, key = STD, "bias"

    def __init__(self, num: int, channels: int, std: float, decay: bool) -> None:
        super().__init__()
        self.std, self.key = std, "weight" if decay else "bias"
        self.register_tokens = nn.ParameterDict({self.key: nn.Parameter(torch.empty(1, num, channels))})
        self.counted = True

    def reset_parameters(self) -> None:
        nn.init.normal_(self.tokens, std=self.std)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Whether they are decayed in training makes no other tokens of them.
        opposite = "bias" if self.key == "weight" else "weight"
        held, other = (f"{prefix}register_tokens.{key}" for key in (self.key, opposite))
        if held not in state_dict and other in state_dict:
            state_dict[held] = state_dict.pop(other)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def tokens(self) -> Tensor:
        """``[1, num, C]``."""
        tokens: Tensor = self.register_tokens[self.key]
        return tokens

    def insert(self, x: Tensor) -> Tensor:
        """``x: [B, 1 + N, C]`` to ``[B, 1 + num + N, C]``."""
        return torch.cat([x[:, :1], self.tokens.to(x.dtype).expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)

    def drop(self, x: Tensor, dim: int = 1) -> Tensor:
        """The inverse of ``insert``, along ``dim``."""
        num = self.tokens.shape[1]
        return torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 1 + num, x.shape[dim] - 1 - num)], dim=dim)


# The names that pickles of release 0.1 hold.
_dinov1, _dinov2, _dinov3 = dinov1._registers_enter, dinov2._registers_enter, dinov3._registers_enter
_timm, _transformers, _embeds = timm._registers_enter, transformers._registers_enter, transformers._embeds
