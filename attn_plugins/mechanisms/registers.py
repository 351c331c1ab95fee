"""Register tokens: learnable tokens after [CLS] that no output holds."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.proxies import is_proxy
from ..errors import UnsupportedModelError
from ..functional.plain import sizes
from ..registry import register_mechanism
from ..swap import Overrides, add_layer
from .anatomy import ViT
from .base import Mechanism, Owned

__all__ = ["Registers"]


@register_mechanism("registers")
class Registers(Mechanism):
    """Learnable tokens after [CLS], without position embedding; outputs are those of the model without them.

    Darcet et al., "Vision Transformers Need Registers", ICLR 2024. DINOv2, DINOv3 and timm have them too, and are
    told of these as of their own: ``x_norm_patchtokens``, ``get_intermediate_layers``, ``num_prefix_tokens`` and
    ``forward_intermediates`` are right; timm's ``forward_features`` returns all tokens, as ever. DINOv1 and
    transformers models return what they would without registers: all their outputs leave them out (rows of
    attention maps then no longer sum to one). Adds num * C parameters, which start at N(0, 1e-6) as in DINOv2
    and timm; adding them changes the model's output.

    Args:
        num: how many.
    """

    def __init__(self, num: int = 4) -> None:
        if not isinstance(num, int) or num < 1:
            raise ValueError(f"registers: num={num!r}; use a whole number of at least 1")
        self.extra_tokens = num

    def check(self, vit: ViT) -> None:
        name, codebase = type(vit.root).__qualname__, vit.codebase
        if vit.registers:
            raise UnsupportedModelError(
                f"registers: {name} has {vit.registers} register tokens of its own; for another number build it with "
                f"{codebase.option}={self.extra_tokens} instead"
            )
        rotary_or_distilled = codebase.name == "timm" and (hasattr(vit.root, "rope") or vit.others)
        if hasattr(vit.root, "out_features") or rotary_or_distilled:
            raise UnsupportedModelError(
                f"registers: {name} counts its tokens in places that cannot be told of registers; "
                f"use the plain model{f', or build it with {codebase.option}=N' if codebase.option else ''}"
            )

    def apply(self, vit: ViT) -> None:
        root = vit.root
        if not hasattr(root, "attn_plugins_registers"):
            root.attn_plugins_registers = _Tokens(self.extra_tokens, vit.cls_token.shape[-1]).like(vit.cls_token)
        add_layer(root, _LAYERS[vit.codebase.name])
        if vit.codebase.name == "transformers":
            add_layer(root.embeddings, _embeds)
        # The first block proves that they came: what embeds and what counts the tokens may be different code.
        vit.blocks[0].attn_plugins_registers__seen = root.attn_plugins_registers__seen = _Seen()
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


class _Tokens(Owned):
    """Trainers go by names: ``register_tokens`` gets the first layer's learning rate, ``.bias`` no weight decay."""

    def __init__(self, num: int, channels: int) -> None:
        super().__init__()
        self.register_tokens = nn.ParameterDict({"bias": nn.Parameter(torch.empty(1, num, channels))})
        self.counted = True

    def reset_parameters(self) -> None:
        nn.init.normal_(self.tokens, std=1e-6)

    @property
    def tokens(self) -> Tensor:
        """``[1, num, C]``"""
        return self.register_tokens["bias"]

    def insert(self, x: Tensor) -> Tensor:
        """``x: [B, 1 + N, C]`` to ``[B, 1 + num + N, C]``."""
        return torch.cat([x[:, :1], self.tokens.to(x.dtype).expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)

    def drop(self, x: Tensor, dim: int = 1) -> Tensor:
        """The inverse of :meth:`insert`, along ``dim``."""
        num = self.tokens.shape[1]
        return torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 1 + num, x.shape[dim] - 1 - num)], dim=dim)


