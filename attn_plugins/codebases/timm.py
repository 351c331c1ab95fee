"""timm: its ``VisionTransformer`` and ``Eva``, which build most architectures, those of the DINO codebases too.

Their attention calls SDPA, or multiplies in the same method, and is left to ``generic``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..swap import PREFIX
from .base import Codebase
from .parts import Builder, Built, Features, Parts, Shape, StateDict, is_common, is_head
from .positions import OfficialPositions
from .registers import inserted

__all__ = ["BUILDING", "NAMES", "TIMM", "same", "same_rotary"]

NAMES = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
    "vit_huge2": "vit_huge_patch14_224",
}
# What people pre-train and timm has, by the sizes in its names.
_FITTING = (
    "vit_{}_patch16_224",
    "vit_{}_patch14_dinov2",
    "vit_{}_patch14_reg4_dinov2",
    "deit3_{}_patch16_224",
    "deit_{}_distilled_patch16_224",
    "eva02_{}_patch14_224",
    "vit_{}_patch16_dinov3_qkvb",
    "vit_{}_patch14_224",
    "deit3_{}_patch14_224",
)


def _registers_enter(base: Any) -> dict[str, Any]:
    def counted(self: Any, name: str) -> int:
        registers = self.attn_plugins_registers
        own = int(vars(self).get(name, 0))
        return own + (int(registers.tokens.shape[1]) if registers.counted else 0)

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
        return inserted(self, embed(self, *args, **kwargs))

    later = {"set_input_size": without_registers(base.set_input_size)} if hasattr(base, "set_input_size") else {}
    return {
        "num_prefix_tokens": property(lambda self: counted(self, "num_prefix_tokens")),
        "num_reg_tokens": property(lambda self: counted(self, "num_reg_tokens")),
        "group_matcher": group_matcher,
        "no_weight_decay": no_weight_decay,
        "_pos_embed": _pos_embed,
        **later,  # of timm 1.0.8
    }


def _registers(root: Any) -> int:
    tokens = getattr(root, "reg_token", None)  # of timm 0.9.8
    return 0 if tokens is None else int(tokens.shape[1])


def _others(root: Any) -> int:
    # Read from the instance: a patched class answers with further registers added.
    return int(vars(root)["num_prefix_tokens"]) - 1 - _registers(root)


def _is_ours(keys: Collection[str], heads: Collection[str]) -> bool:
    return "head.weight" in heads or "reg_token" in keys or "dist_token" in keys


def _build(name: str, shape: Shape | None, repo: Any, options: Mapping[str, Any]) -> Built:
    timm = _timm()
    arguments = {"dynamic_img_size": True, **_size(shape), **options}
    return timm.create_model(NAMES.get(name, name), pretrained=False, num_classes=0, **arguments), dict, arguments


def _timm() -> Any:
    """timm, if its ViTs take the arguments that checkpoints call for; ``patch`` serves older ones as they are.

    Raises:
        UnsupportedModelError: it is too old for that.
    """
    import timm
    from timm.models.vision_transformer import VisionTransformer

    if "dynamic_img_size" not in inspect.signature(VisionTransformer.__init__).parameters:
        raise UnsupportedModelError(
            f"timm {timm.__version__} cannot build a ViT for a checkpoint here, which takes timm 0.9.16: "
            "pip install -U timm. Models that you build yourself are patched with timm from 0.4.12"
        )
    return timm


def same(name: str, shape: Shape | None, options: Mapping[str, Any], renamed: bool = True) -> Built:
    """An official architecture built by timm; equality with the official code is tested to 1e-5.

    Args:
        name: what timm calls it, with a place for what it calls those with registers.
        shape: what a checkpoint's tensors tell; None for the architecture's own sizes.
        options: further arguments of the constructor; they win.
        renamed: whether timm's parameters have other names.

    Raises:
        UnsupportedModelError: timm is too old.
    """
    timm = _timm()
    from timm.models import vision_transformer

    registers = shape.registers if shape else 0
    counted = {"reg_tokens": registers} if registers else {}
    arguments = _size(shape) | counted | dict(options)
    model: Any = timm.create_model(name.format("reg4_" if registers else ""), num_classes=0, **arguments)
    model.official_positions = OfficialPositions(model, 0.0 if registers else 0.1, antialias=bool(registers))
    convert = partial(_convert, filter_fn=vision_transformer.checkpoint_filter_fn, model=model) if renamed else dict
    return model, convert, arguments


def same_rotary(name: str, shape: Shape | None, options: Mapping[str, Any]) -> Built:
    """As ``same``, with rotary positions: timm builds it by ``Eva`` in its own sizes."""
    timm = _timm()
    from timm.models import eva

    model = timm.create_model(name, num_classes=0, **options)
    return model, partial(_convert, filter_fn=eva.checkpoint_filter_fn, model=model), dict(options)


def _convert(state: dict[str, Tensor], filter_fn: Callable[..., Any], model: nn.Module) -> dict[str, Tensor]:
    """timm's renaming of the model's own tensors; those of plugins stay as they are."""
    own = {name: tensor for name, tensor in state.items() if PREFIX not in name}
    plugins = {name: tensor for name, tensor in state.items() if PREFIX in name}
    converted: dict[str, Tensor] = filter_fn(own, model=model)
    return converted | plugins


def _size(shape: Shape | None) -> dict[str, int]:
    if shape is None or shape.positions is None:
        return {}
    size = {} if shape.grid is None else {"img_size": shape.grid * shape.patch_size}
    return {"patch_size": shape.patch_size} | size


def _may_be_told(name: str) -> bool:
    import timm

    return name in timm.list_models() or is_common(name)


def _told(config: Mapping[str, Any]) -> tuple[str, Any] | None:
    name = config.get("architecture")
    return (name, config.get("model_args", {})) if isinstance(name, str) else None


def _fitting(tensors: Mapping[str, Tensor], shape: Shape) -> list[str]:
    import timm

    size = {"vit_giant2": "giant", "vit_huge2": "huge"}.get(shape.architecture, shape.architecture[len("vit_") :])
    known = set(timm.list_models())
    names = [name for name in (pattern.format(size) for pattern in _FITTING) if name in known]
    return [name for name in names if _fits(name, tensors, shape)]


def _fits(name: str, tensors: Mapping[str, Tensor], shape: Shape) -> bool:
    import timm

    size: Any = _size(shape)
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, num_classes=0, **size)
    theirs = {key: tensor for key, tensor in tensors.items() if PREFIX not in key}
    own = {key: tensor for key, tensor in model.state_dict().items() if not is_head(key)}
    return own.keys() == theirs.keys() and all(
        own[key].shape == tensor.shape or key == "pos_embed" for key, tensor in theirs.items()
    )


BUILDING = Builder("timm", _build, _may_be_told, _told, _fitting)
_MARKS = ("_pos_embed", "num_prefix_tokens")
TIMM = Codebase(
    "timm",
    vits=(
        Parts(  # Eva, and DINOv3 there: rotary positions are counted apart
            (*_MARKS, "rope"),
            registers=_registers,
            option="num_reg_tokens",
            others=_others,
            enter=(("", _registers_enter),),
            uncounted=lambda root: True,
        ),
        Parts(
            _MARKS,
            registers=_registers,
            option="reg_tokens",
            others=_others,
            enter=(("", _registers_enter),),
            uncounted=lambda root: _others(root) > 0,
        ),
    ),
    features=Features(),
    state=StateDict(_is_ours),
    building=BUILDING,
    constructor=("patch_embed", "blocks"),
)
