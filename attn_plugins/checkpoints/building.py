"""From the name of an architecture to a ViT with the weights of a checkpoint, patched as it was trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..patching import describe
from .applying import Choice, apply_plugins, choose
from .architectures import builder_of, construct, fitting
from .digest import backbone_digest, sha256_of
from .errors import CheckpointError
from .huggingface import config_of, from_config, load_folder, told_by_folder
from .identity import CheckpointInfo, identify_loaded
from .layout import is_record
from .loading import backbone_and_heads, misfit
from .plain import config_beside
from .reading import read
from .told import Told, plugin_keys
from .trust import trusted_arch, trusted_options

__all__ = ["build", "chosen_plugins"]


def build(
    arch: str = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    plugins: str = "auto",
    repo: str | os.PathLike[str] | None = None,
    *,
    other_spec: bool = False,
    **options: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Build a ViT, patch it and load a checkpoint into it, strictly.

    Args:
        arch: ``timm/NAME``, ``transformers/FOLDER``, ``dinov1/vit_small``, ``dinov2/…``, ``dinov3/…``; ``auto`` takes
            it from the checkpoint. What is named here is built, whatever the checkpoint's tensors look like.
        checkpoint: the file or folder; None for ``transformers/FOLDER``, which holds its weights, or for random
            weights.
        plugins: a spec, or ``auto`` for what the checkpoint records; where it records nothing, softmax is assumed, with
            a warning. Layers that are recorded one by one are patched one by one.
        repo: checkout of the official repository for ``dinov*/``; by default ``DINO_ROOT``, ``DINOV2_ROOT`` or
            ``DINOV3_ROOT`` names it.
        other_spec: take ``plugins`` even where the checkpoint records another spec, to show what that does.
        options: passed to the model's constructor (``img_size=``, ``patch_size=``).

    Returns:
        The model in eval mode without gradients, and what identifies it:

        - ``arch``; ``checkpoint`` and the ``sha256`` of that file;
        - ``plugins``, and ``plugins_source``: ``recorded``, ``asked for`` or ``assumed``;
        - ``plugins_recorded``: what the file records, None where it is silent;
        - ``plugin_layers``: {attention layer: normalizer, None where it is not patched}, or None where all are alike;
        - ``digest``: equal for backbones that compute the same.

    Raises:
        CheckpointError: the file is not readable, contradicts ``plugins``, does not record the spec of the plugins that
            it holds parameters of, names an architecture that only the user may choose, or has keys that are missing,
            unexpected or of another shape, all listed.
        ValueError: unknown architecture.
    """
    folder = _transformers_folder(arch, checkpoint)
    if folder is not None:
        model, choice = load_folder(folder, plugins, other_spec=other_spec, **options)
        recorded = None if choice.source == "assumed" else choice.spec
        built = _Built(getattr(model, "vision_model", model), f"transformers/{folder}", {"config": config_of(model)})
        return built.identified(choice, recorded, checkpoint)
    if checkpoint is None:
        if arch == "auto":
            raise ValueError(
                "arch='auto' takes the architecture from a checkpoint, none was given: set checkpoint= or arch="
            )
        built, _ = _built(arch, None, repo, options)
        choice = Choice("softmax" if plugins == "auto" else plugins, "asked for")
        apply_plugins(built.model, choice, arch)
        return built.identified(choice, None, None)
    state, heads, info = backbone_and_heads(checkpoint)
    choice = choose(info, plugins, info.plugin_keys, str(checkpoint), other_spec=other_spec)
    built, convert = _from_file(arch, info, state, repo, options)
    apply_plugins(built.model, choice, str(checkpoint))
    _load(built, convert(state), heads, info, guessed=arch == "auto")
    return built.identified(choice, info.spec, checkpoint)


def chosen_plugins(
    checkpoint: str | os.PathLike[str], plugins: str = "auto", *, other_spec: bool = False
) -> tuple[Choice, str | None]:
    """The plugins that ``build`` gives a checkpoint, and what it records, without building anything.

    Arguments, errors and warnings are those of ``build``.
    """
    contents = read(checkpoint, mmap=True)
    if _transformers_folder("auto", checkpoint) is not None:
        said: Told | CheckpointInfo = told_by_folder(checkpoint, contents)
        learned = plugin_keys(contents)
    else:
        said = info = identify_loaded(contents, Path(checkpoint))
        learned = info.plugin_keys
    return choose(said, plugins, learned, str(checkpoint), other_spec=other_spec), said.spec


# Arguments of constructors that decide nothing in eval mode.
_OF_TRAINING = ("drop_path_rate",)


@dataclass
class _Built:
    """A model and how it was built."""

    model: nn.Module
    arch: str
    arguments: Mapping[str, Any]

    def identified(
        self, choice: Choice, recorded: str | None, checkpoint: str | os.PathLike[str] | None
    ) -> tuple[nn.Module, dict[str, Any]]:
        self.model.eval().requires_grad_(False)
        # A folder's name is no part of what is computed.
        name = "transformers" if self.arch.startswith("transformers/") else self.arch
        # What will run, layer by layer.
        normalizers = {line.path: line.spec for line in describe(self.model) if not line.note}
        layers = normalizers if len(set(normalizers.values())) > 1 else None
        arguments = {key: value for key, value in self.arguments.items() if key not in _OF_TRAINING}
        return self.model, {
            "arch": self.arch,
            "plugins": choice.spec,
            "plugins_source": choice.source,
            "plugins_recorded": recorded,
            "plugin_layers": layers,
            "checkpoint": str(checkpoint) if checkpoint else None,
            "sha256": sha256_of(Path(checkpoint)) if checkpoint else None,
            "digest": backbone_digest(self.model, {"arch": name, **arguments}, choice.spec, layers),
        }