def _native(base: Any, tokens: str, number: str) -> dict[str, Any]:
    """Properties where the codebase looks for its own registers, which its own code then inserts."""

    def prepare_tokens_with_masks(self: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = base.prepare_tokens_with_masks(self, *args, **kwargs)
        x = prepared if isinstance(prepared, Tensor) else prepared[0]  # DINOv3's come with the size of their grid
        _note(self, x, self.attn_plugins_registers.tokens.shape[1])
        return prepared

    return {
        tokens: property(lambda self: self.attn_plugins_registers.tokens),
        number: property(lambda self: self.attn_plugins_registers.tokens.shape[1]),
        "prepare_tokens_with_masks": prepare_tokens_with_masks,
    }


def _dinov2(base: Any) -> dict[str, Any]:
    return _native(base, "register_tokens", "num_register_tokens")


def _dinov3(base: Any) -> dict[str, Any]:
    return _native(base, "storage_tokens", "n_storage_tokens")


def _dinov1(base: Any) -> dict[str, Any]:
    # Forks have further arguments (iBOT's mask): whatever upstream's signature is, it stays.
    def prepare_tokens(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return _inserted(self, base.prepare_tokens(self, *args, **kwargs))

    def get_intermediate_layers(self: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
        return [self.attn_plugins_registers.drop(y) for y in base.get_intermediate_layers(self, *args, **kwargs)]

    def get_last_selfattention(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The map between [CLS] and patches, ``[B, H, 1 + N, 1 + N]``."""
        drop = self.attn_plugins_registers.drop
        return drop(drop(base.get_last_selfattention(self, *args, **kwargs), -1), -2)

    return {
        "prepare_tokens": prepare_tokens,
        "get_intermediate_layers": get_intermediate_layers,
        "get_last_selfattention": get_last_selfattention,
    }


def _timm(base: Any) -> dict[str, Any]:
    def counted(self: Any, name: str) -> int:
        registers = self.attn_plugins_registers
        return vars(self)[name] + (registers.tokens.shape[1] if registers.counted else 0)

    def without_registers(method: Any) -> Any:
        # timm sizes the position embedding, which registers have none of, by num_prefix_tokens.
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.attn_plugins_registers.counted = False
            try:
                return method(self, *args, **kwargs)
            finally:
                self.attn_plugins_registers.counted = True

        return run

    def group_matcher(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """timm's, by which registers get the layer-wise learning-rate decay of [CLS]."""
        groups: dict[str, Any] = base.group_matcher(self, *args, **kwargs)
        return {**groups, "stem": groups["stem"] + "|attn_plugins_registers"}

    def no_weight_decay(self: Any) -> set[str]:
        """timm's, and registers: its layer-wise decay goes by this list and not by the ending of a name."""
        return {*base.no_weight_decay(self), "attn_plugins_registers.register_tokens.bias"}

    embed = without_registers(base._pos_embed)

    def _pos_embed(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return _inserted(self, embed(self, *args, **kwargs))

    return {
        "num_prefix_tokens": property(lambda self: counted(self, "num_prefix_tokens")),
        "num_reg_tokens": property(lambda self: counted(self, "num_reg_tokens")),
        "group_matcher": group_matcher,
        "no_weight_decay": no_weight_decay,
        "set_input_size": without_registers(base.set_input_size),
        "_pos_embed": _pos_embed,
    }


def _inserted(root: Any, x: Tensor) -> Tensor:
    """``x: [B, 1 + N, C]`` with the registers of ``root``, which its first block is told to expect."""
    registers = root.attn_plugins_registers
    out: Tensor = registers.insert(x)
    _note(root, out, out.shape[1] - x.shape[1])
    return out


def _note(root: Any, x: Tensor, num: int) -> None:
    seen = vars(root).get("attn_plugins_registers__seen")
    if seen is not None:  # a pickle of release 0.1 has none, and no first block that asks
        seen.note(x, num)


INSERT = "attn_plugins_registers__insert"


def _embeds(base: Any) -> dict[str, Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        insert = vars(self).get(INSERT)
        x = base.forward(self, *args, **kwargs)
        return x if insert is None else insert(x)

    return {"forward": forward}


def _transformers(base: Any) -> dict[str, Any]:
    def forward(self: Any, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        # The embedding finds them by the module that holds them, and only now: peft may have replaced it meanwhile.
        vars(self.embeddings)[INSERT] = functools.partial(_inserted, self)
        try:
            out = base.forward(self, *args, return_dict=True, **kwargs)
        finally:
            del vars(self.embeddings)[INSERT]
        drop = self.attn_plugins_registers.drop
        out.last_hidden_state = drop(out.last_hidden_state)
        if out.hidden_states is not None:
            out.hidden_states = tuple(None if x is None else drop(x) for x in out.hidden_states)
        if out.attentions is not None:
            out.attentions = tuple(drop(drop(x, -1), -2) for x in out.attentions)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return out if as_dict else out.to_tuple()

    return {"forward": forward}


_LAYERS: dict[str, Overrides] = {
    "dinov1": _dinov1,
    "dinov2": _dinov2,
    "dinov3": _dinov3,
    "timm": _timm,
    "transformers": _transformers,
}
