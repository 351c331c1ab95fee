"""transformers: folders of ``save_pretrained`` loaded with their plugins, and models built from a stored config."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..patching import find_attention
from ..patching.record import METADATA_KEY
from ..record import RECORD
from .applying import Choice, apply_plugins, choose
from .errors import CheckpointError
from .plain import config_beside
from .reading import read
from .told import Told, plugin_keys, told

__all__ = ["config_of", "from_config", "from_pretrained", "load_folder", "told_by_folder"]

# Of a config that lies in a checkpoint, what could fetch or run something.
_NEVER = frozenset(
    {"attn_implementation", "auto_map", "quantization_config", "backbone", "custom_pipelines"}
    | {"torch_dtype", "dtype", "transformers_version", METADATA_KEY}
)


def from_pretrained(
    folder: str | os.PathLike[str],
    model_class: Any = None,
    *,
    plugins: str = "auto",
    trust_remote_code: bool = False,
    **options: Any,
) -> Any:
    """Load a transformers model that was patched when ``save_pretrained`` wrote it, and patch it as it was.

    >>> attn_plugins.patch(model, "entmax_alpha+registers:num=4")
    >>> model.save_pretrained("FOLDER")
    >>> model = attn_plugins.from_pretrained("FOLDER")

    What plugins have learned comes back bit for bit. ``AutoModel.from_pretrained`` knows nothing of plugins: it would
    give the model with softmax.

    Args:
        folder: what ``save_pretrained`` or ``push_to_hub`` wrote: a folder, or a repository of the hub.
        model_class: class of transformers to load it with; by default ``AutoModel``.
        plugins: a spec, or ``auto`` for the one that the folder records.
        trust_remote_code: run code that the folder brings along; as in transformers.
        options: passed to the class's ``from_pretrained``; ``revision`` of a repository.

    Returns:
        The model, in eval mode.

    Raises:
        CheckpointError: the folder is damaged, records two specs, another than ``plugins``, or none although parameters
            of plugins lie in it; or tensors are missing or left over. All are listed.

    Warns:
        UserWarning: it records nothing and is taken for a softmax model.
    """
    if not Path(folder).is_dir():
        from huggingface_hub import snapshot_download

        wanted = ["*.json", "*.safetensors", "*.py"]
        folder = snapshot_download(str(folder), allow_patterns=wanted, revision=options.pop("revision", None))
    model, _ = load_folder(folder, plugins, model_class, trust_remote_code=trust_remote_code, **options)
    return model


def load_folder(
    folder: str | os.PathLike[str],
    plugins: str = "auto",
    model_class: Any = None,
    *,
    other_spec: bool = False,
    **options: Any,
) -> tuple[Any, Choice]:
    """``from_pretrained`` of a folder, and which plugins were chosen."""
    state = read(folder)
    said = told_by_folder(folder, state)
    choice = choose(said, plugins, plugin_keys(state), str(folder), other_spec=other_spec)
    model = _base(folder, model_class, options)
    sites = _names_in_file(model, [f"{site.path}.{RECORD}" for site in find_attention(model)], state)
    layers = {stored.removesuffix("." + RECORD): own.removesuffix("." + RECORD) for stored, own in sites.items()}
    choice = choice.renamed(layers, str(folder))
    apply_plugins(model, choice, str(folder))
    _load_plugins(model, state, str(folder))
    return model.eval(), choice


def told_by_folder(folder: str | os.PathLike[str], state: Mapping[str, Any]) -> Told:
    """What the tensors and ``config.json`` of a folder of ``save_pretrained`` say of its spec.

    Raises:
        CheckpointError: it is no such folder, a record is damaged, the two contradict each other, or ``config.json``
            tells a spec that no tensor does.
    """
    config = config_beside(folder)
    if "model_type" not in config:
        raise CheckpointError(
            f"{folder} is no folder of transformers (no config.json with a model_type); save the model there with "
            "save_pretrained. Folders of timm's hub are read by attn_plugins.checkpoints.build(checkpoint=FOLDER)"
        )
    said = told({}, [("", state)], str(folder), config)
    if said.spec not in (None, "softmax") and not said.layers:
        raise CheckpointError(
            f"config.json of {folder} tells {said.spec!r} and its tensors nothing: it was loaded without attn_plugins "
            f"and saved again. Take {METADATA_KEY!r} out of config.json and say what it was trained with: plugins=... "
            "(--plugins)"
        )
    return said


def _base(folder: str | os.PathLike[str], model_class: Any, options: Mapping[str, Any]) -> Any:
    """The model without plugins, with every weight of its own from the folder."""
    try:
        return _loaded(folder, model_class, options)
    except CheckpointError:
        raise
    except Exception as error:  # whatever odd settings make of transformers' loader: there is no model then
        raise CheckpointError(f"transformers cannot load {folder}: {type(error).__name__}: {error}") from error


def _loaded(folder: str | os.PathLike[str], model_class: Any, options: Mapping[str, Any]) -> Any:
    import transformers

    load = (transformers.AutoModel if model_class is None else model_class).from_pretrained
    arguments = {"local_files_only": True, **options}
    with _quiet():  # of the plugins' tensors, which it calls unexpected; what is missing is an error here
        model, found = load(folder, output_loading_info=True, **arguments)
        missing = set(found["missing_keys"])
        if missing and all(name.split(".")[0] == "pooler" for name in missing):
            # Saved without the pooling layer, which would be random, and none of its features.
            model, found = load(folder, output_loading_info=True, add_pooling_layer=False, **arguments)
            missing = set(found["missing_keys"])
    if missing:
        raise CheckpointError(f"{folder} does not fit {type(model).__name__}. Missing: {sorted(missing)}.")
    return model


@contextmanager
def _quiet() -> Any:
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _load_plugins(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    own = {name: tensor for name, tensor in model.state_dict().items() if name in plugin_keys([name])}
    names = _names_in_file(model, list(own), state)
    theirs = {names.get(key, key): state[key] for key in plugin_keys(state)}
    shapes = [
        f"{name} {tuple(theirs[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(own.keys() & theirs.keys())
        if own[name].shape != theirs[name].shape
    ]
    missing, unexpected = sorted(own.keys() - theirs.keys()), sorted(theirs.keys() - own.keys())
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"{where} does not fit {type(model).__name__} with its plugins. Missing: {missing}. "
            f"Unexpected: {unexpected}. Other shapes: {shapes}."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(theirs[name])


def _names_in_file(model: Any, names: Iterable[str], state: Mapping[str, Any]) -> dict[str, str]:
    """{name in the folder: name in the model}: ``save_pretrained`` writes names of transformers' earlier releases."""
    own = list(names)
    stored = {name: name for name in own}
    if importlib.util.find_spec("transformers.core_model_loading") is not None:  # before, the names are the model's
        from transformers.core_model_loading import revert_weight_conversion

        marks = revert_weight_conversion(model, {name: torch.tensor(index) for index, name in enumerate(own)})
        stored = {name: own[int(mark)] for name, mark in marks.items()}
    base = f"{model.base_model_prefix}."  # a classifier's folder loaded as its base model, or the other way round
    for name in list(stored):
        other = name.removeprefix(base) if name.startswith(base) else base + name
        if name not in state and other in state:
            stored[other] = stored.pop(name)
    return stored


