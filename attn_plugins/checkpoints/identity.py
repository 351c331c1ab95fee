"""What is this checkpoint: architecture, patch size, registers, plugin spec, and which keys are the backbone's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..patching.record import METADATA_KEY
from .architectures import told_by
from .errors import CheckpointError
from .layout import Shape, backbone_keys, candidates, sections, shape_of
from .plain import config_beside
from .reading import read
from .told import Told, config_of_run, plugin_keys, told

__all__ = ["CheckpointInfo", "identify", "identify_loaded", "recorded_spec", "spec_inside"]

_AVERAGED = ("teacher", "ema")  # what an evaluation wants where a file holds several


@dataclass(frozen=True)
class CheckpointInfo:
    """One backbone in one file or folder.

    Attributes:
        path: the file.
        shape: architecture, patch size, native registers and the rest of what the tensors tell.
        spec: the canonical plugin spec that the file says it was trained with; None if it says nothing, which does
            not mean softmax.
        spec_source: where it says so.
        section: where in the file the backbone's state dict lies ("" for a flat file).
        prefix: what precedes the backbone's keys there, as ``module.backbone.``.
        keys: {key in the section: key of the unwrapped, unchunked backbone}.
        heads: the same of heads and of what only training needs.
        others: the other (section, prefix) pairs that hold a backbone.
        arch: how the file says it is built (``timm/vit_tiny_patch16_224``); None where it does not.
        arch_options: what it says that the constructor was given besides. Neither is to be trusted: see ``build``.
        config: of a transformers model, what it says of its config.
        layers: {attention layer: spec}, as the layers' own records say.
        order: the normalizer of each attention layer, of older files whose layers differ.
    """

    path: Path
    shape: Shape
    spec: str | None
    spec_source: str | None
    section: str
    prefix: str
    keys: Mapping[str, str] = field(repr=False)
    others: tuple[tuple[str, str], ...] = ()
    arch: str | None = None
    arch_options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] | None = field(default=None, repr=False)
    heads: Mapping[str, str] = field(default_factory=dict, repr=False)
    layers: Mapping[str, str] = field(default_factory=dict, repr=False)
    order: tuple[str | None, ...] = ()

    @property
    def codebase(self) -> str:
        return self.shape.codebase

    @property
    def architecture(self) -> str:
        return self.shape.architecture

    @property
    def patch_size(self) -> int:
        return self.shape.patch_size

    @property
    def registers(self) -> int:
        return self.shape.registers

    @property
    def plugin_keys(self) -> list[str]:
        """The backbone's keys that are parameters of plugins."""
        return plugin_keys(self.keys.values())


def identify(path: str | os.PathLike[str], key: str | None = None) -> CheckpointInfo:
    """Say what a checkpoint is, without loading its tensors into memory and without running anything in it.

    Reads DINOv1's ``checkpoint.pth``, DINOv2's and DINOv3's ``teacher_checkpoint.pth`` (and the run's ``config.yaml``),
    released weights, state dicts exported by lightly-train or timm, the files of ``attn_plugins.checkpoints.save``, and
    what ``read`` reads besides.

    Args:
        path: the file or folder.
        key: which backbone, where there are several: ``teacher`` or ``student``. By default the averaged one.

    Raises:
        CheckpointError: the file cannot be read safely, holds no ViT, holds several and ``key`` picks none, or
            tells two specs.
    """
    info = identify_loaded(read(path, mmap=True), Path(path), key)
    if info.shape.problem:
        raise CheckpointError(f"{path}: {info.shape.problem}")
    return info


def identify_loaded(checkpoint: Any, path: Path, key: str | None = None) -> CheckpointInfo:
    """``identify`` for contents that were read already; what is no known ViT says so in ``shape.problem``."""
    found = candidates(checkpoint)
    section, prefix = _pick(list(found), key, ", ".join(map(str, list(checkpoint)[:8])), path)
    state = found[section, prefix]
    config = config_beside(path)
    said = told(checkpoint, [(prefix, state)], str(path), config)
    keys, heads = backbone_keys(state, prefix)
    # What a run's config says holds for the layers' records too; it is asked even where they have spoken.
    of_run = config_of_run(path, said.spec)
    spec, source = (said.spec, said.source) if said.spec or not of_run else of_run
    return CheckpointInfo(
        path=path,
        shape=shape_of(state, keys, heads),
        spec=spec,
        spec_source=source,
        section=section,
        prefix=prefix,
        keys=keys,
        heads=heads,
        others=tuple(place for place in found if place != (section, prefix)),
        layers=said.layers,
        order=said.order,
        **_construction(checkpoint, config, path),
    )


def recorded_spec(path: str | os.PathLike[str]) -> tuple[str | None, list[str]]:
    """The spec that a file says it was trained with, None if it says nothing, and all the keys of its state dicts.

    Unlike ``identify`` it takes any network: a ResNet's checkpoint has a spec as little as an architecture known here.

    Raises:
        CheckpointError: the file cannot be read safely, or tells two specs.
    """
    checkpoint = read(path, mmap=True)
    said = _anywhere(checkpoint, str(path), config_beside(path))
    of_run = config_of_run(Path(path), said.spec)
    spec = said.spec or (of_run[0] if of_run else None)
    return spec, [key for state in sections(checkpoint).values() for key in state if isinstance(key, str)]


def spec_inside(contents: Any, where: str) -> str | None:
    """The spec that contents of a file tell once they are loaded; None if they tell nothing or are no checkpoint.

    Raises:
        CheckpointError: they tell two.
    """
    return _anywhere(contents, where, {}).spec if isinstance(contents, Mapping) else None


def _anywhere(checkpoint: Any, where: str, config: Mapping[str, Any]) -> Told:
    return told(checkpoint, [("", state) for state in sections(checkpoint).values()], where, config)


def _construction(checkpoint: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """``arch``, ``arch_options`` and ``config``, from our own entry, timm's ``config.json`` or transformers'."""
    ours = checkpoint.get(METADATA_KEY)
    built = ours if isinstance(ours, Mapping) else {}
    arch, options, transformers = built.get("arch"), built.get("arch_options", {}), built.get("config")
    beside = told_by(config)
    if arch is None and beside is not None:
        arch, options = beside
    elif arch is None and transformers is None and "model_type" in config:
        transformers = config
    for name, value, kind in (
        ("arch", arch, str),
        ("arch_options", options, Mapping),
        ("config", transformers, Mapping),
    ):
        if value is not None and not isinstance(value, kind):
            raise CheckpointError(f"{path}: its {name} is {type(value).__name__}: {value!r:.80}")
    return {"arch": arch, "arch_options": dict(options or {}), "config": transformers}


def _pick(places: list[tuple[str, str]], key: str | None, seen: str, path: Path) -> tuple[str, str]:
    if not places:
        raise CheckpointError(f"{path} holds no Vision Transformer (no *patch_embed.proj.weight); it holds: {seen}")
    if key is None and len(places) == 1:
        return places[0]
    for wanted in _AVERAGED if key is None else (key,):
        chosen = [place for place in places if wanted in _words(place)]
        if len(chosen) == 1:
            return chosen[0]
    raise CheckpointError(f"{path} holds backbones at {places}; key={key!r} picks no single one of them")


def _words(place: tuple[str, str]) -> set[str]:
    """("model", "teacher_ema.backbone.") → {model, teacher_ema, teacher, ema, backbone}."""
    section, prefix = place
    return {word for part in (*section.split("."), *prefix.split(".")) for word in (part, *part.split("_"))}
