"""Factors on the scores that were fitted to a backbone, in a file of their own: ``patch(model, spec, scales=FILE)``."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..files import read_json, write_text
from ..functional.scale import HeadScale
from ..params import SCALE
from ..spec import Plugin, Spec, parse
from ..swap import PREFIX
from .sites import Site

__all__ = ["Scales", "fingerprint"]

FORMAT = 1
SHIPPED = Path(__file__).resolve().parent / "fitted"
"""Files that come with the package, by the name of their backbone."""
NEAR = 0.005
"""Share by which the norms of a backbone's projections may differ: rounding, or a step of fine-tuning."""
_OUTPUT = {"proj", "out_proj", "o_proj", "output"}
"""Projections behind the heads, which some codebases keep elsewhere."""


@dataclass(frozen=True)
class Scales:
    """A factor for every head of a backbone.

    Attributes:
        spec: what they were fitted for, ``"entmax15:scale=per_head"``.
        layers: for each attention layer, in the order of ``describe``, the factors of its heads.
        backbone: what ``fingerprint`` told of the model that they were fitted on.
        fitted: how: pictures, sizes, sparsity, what was measured.
    """

    spec: str
    layers: tuple[tuple[float, ...], ...]
    backbone: Mapping[str, Any] = field(repr=False)
    fitted: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, source: str | os.PathLike[str] | Scales) -> Scales:
        """From a file, or the name of a backbone whose factors come with the package (``"dinov2_vits14"``).

        Raises:
            ValueError: there is no such file or name, or it holds no scales.
        """
        if isinstance(source, Scales):
            return source
        path = Path(source)
        if not path.suffix and not path.exists():
            known = sorted(file.stem for file in SHIPPED.glob("*.json"))
            if path.name not in known:
                raise ValueError(f"scales={str(source)!r}: no such file, and of {', '.join(known)} none is called so")
            path = SHIPPED / f"{path.name}.json"
        return cls._of(read_json(path), str(path))

    @classmethod
    def _of(cls, held: Any, where: str) -> Scales:
        if not isinstance(held, dict) or held.get("attn_plugins_scales") != FORMAT:
            raise ValueError(f"{where} holds no scales (attn_plugins_scales: {FORMAT}), as calibrate writes them")
        layers: Any = held.get("layers")
        norms = (held.get("backbone") or {}).get("norms")
        plain = isinstance(layers, list) and layers and all(isinstance(layer, list) and layer for layer in layers)
        if not plain or not all(_is_factor(value) for layer in layers for value in layer):
            raise ValueError(f"{where}: layers are lists of numbers above 0, one for each head")
        if not isinstance(norms, list) or len(norms) != len(layers) or not all(_is_factor(norm) for norm in norms):
            raise ValueError(f"{where}: backbone has no norms of {len(layers)} layers, by which it would be known")
        spec = parse(held.get("spec", ""))
        _ = spec.normalizer  # raises where it differs from layer to layer, which no fit does
        return cls(str(spec), tuple(map(tuple, layers)), held["backbone"], held.get("fitted") or {})

    def write(self, path: str | os.PathLike[str]) -> None:
        """As JSON, whole or not at all."""
        held = {"attn_plugins_scales": FORMAT, "spec": self.spec, "fitted": self.fitted, "backbone": self.backbone}
        rows = ",\n".join(f"    {json.dumps(list(layer))}" for layer in self.layers)
        text = json.dumps(held, indent=2).removesuffix("\n}")
        write_text(path, f'{text},\n  "layers": [\n{rows}\n  ]\n}}\n')

    def spec_for(self, asked: Spec) -> Spec:
        """``asked`` with a factor for each head, if these were fitted for its normalizer.

        Raises:
            ValueError: they were fitted for another one, or it has a factor already.
        """
        own = _without_scale(parse(self.spec).normalizer)
        made = []
        for plugin in asked.normalizers:
            if _without_scale(plugin) != own:
                raise ValueError(f"these scales were fitted for {own}, and {plugin} was asked for; fit them for it")
            scale = plugin.kwargs.get(SCALE, "per_head")
            if scale not in ("per_head", "learnable"):
                raise ValueError(f"{plugin} has a scale already; leave it out, or say scale=learnable")
            params = tuple(sorted({**plugin.kwargs, SCALE: scale}.items()))
            made.append(replace(plugin, params=params))
        return replace(asked, normalizers=tuple(made))

    def check(self, layers: Sequence[Site], chosen: Sequence[Site], other_backbone: bool) -> None:
        """Raise ``ValueError`` where they are of another backbone than the one with these attention layers."""
        pooling = [site.path for site in chosen if site.pooling]
        if pooling:
            raise ValueError(f"scales are of attention layers, and {pooling} are pooling heads; leave them out")
        heads = [site.adapter.num_heads(site.module) for site in layers]
        wanted = [len(layer) for layer in self.layers]
        if heads != wanted:
            raise ValueError(f"these scales are of {len(wanted)} layers with {wanted} heads; the model has {heads}")
        if other_backbone:
            return
        theirs, own = self.backbone["norms"], fingerprint(layers)["norms"]
        off = max(abs(a - b) / b for a, b in zip(own, theirs, strict=True))
        if off > NEAR:
            raise ValueError(
                f"these scales were fitted on another backbone: the norms of its projections differ by up to {off:.1%}."
                " Calibrate this one (attn_plugins.calibrate), or say other_backbone=True"
            )

    def put(self, index: int, normalizer: Any) -> None:
        """Give the normalizer of layer ``index`` its factors."""
        scaled: HeadScale = normalizer
        scaled.log_scale.data.copy_(torch.tensor(self.layers[index], dtype=torch.float64).log())


def fingerprint(layers: Sequence[Site]) -> dict[str, Any]:
    """What tells a backbone from others by what makes its queries, keys and values, whatever its codebase.

    Returns:
        ``norms``: one for each attention layer, to six digits; and ``digest``: SHA-256 of names and values in float32,
        in hexadecimal, the same for exactly these weights in this codebase.
    """
    digest, norms = hashlib.sha256(), []
    for site in layers:
        total = 0.0
        for name, parameter in sorted(site.module.named_parameters()):
            if PREFIX in name or _OUTPUT & set(name.split(".")):
                continue
            values = parameter.detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{name} {list(values.shape)}\n".encode())
            digest.update(values.numpy().data)
            total += float(values.double().square().sum())
        norms.append(float(f"{math.sqrt(total):.6g}"))
    return {"digest": digest.hexdigest(), "norms": norms}


def _without_scale(plugin: Plugin) -> Plugin:
    return replace(plugin, params=tuple(p for p in plugin.params if p[0] != SCALE), layers=())


def _is_factor(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
