"""transformers: every attention that goes through ``AttentionInterface`` (ViT, DINOv2, DINOv3, SigLIP, CLIP, ...).

Modifications:
- a patched layer finds ``"attn_plugins"`` where it asks its config which implementation to use, whatever the
  model's ``attn_implementation`` is (eager, sdpa, flash); layers that are not patched go on as they were;
- ``output_attentions=True`` gives the map that was used with every implementation (upstream: with eager only).

Follows transformers 5.23 (``integrations/sdpa_attention.py`` for the arguments and their meaning).
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from typing import Any

import torch
from torch import Tensor

from ..attention import attention
from ..errors import UnsupportedModelError
from .base import SPEC, WHOLE, Adapter, Codebase, Container
from .parts import Features, Parts, StateDict
from .recognise import unwrapped
from .registers import inserted

__all__ = ["TRANSFORMERS"]

INTERFACE = "ALL_ATTENTION_FUNCTIONS"
IMPLEMENTATION = "attn_plugins"


class _Config:
    """A layer's config that names our implementation; everything else is read from the model's."""

    def __init__(self, config: Any) -> None:
        self.attn_plugins_config = config
        self._attn_implementation = IMPLEMENTATION

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copy and pickle ask for before there are any attributes
            raise AttributeError(name)
        return getattr(self.attn_plugins_config, name)


def _get_config(module: Any) -> _Config:
    return _Config(module.__dict__["config"])


def _set_config(module: Any, config: Any) -> None:
    module.__dict__["config"] = config


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls, with its argument names.

    Args:
        module: the attention layer.
        query: ``[B, H, N, D]``.
        key: ``[B, H_kv, S, D]``.
        value: ``[B, H_kv, S, D]``.
        attention_mask: ``[B, 1, N, S]`` bool or float, or ``[B, S]`` as flash implementations get it.
        position_bias: added to the scores, broadcasts to ``[B, H, N, S]``.

    Returns:
        ``[B, N, H, D]`` and the weights ``[B, H, N, S]``, or None if nobody asked for them.

    Raises:
        UnsupportedModelError: ``module`` is not patched, or an option that is not attention with a row normalizer.
    """
    if not hasattr(module, "attn_plugins_normalizer"):
        raise UnsupportedModelError(
            f"{type(module).__name__} runs with attn_implementation={IMPLEMENTATION!r} and is not patched, so there is "
            "no normalizer; load the model with attn_implementation='sdpa' and patch it: "
            "attn_plugins.patch(model, 'entmax15')"
        )
    for option in ("softcap", "s_aux", "cache"):
        if kwargs.get(option) is not None:
            raise UnsupportedModelError(
                f"{type(module).__name__} passes {option}; unpatch it or leave it out of layers="
            )
    mask = _merge(attention_mask, position_bias)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    out, weights = _attend(
        module,
        _wants_weights(module),
        query=query,
        key=key,
        value=value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=bool(causal) and mask is None and query.shape[2] > 1,
        scale=scaling,
        enable_gqa=True,
    )
    return out.transpose(1, 2).contiguous(), weights


def _attend(module: Any, return_weights: bool, **arguments: Any) -> tuple[Tensor, Tensor | None]:
    arguments["normalizer"] = module.attn_plugins_normalizer
    return attention(**arguments, return_weights=True) if return_weights else (attention(**arguments), None)


def _wants_weights(module: Any) -> bool:
    config = module.__dict__["config"]
    return bool(module.attn_plugins_asked or config.output_attentions or config._attn_implementation == "eager")


def _merge(mask: Any, bias: Tensor | None) -> Tensor | None:
    if mask is not None and not isinstance(mask, Tensor):
        raise UnsupportedModelError(
            f"an attention mask of type {type(mask).__name__} cannot be read; "
            "load the model with attn_implementation='sdpa'"
        )
    if mask is not None and mask.dim() == 2:
        mask = mask[:, None, None, :].bool()
    if bias is None or mask is None:
        return bias if mask is None else mask
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask


def _overrides(base: Any) -> dict[str, Any]:
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, attention_forward)
    if importlib.util.find_spec("transformers.masking_utils") is not None:  # before, models make their masks themselves
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

        # For a model that is given the name itself: without this, transformers drops its masks.
        AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Remembered here because some models (SigLIP) do not hand it on to the implementation.
        if not kwargs.get("output_attentions"):
            return base.forward(self, *args, **kwargs)
        self.attn_plugins_asked = True
        try:
            return base.forward(self, *args, **kwargs)
        finally:
            del self.attn_plugins_asked

    return {
        "config": property(_get_config, _set_config),
        "attn_plugins_asked": False,
        "forward": functools.wraps(base.forward)(forward),
    }


