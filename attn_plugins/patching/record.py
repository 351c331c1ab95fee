"""A patched model's state dict tells its spec, and weights of another spec are refused.

Twice: as a tensor in every patched layer (``attn_plugins.record``), which survives whatever happens to a state
dict, and beside the tensors, in the ``_metadata`` mapping where PyTorch keeps the versions of modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .. import swap
from ..codebases.base import NORMALIZER, SPEC, WHOLE, Layer
from ..mechanisms import applied_mechanisms
from ..record import RECORD, decode, encode
from ..spec import Plugin, Spec, computed, parse, settled
from ..torch_names import unwrapped

__all__ = [
    "METADATA_KEY",
    "STAMP",
    "forget_record",
    "is_lost",
    "layer_spec",
    "lost",
    "refuse_others",
    "same_model",
    "spec_of",
    "stamp",
    "write_records",
]

METADATA_KEY = "attn_plugins"
"""What a spec is filed under: in a state dict's ``_metadata``, in our files, in DINO's args and configs."""

STAMP = "attn_plugins_stamp"
"""Attribute of the model that was patched: its record in the metadata."""
PATCHED = "attn_plugins_patched"
"""Attribute of the model that was patched: the paths of its patched layers."""


def is_lost(module: nn.Module) -> bool:
    """Whether ``module`` was patched and its class has been exchanged since, so that something else runs."""
    if NORMALIZER not in (*vars(module), *module._modules):
        return False
    hidden = "forward" in vars(module) and not hasattr(vars(module)["forward"], "_attn_plugins_proved")
    return hidden or not any(isinstance(layer, Layer) for layer in swap.layers_of(module))


def lost(model: nn.Module) -> dict[str, str]:
    """{path: what happened} of the layers of ``model`` that were patched and are not any more."""
    modules = dict(model.named_modules())
    # Wrappers that came since put themselves between the names; of one name the module inside is the last.
    plain = {unwrapped(path): module for path, module in modules.items()}
    found = {}
    for path, module in modules.items():
        if is_lost(module):
            exchanged = f"its class was exchanged for {type(module).__module__}.{type(module).__qualname__}"
            found[path] = "a forward was set on the instance" if "forward" in vars(module) else exchanged
        for inner in vars(module).get(PATCHED, ()):
            where = unwrapped(".".join(name for name in (path, inner) if name))
            layer = plain.get(where)
            if layer is None:
                found[where] = "the layer was removed"
            elif NORMALIZER not in (*vars(layer), *layer._modules):
                found[where] = f"the layer was replaced by a {type(layer).__qualname__}"
    return found


def layer_spec(module: nn.Module, mechanisms: tuple[Plugin, ...]) -> str:
    """The spec of one patched layer: its normalizer, and the mechanisms of the model around it."""
    return str(Spec((getattr(module, NORMALIZER).plugin,), mechanisms))


def write_records(model: nn.Module, spec: Spec) -> None:
    """Put the record of its spec on every patched layer of ``model``, and the hooks that keep it true.

    Args:
        model: that was patched.
        spec: what with; where it says something for each layer, the records tell it beside the layer's own.
    """
    mechanisms = applied_mechanisms(model)
    for module in model.modules():
        if NORMALIZER in (*vars(module), *module._modules):
            vars(module)[SPEC] = layer_spec(module, mechanisms)
            vars(module).pop(WHOLE, None)
            if spec.by_layer:
                vars(module)[WHOLE] = str(spec)
            tensor = encode(_of_layer(module))
            weight = next(module.parameters(), tensor)
            module._buffers[RECORD] = tensor.to(weight.device)
            swap.add_hook(module, "state_dict_post_hook", _write_layer)
            swap.add_hook(module, "load_state_dict_pre_hook", _check_layer)


def forget_record(module: nn.Module) -> None:
    """Take off ``module`` what ``write_records`` has put there."""
    for name in (SPEC, WHOLE):
        vars(module).pop(name, None)
    module._buffers.pop(RECORD, None)
    swap.remove_hooks(module, _write_layer, _check_layer)


def _of_layer(module: nn.Module) -> dict[str, Any]:
    """The record of a patched layer: its spec, and the model's where that tells each layer apart."""
    own = vars(module)
    return {"spec": own[SPEC], **({"whole": own[WHOLE]} if WHOLE in own else {})}


def stamp(model: nn.Module, spec: Spec, layers: Mapping[str, str | None]) -> None:
    """Make the metadata of ``model.state_dict()`` tell what the model is patched with.

    Args:
        model: the model that was patched.
        spec: what with.
        layers: {path: normalizer} of its attention layers, in order; None where the layer is not patched.
    """
    record: dict[str, Any] = {"spec": str(spec)}
    if spec.by_layer or len(set(layers.values())) > 1:
        record["layers"] = list(layers.values())
    vars(model)[STAMP] = record
    vars(model)[PATCHED] = tuple(path for path, normalizer in layers.items() if normalizer is not None)
    swap.add_hook(model, "state_dict_post_hook", _write)
    swap.add_hook(model, "load_state_dict_pre_hook", _check_layers)