def _transformers_folder(arch: str, checkpoint: str | os.PathLike[str] | None) -> Path | None:
    """The folder of transformers that holds both the architecture and the weights, if that is what was named."""
    family, _, name = arch.partition("/")
    if family == "transformers":
        if not Path(name).is_dir():
            raise ValueError(f"transformers/{name}: no such folder; save the model there first with save_pretrained")
        same = checkpoint is not None and Path(checkpoint).resolve() in (Path(name).resolve(), _weights(name))
        return Path(name) if checkpoint is None or same else None
    if arch == "auto" and checkpoint is not None and "model_type" in config_beside(checkpoint):
        path = Path(checkpoint)
        return path if path.is_dir() else path.parent
    return None


def _weights(folder: str) -> Path:
    return (Path(folder) / "model.safetensors").resolve()


def _built(
    arch: str, info: CheckpointInfo | None, repo: str | os.PathLike[str] | None, options: Mapping[str, Any]
) -> tuple[_Built, Callable[[dict[str, Tensor]], dict[str, Tensor]]]:
    shape = None if info is None or info.shape.problem else info.shape
    model, convert, arguments = construct(arch, shape, repo, options)
    return _Built(model, arch, arguments), convert


def _from_file(
    arch: str,
    info: CheckpointInfo,
    state: Mapping[str, Tensor],
    repo: str | os.PathLike[str] | None,
    options: dict[str, Any],
) -> tuple[_Built, Callable[[dict[str, Tensor]], dict[str, Tensor]]]:
    """The model that the caller names, or else the file, or else its tensors."""
    where = str(info.path)
    if arch.startswith("transformers/"):
        import transformers

        config = transformers.AutoConfig.from_pretrained(arch.partition("/")[2], local_files_only=True)
        model = transformers.AutoModel.from_config(config, **options)
        model = getattr(model, "vision_model", model)
        return _Built(model, arch, {"config": config_of(model), **options}), dict
    if arch != "auto":
        if info.arch == arch:
            options = {**trusted_options(info.arch_options, where, arch_given=True), **options}
        return _built(arch, info, repo, options)
    if info.config is not None:
        model = from_config(info.config, state, where)
        model = getattr(model, "vision_model", model)
        return _Built(model, info.arch or "transformers/", {"config": config_of(model)}), dict
    if info.arch is not None:
        arch, options = trusted_arch(info.arch, where), {**trusted_options(info.arch_options, where), **options}
        try:
            return _built(arch, info, repo, options)
        except Exception as error:  # whatever odd sizes make of a constructor: there is no model then
            raise CheckpointError(
                f"{where} tells arch={arch!r}, which cannot be built with {options}: {type(error).__name__}: {error}"
            ) from error
    return _built(_guess(info, state), info, repo, options)


def _guess(info: CheckpointInfo, state: Mapping[str, Tensor]) -> str:
    """The architecture that the tensors alone tell.

    Raises:
        CheckpointError: they do not tell it; the message says what to give.
    """
    shape = info.shape
    if shape.problem:
        raise CheckpointError(f"{info.path}: {shape.problem}; say arch='timm/NAME' as it was built (--arch)")
    builder = builder_of(shape.codebase)
    if builder is None:
        raise CheckpointError(
            f"{info.path} holds a model of {shape.codebase}: say arch='{shape.codebase}/FOLDER' (--arch)"
        )
    if shape.num_heads is None:
        raise CheckpointError(
            f"{info.path} holds a {info.architecture}, which has no common name: say arch='timm/NAME' "
            "(with arch_options, e.g. dict(depth=4)) as it was built"
        )
    if shape.positions is not None and shape.grid is None:
        raise CheckpointError(f"{info.path}: {_grids(shape.positions)}.{_remedy(info, state)}")
    return f"{builder.family}/{info.architecture}"


def _grids(positions: int) -> str:
    """What a position embedding that is no square grid may be."""
    patches = positions - 1
    sides = [side for side in range(2, int(patches**0.5) + 1) if patches % side == 0]
    grids = ", ".join(f"{side} x {patches // side}" for side in reversed(sides)) or f"1 x {patches}"
    return (
        f"a position embedding of {positions} tokens is no square grid and [CLS]; with [CLS] it may be {grids} patches "
        "(height x width or width x height). Say arch='timm/NAME' and img_size=(HEIGHT, WIDTH) in pixels (arch_options)"
    )


def _remedy(info: CheckpointInfo, state: Mapping[str, Tensor]) -> str:
    names = [repr(name) for name in fitting(state, info.shape)] if info.shape.num_heads else []
    return f" Its tensors have the names of arch={' and arch='.join(names)}: say it (--arch)." if names else ""


def _load(
    built: _Built, state: dict[str, Tensor], heads: Mapping[str, Tensor], info: CheckpointInfo, *, guessed: bool
) -> None:
    own = built.model.state_dict()
    state = state | {name: tensor for name, tensor in heads.items() if name in own}
    wrong = misfit(state, own)
    if wrong:
        remedy = _remedy(info, state) if guessed and info.arch is None and info.config is None else ""
        raise CheckpointError(
            f"{info.path} ({info.architecture}/{info.patch_size}) does not fit arch={built.arch!r} "
            f"({type(built.model).__name__}).{remedy} {wrong}"
        )
    built.model.load_state_dict({**{name: tensor for name, tensor in own.items() if is_record(name)}, **state})
