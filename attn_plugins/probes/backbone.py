"""A frozen ViT as an mmseg backbone: features for a probe, nothing for the optimizer or the checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..checkpoints import build
from ..checkpoints.verdict import verdict
from ..codebases.features import ViTFeatures, center_pad, evenly_spaced

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing since Python 3.11

__all__ = ["FEATURES", "FrozenViT", "features_digest"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
FEATURES = ("plugins", "layers", "norm", "cls_token", "autocast")
_CLS = ("none", "concat", "tuple")


@MODELS.register_module()
class FrozenViT(BaseModule):
    """Features of a frozen ViT.

    The ViT is held outside the module tree: no parameter of it reaches the optimizer, DDP or a state dict. What
    identifies it is ``identity``, which ``BackboneIdentityHook`` writes into the probe's checkpoints.

    Args:
        checkpoint: file with the backbone; see ``attn_plugins.checkpoints``.
        arch: ``auto`` (from the checkpoint), ``timm/NAME``, ``transformers/FOLDER``, ``dinov1/vit_small``,
            ``dinov2/…``, ``dinov3/…``.
        plugins: spec of the attention plugins, ``auto`` for the checkpoint's own.
        repo: checkout of the official code for ``dinov*/…``, default from DINO_ROOT, DINOV2_ROOT, DINOV3_ROOT.
        out_indices: 0-based blocks, negative from the end, or ``four`` for four evenly spaced ones.
        norm: apply the final norm to every layer.
        cls_token: ``none``; ``concat``: [CLS] broadcast over the grid and appended to the channels; ``tuple``: beside.
        autocast: ``bf16`` or ``fp16`` for the backbone's forward; features come out as float32.
        arch_options: arguments of the architecture's constructor.
        random_init: accept that there is no checkpoint and use random weights (a baseline, or a test).

    Attributes:
        tuned: whether the ViT is trained too: never of this class.
        channels: channels of each output.
        identity: arch, plugins, checkpoint and digests of what was loaded; layers, norm, cls_token and autocast; and
            ``features_digest`` of all that decides a feature.

    Raises:
        ValueError: no checkpoint, a layer that does not exist, an unknown option.
        CheckpointError: a checkpoint that does not fit; missing and unexpected keys are listed.
    """

    tuned = False

    def __init__(
        self,
        checkpoint: str | None = None,
        arch: str = "auto",
        plugins: str = "auto",
        repo: str | None = None,
        out_indices: Sequence[int] | str = (-1,),
        norm: bool = True,
        cls_token: str = "none",
        autocast: str | None = None,
        arch_options: dict[str, Any] | None = None,
        random_init: bool = False,
    ) -> None:
        super().__init__()
        if checkpoint is None and not random_init and not arch.startswith("transformers/"):
            raise ValueError(
                "FrozenViT needs a checkpoint: --cfg-options model.backbone.checkpoint=FILE "
                "(or model.backbone.random_init=True with an arch, for a baseline)"
            )
        if cls_token not in _CLS:
            raise ValueError(f"cls_token={cls_token!r}; use one of {', '.join(_CLS)}")
        if autocast is not None and autocast not in _AUTOCAST:
            raise ValueError(f"autocast={autocast!r}; use one of {', '.join(_AUTOCAST)} or leave it out")
        model, identity = build(arch, checkpoint, plugins, repo, **(arch_options or {}))
        # A list hides the ViT from nn.Module; `_apply` below moves it with the rest.
        self._hidden = [ViTFeatures(model)]
        self.layers = _layers(out_indices, self._vit.depth)
        verified = verdict(model, str(checkpoint or arch))
        if not self.tuned:
            self._vit.stop_after(max(self.layers))
        self.norm = norm
        self.cls_token = cls_token
        self.autocast = autocast
        self.patch_size = self._vit.patch_size
        self.channels = [self._vit.embed_dim * (2 if cls_token == "concat" else 1)] * len(self.layers)
        choice = {"layers": list(self.layers), "norm": norm, "cls_token": cls_token, "autocast": autocast}
        self.identity = {**identity, **choice}
        self.identity["features_digest"] = features_digest(self.identity)
        self.identity["verified"] = verified

    @property
    def _vit(self) -> ViTFeatures:
        return self._hidden[0]

    @property
    def model(self) -> nn.Module:
        """The patched ViT itself."""
        model: nn.Module = self._vit.model
        return model

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Any, ...]:
        """Features of every layer asked for.

        Args:
            images: ``[B, 3, H, W]``, normalised; any H and W, centre-padded to multiples of the patch size.

        Returns:
            For each layer ``[B, C, h, w]``; ``[B, 2C, h, w]`` with ``concat``; ``([B, C, h, w], [B, C])`` with
            ``tuple``.
        """
        return self._features(images)

    def _features(self, images: Tensor) -> tuple[Any, ...]:
        images = center_pad(images, self.patch_size)
        with self._autocast(images.device.type):
            features = self._vit(images, self.layers, self.norm)
        return tuple(self._output(patches.float(), cls.float()) for patches, cls in features)

    def told(self) -> dict[str, Any]:
        """What a head's checkpoint says of the backbone that it belongs to."""
        return self.identity

    def _output(self, patches: Tensor, cls: Tensor) -> Any:
        if self.cls_token == "tuple":
            return patches, cls
        if self.cls_token == "concat":
            return torch.cat([patches, cls[:, :, None, None].expand_as(patches)], dim=1)
        return patches

    def _autocast(self, device: str) -> Any:
        return torch.autocast(device, _AUTOCAST[self.autocast]) if self.autocast else nullcontext()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.model._apply(fn)
        super()._apply(fn, recurse)
        return self

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.identity.items())


def features_digest(identity: Mapping[str, Any]) -> str:
    """Of everything that decides a feature, in hexadecimal; where the backbone's file lies is not of it."""
    decides = [identity.get("digest", identity["sha256"]), *(identity[key] for key in FEATURES)]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _layers(out_indices: Sequence[int] | str, depth: int) -> tuple[int, ...]:
    if isinstance(out_indices, str):
        if out_indices != "four":
            raise ValueError(f"out_indices={out_indices!r}; use block indices or 'four'")
        return evenly_spaced(depth)
    wrong = [index for index in out_indices if not -depth <= index < depth]
    if wrong or not out_indices:
        raise ValueError(f"out_indices={list(out_indices)}: the backbone has blocks 0 to {depth - 1}")
    return tuple(index % depth for index in out_indices)