def config_of(model: Any) -> dict[str, Any] | None:
    """The config of a transformers model as plain JSON, with its class; None of any other model.

    Left out is what could fetch or run something, and what tells of a file and not of the model.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_json_string") or not hasattr(config, "model_type"):
        return None
    settings: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    named = {"model_type": config.model_type, "architectures": [type(model).__name__]}
    return {**_settings(settings), **named}


def from_config(config: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> nn.Module:
    """The model that a stored config describes, with random weights.

    Nothing is imported by a name in the config: its kind and class are looked up among those that transformers has,
    and what could fetch or run something is left out.

    Args:
        config: as ``config_of`` gave it.
        state: the tensors that will be loaded, which tell whether there is a pooling layer.
        where: the file, for messages.

    Raises:
        CheckpointError: transformers has no such model, or does not take such a config.
    """
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    kind: Any = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in MODEL_MAPPING:
        raise CheckpointError(f"{where} tells model_type={kind!r:.80}, which transformers has no model of")
    config_class: Any = CONFIG_MAPPING[kind]
    found: Any = MODEL_MAPPING[config_class]
    classes = {cls.__name__: cls for cls in (found if isinstance(found, tuple) else (found,))}
    named = config.get("architectures") or list(classes)
    cls: Any = classes.get(named[0]) if isinstance(named, list) and isinstance(named[0], str) else None
    if cls is None:
        raise CheckpointError(
            f"{where} holds a {named!r:.80}; features are read from {', '.join(classes)}: save that part of the model, "
            "or give arch='transformers/FOLDER' (--arch)"
        )
    arguments = {"add_pooling_layer": any(key.startswith("pooler.") for key in state)} if _pools(cls) else {}
    try:
        model: nn.Module = cls(config_class.from_dict(_settings(config)), **arguments)
        return model
    except Exception as error:  # whatever odd values make of transformers' constructors: there is no model then
        raise CheckpointError(
            f"{where}: its config makes no {cls.__name__}: {type(error).__name__}: {error}"
        ) from error


def _pools(cls: Any) -> bool:
    import inspect

    return "add_pooling_layer" in inspect.signature(cls.__init__).parameters


def _settings(config: Any) -> Any:
    if not isinstance(config, Mapping):
        return config
    kept = (key for key in config if isinstance(key, str) and not key.startswith("_") and key not in _NEVER)
    return {key: _settings(config[key]) for key in kept}
