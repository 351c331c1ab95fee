"""What is this checkpoint: architecture, patch size, registers, plugin spec, and which keys are the backbone's."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..patching.record import METADATA_KEY
from ..spec import parse
from .errors import CheckpointError
from .layout import Shape, backbone_keys, candidates, sections, shape_of
from .reading import read

__all__ = ["CheckpointInfo", "agree", "identify", "identify_loaded", "recorded_spec", "spec_inside"]

_AVERAGED = ("teacher", "ema")  # what an evaluation wants where a file holds several


@dataclass(frozen=True)
class CheckpointInfo:
    """One backbone in one file.

    Attributes:
        path: the file.
        shape: architecture, patch size, native registers and the rest of what the tensors tell.
        spec: the canonical plugin spec that the file says it was trained with; None if it says nothing.
        spec_source: where it says so.
        section: the top-level key that holds the backbone's state dict ("" for a flat file).
        prefix: what precedes the backbone's keys there, as `module.backbone.`.
        keys: {key in the section: key of the unwrapped, unchunked backbone}.
        arch: how to build it, as ``save`` was told (``timm/vit_tiny_patch16_224``); None elsewhere.
        arch_options: what the constructor was given besides.
        others: the other (section, prefix) pairs that hold a backbone.
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


def identify(path: str | os.PathLike[str], key: str | None = None) -> CheckpointInfo:
    """Say what a checkpoint is, without loading its tensors into memory and without running anything in it.

    Reads DINOv1's `checkpoint.pth`, DINOv2's and DINOv3's `teacher_checkpoint.pth` (and the run's `config.yaml`),
    released weights, state dicts exported by lightly-train or timm, and the files of `attn_plugins.checkpoints.save`.

    Args:
        path: the file.
        key: which backbone, where there are several: `teacher` or `student`. By default the averaged one.

    Raises:
        CheckpointError: the file cannot be read safely, holds no ViT, holds several and `key` picks none, or
            tells two specs.
    """
    return identify_loaded(read(path, mmap=True), Path(path), key)


def identify_loaded(checkpoint: Any, path: Path, key: str | None = None) -> CheckpointInfo:
    """`identify` for contents that were read already."""
    found = candidates(checkpoint)
    section, prefix = _pick(list(found), key, ", ".join(map(str, list(checkpoint)[:8])), path)
    state = found[section, prefix]
    spec, source = _spec(checkpoint, [(prefix, state)], path)
    keys = backbone_keys(state, prefix)
    ours = checkpoint.get(METADATA_KEY)
    built = ours if isinstance(ours, Mapping) else {}
    return CheckpointInfo(
        path=path,
        shape=shape_of(state, keys, classifier=f"{prefix}head.weight" in state),
        spec=spec,
        spec_source=source,
        section=section,
        prefix=prefix,
        keys=keys,
        others=tuple(place for place in found if place != (section, prefix)),
        arch=built.get("arch"),
        arch_options=built.get("arch_options", {}),
    )


def recorded_spec(path: str | os.PathLike[str]) -> tuple[str | None, list[str]]:
    """The spec that a file says it was trained with, None if it says nothing, and all the keys of its state dicts.

    Unlike `identify` it takes any network: a ResNet's checkpoint has a spec as little as an architecture known here.

    Raises:
        CheckpointError: the file cannot be read safely, or tells two specs.
    """
    checkpoint = read(path, mmap=True)
    states = sections(checkpoint)
    spec, _ = _spec(checkpoint, [("", state) for state in states.values()], Path(path))
    return spec, [key for state in states.values() for key in state if isinstance(key, str)]


def spec_inside(contents: Any, where: str) -> str | None:
    """The spec that contents of a file tell once they are loaded; None if they tell nothing or are no checkpoint.

    Raises:
        CheckpointError: they tell two.
    """
    if not isinstance(contents, Mapping):
        return None
    return _single(_told(contents, [("", state) for state in sections(contents).values()]), where)[0]


def agree(recorded: str | None, requested: str | None, where: str) -> str:
    """The spec to use with a checkpoint: its own; a request may repeat it but not contradict it.

    Args:
        recorded: what the file says, None if it is silent (weights trained without plugins).
        requested: what the caller asks for, None for "whatever the file says".
        where: the file, for the message.

    Raises:
        CheckpointError: the two differ.
    """
    if recorded is None or requested is None:
        return _canonical(requested or recorded or "softmax")
    if _canonical(recorded) != _canonical(requested):
        raise CheckpointError(
            f"{where} was trained with {_canonical(recorded)!r} and {_canonical(requested)!r} was asked for: the "
            "weights mean something only with their own attention. Ask for the file's own, or for none."
        )
    return _canonical(recorded)


def _canonical(spec: str) -> str:
    return str(parse(spec))


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
    return {word for part in (section, *prefix.split(".")) for word in (part, *part.split("_"))}


def _spec(
    checkpoint: Mapping[str, Any], states: Iterable[tuple[str, Mapping[str, Any]]], path: Path
) -> tuple[str | None, str | None]:
    """The spec and where it stands; states: (prefix of the backbone, the dict that holds it)."""
    # A config may have been written anew since, by a run that was refused: the file itself is believed first.
    return _single(_told(checkpoint, states) or _config_beside(path), str(path))


def _single(told: Mapping[str, str], where: str) -> tuple[str | None, str | None]:
    if len({_canonical(spec) for spec in told.values()}) > 1:
        raise CheckpointError(f"{where} tells more than one spec: {told}. It was put together from different runs.")
    return next(((_canonical(spec), place) for place, spec in told.items()), (None, None))


def _told(checkpoint: Mapping[str, Any], states: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """{place: spec} of every place inside a file that tells one."""
    told: dict[str, str] = {}
    for prefix, state in states:
        for module, metadata in getattr(state, "_metadata", {}).items():
            place = f"{module}." if module else ""
            if METADATA_KEY in metadata and (place.startswith(prefix) or prefix.startswith(place)):
                told["state dict metadata"] = metadata[METADATA_KEY]["spec"]
    args = checkpoint.get("args")
    if isinstance(args, Namespace) and getattr(args, METADATA_KEY, None):
        told["args"] = getattr(args, METADATA_KEY)
    ours = checkpoint.get(METADATA_KEY)
    if isinstance(ours, Mapping) and "spec" in ours:
        told[METADATA_KEY] = ours["spec"]
    return told


def _config_beside(path: Path) -> dict[str, str]:
    """{config: spec} of DINOv2's and DINOv3's OUTPUT/config.yaml, the file being in OUTPUT or OUTPUT/eval/ITERATION."""
    folder = path.absolute().parent
    output = folder.parents[1] if len(folder.parents) > 1 and folder.parent.name == "eval" else folder
    for config in (folder / "config.yaml", output / "config.yaml"):
        if config.is_file():
            import yaml

            try:
                settings = yaml.safe_load(config.read_text())
            except yaml.YAMLError as error:
                raise CheckpointError(f"{config}, which should tell the spec of {path}, is no YAML: {error}") from error
            student = settings.get("student") if isinstance(settings, dict) else None
            if isinstance(student, dict) and student.get(METADATA_KEY):
                return {str(config): student[METADATA_KEY]}
    return {}