def spec_of(model: nn.Module) -> str | None:
    """The canonical spec that ``model``, or the model inside it, is patched with; None if it is not patched.

    Raises:
        ValueError: a layer was patched and is not any more; or it is a part of what was patched, in several ways.
    """
    gone = lost(model)
    if gone:
        raise ValueError(f"{_lost_message(gone)}; patch again, or unpatch")
    stamps = (getattr(module, STAMP, None) for module in model.modules())
    told = next((record["spec"] for record in stamps if record), None)
    return told if told is not None else _spec_of_layers(model)


def _spec_of_layers(model: nn.Module) -> str | None:
    """What the layers say, of a model whose patch was that of something around it (a LightningModule)."""
    held = (vars(module) for module in model.modules())
    said = {own.get(WHOLE, own[SPEC]) for own in held if SPEC in own}
    if len(said) > 1:
        raise ValueError(
            f"{type(model).__qualname__} is a part of a model whose layers were patched one by one, with "
            f"{', '.join(sorted(said))}: ask the model that was patched, or patch this one"
        )
    return next(iter(said), None)


def refuse_others(model: nn.Module) -> None:
    """Make ``model.load_state_dict()`` refuse weights whose metadata tells another spec than the model's.

    Raises:
        ValueError: from ``load_state_dict``, before any parameter of the model has changed.
    """
    swap.add_hook(model, "load_state_dict_pre_hook", _check)


def _canonical(record: Mapping[str, Any]) -> Any:
    """What a record says, with specs as they are read now: of a callable that was registered since, its name.

    That of each layer, if it tells; it is the same however it was asked for (``@6-11``, ``layers=``).
    """
    spec = _read(record["spec"])
    if "layers" not in record:
        return spec, record.get("lost")
    mechanisms = spec.mechanisms if isinstance(spec, Spec) else spec
    return [None if told is None else _read(told) for told in record["layers"]], mechanisms, record.get("lost")


def _read(spec: Any) -> Any:
    try:
        return computed(settled(parse(spec), new=False))
    except ValueError:
        return spec  # nothing that is known here; compared as it is written


def same_model(one: str, other: str) -> bool:
    """Whether two recorded specs compute the same with the same weights; how they are trained is not compared."""
    return bool(_read(one) == _read(other))


def _lost_message(gone: dict[str, str]) -> str:
    layers = ", ".join(f"{path or 'the model'} ({reason})" for path, reason in gone.items())
    return f"attn_plugins: patch lost in {layers}: softmax may run there"


@swap.hook
def _write(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    record = getattr(module, STAMP, None)
    if record is not None:
        gone = lost(module)
        local_metadata[METADATA_KEY] = record | ({"lost": sorted(gone)} if gone else {})


@swap.hook
def _check(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *_: Any) -> None:
    theirs, own = local_metadata.get(METADATA_KEY), getattr(module, STAMP, {"spec": "softmax"})
    if theirs is not None and _canonical(theirs) != _canonical(own):
        raise ValueError(
            f"these weights were trained with attn_plugins {theirs} and this {type(module).__name__} has "
            f"{own}: "
            f"they mean something only with their own attention. Patch it with {theirs['spec']!r}."
        )


@swap.hook
def _write_layer(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    # Written anew: the buffer is empty memory after to_empty(), and the class may have been exchanged since.
    key, spec = prefix + RECORD, vars(module).get(SPEC)
    held = state_dict.get(key)
    if spec is not None and held is not None and not held.is_meta:
        record = _of_layer(module) | ({"lost": True} if is_lost(module) else {})
        state_dict[key] = encode(record).to(held.device)


@swap.hook
def _check_layer(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    key, spec = prefix + RECORD, vars(module).get(SPEC)
    if spec is None:
        return
    if key in state_dict:
        _agree(key, state_dict[key], spec)
    state_dict[key] = encode(_of_layer(module))  # weights without a record (softmax's, older files) load as ever


@swap.hook
def _check_layers(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """All records, before the first parameter changes."""
    for path, layer in module.named_modules():
        key, spec = f"{prefix}{path}.{RECORD}" if path else prefix + RECORD, vars(layer).get(SPEC)
        if spec is not None and key in state_dict:
            _agree(key, state_dict[key], spec)


def _agree(key: str, tensor: Any, spec: str) -> None:
    record = decode(tensor)
    if record.get("lost"):
        raise ValueError(
            f"{key}: these weights were saved after the patch {record['spec']!r} was lost: nobody knows what they were "
            "trained with"
        )
    if not same_model(record["spec"], spec):
        raise ValueError(
            f"{key}: these weights were trained with {record['spec']!r} and this layer has {spec!r}: they mean "
            f"something only with their own attention. Patch the model with {record['spec']!r}; to load them on "
            f"purpose, leave out the keys that end in {RECORD}"
        )