def _matches(cls: type) -> bool:
    function = unwrapped(getattr(cls, "forward", None))
    if function is None or INTERFACE not in function.__code__.co_names or "transformers" not in sys.modules:
        return False
    modeling = sys.modules.get("transformers.modeling_utils")
    return function.__globals__.get(INTERFACE) is getattr(modeling, INTERFACE, None) is not None


def _is_model(cls: type) -> bool:
    modeling = sys.modules.get("transformers.modeling_utils")
    return modeling is not None and issubclass(cls, modeling.PreTrainedModel)


def _model_overrides(base: Any) -> dict[str, Any]:
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Upstream's; ``config.json`` tells the spec, where all patched layers tell the same."""
        layers = [vars(module) for module in self.modules() if SPEC in vars(module)]
        specs = {told.get(WHOLE, told[SPEC]) for told in layers}
        if len(specs) != 1:
            return base.save_pretrained(self, *args, **kwargs)
        self.config.attn_plugins = {"spec": specs.pop()}
        try:
            return base.save_pretrained(self, *args, **kwargs)
        finally:
            del self.config.attn_plugins

    return {"save_pretrained": save_pretrained}


ADAPTER = Adapter("transformers", _matches, _overrides, around=(Container(_is_model, _model_overrides),))


INSERT = "attn_plugins_registers__insert"


def _embeds(base: Any) -> dict[str, Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        insert = vars(self).get(INSERT)
        x: Tensor = base.forward(self, *args, **kwargs)
        if insert is not None:
            x = insert(x)
        return x

    return {"forward": forward}


def _registers_enter(base: Any) -> dict[str, Any]:
    def forward(self: Any, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        # The embedding finds them by the module that holds them, and only now: peft may have replaced it meanwhile.
        vars(self.embeddings)[INSERT] = functools.partial(inserted, self)
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


MODEL_TYPES = {"vit", "vit_msn", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit"}
"""Those whose tokens are [CLS], perhaps a distillation token, registers and patches, and nothing else."""


def _refuses(root: Any) -> str:
    kind = root.config.model_type
    if kind in MODEL_TYPES:
        return ""
    return f"token mechanisms do not know transformers' model type {kind!r}, only {', '.join(sorted(MODEL_TYPES))}"


def _parts(*marks: str, blocks: str, norm: str) -> Parts:
    return Parts(
        ("config", "embeddings", *marks),
        blocks,
        norm,
        cls_token="embeddings.cls_token",
        norm1=("norm1", "layernorm_before"),
        norm2=("norm2", "layernorm_after"),
        attention=("attention",),
        projection=("o_proj",),
        layer_scales=("layer_scale1", "layer_scale2"),
        registers=lambda root: int(getattr(root.config, "num_register_tokens", 0) or 0),
        option="config.num_register_tokens",
        others=lambda root: int(getattr(root.embeddings, "distillation_token", None) is not None),
        enter=(("", _registers_enter), ("embeddings", _embeds)),
        uncounted=lambda root: hasattr(root, "out_features"),
        refuses=_refuses,
    )


def _run(model: Any, images: Tensor) -> None:
    # Another image size than they were trained at is refused unless resampling is asked for; models without absolute
    # positions do not know the argument.
    takes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    model(pixel_values=images, **({"interpolate_pos_encoding": True} if takes else {}))


TRANSFORMERS = Codebase(
    "transformers",
    adapters=(ADAPTER,),
    vits=(
        _parts("layers", "layernorm", blocks="layers", norm="layernorm"),
        _parts("encoder", "layernorm", blocks="encoder.layer", norm="layernorm"),
        _parts("rope_embeddings", blocks="model.layer", norm="norm"),
    ),
    features=Features(
        ("encoder.layer", "model.layer", "layer", "layers", "encoder.layers", "vision_model.encoder.layers"),
        ("norm", "layernorm", "vision_model.post_layernorm", "post_layernorm"),
        ("config.hidden_size",),
        ("config.patch_size", "config.vision_config.patch_size"),
        run=_run,
    ),
    state=StateDict(
        stems=(  # ViT and DINOv2, DINOv3, CLIP and SigLIP
            "embeddings.patch_embeddings.projection.weight",
            "embeddings.patch_embeddings.weight",
            "embeddings.patch_embedding.weight",
        ),
        cls_token=("embeddings.cls_token", "embeddings.class_embedding"),
        registers=("embeddings.register_tokens",),
        positions=("embeddings.position_embeddings",),
    ),
)
