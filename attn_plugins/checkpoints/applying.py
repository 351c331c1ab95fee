"""Which plugins a model gets with a checkpoint: recorded, asked for, or assumed; and the model patched with them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from ..patching import find_attention, patch
from ..spec import Spec, parse, settled
from .errors import CheckpointError
from .identity import CheckpointInfo
from .layout import flat_key
from .told import Told, agree, repeats

__all__ = ["Choice", "apply_plugins", "choose"]


@dataclass(frozen=True)
class Choice:
    """The plugins that a model gets.

    Attributes:
        spec: their spec.
        source: ``recorded`` in the file, ``asked for`` by the caller, or ``assumed``.
        layers: {attention layer: its spec} where only these are patched; empty for all of them with ``spec``.
        order: the normalizer of each attention layer, None for one that is not patched; empty as ``layers``.
    """

    spec: str
    source: str
    layers: Mapping[str, str] = field(default_factory=dict)
    order: tuple[str | None, ...] = ()

    def renamed(self, names: Mapping[str, str], where: str) -> Choice:
        """With the layers' names in the model, from {name in the file: name in the model}."""
        unknown = sorted(self.layers.keys() - names.keys())
        if unknown:
            raise CheckpointError(f"{where} records plugins of layers that the model lacks: {unknown}")
        return replace(self, layers={names[layer]: spec for layer, spec in self.layers.items()})


def choose(
    said: Told | CheckpointInfo, plugins: str, learned: list[str], where: str, *, other_spec: bool = False
) -> Choice:
    """The plugins for a checkpoint.

    Args:
        said: what it records: ``spec``, ``layers`` and ``order``, as ``Told`` and ``CheckpointInfo`` have them.
        plugins: what the caller asks for; ``auto`` for what is recorded.
        learned: keys in the file that are parameters of plugins.
        where: the file, for messages.
        other_spec: take ``plugins`` even where the file records another spec.

    Raises:
        CheckpointError: the two contradict each other; or nothing is recorded or asked for although the file holds
            parameters of plugins.

    Warns:
        UserWarning: nothing is recorded or asked for: softmax is assumed.
    """
    requested = None if plugins == "auto" else str(parse(plugins))
    nameless = said.spec is not None and "unregistered:" in said.spec  # what its layers record has no name either
    if requested is not None and (other_spec or nameless) and not (said.spec and repeats(requested, said.spec)):
        return Choice(str(settled(parse(requested), new=True)), "asked for")
    spec = agree(said.spec, requested, where)
    if spec is None:
        if learned:
            raise CheckpointError(
                f"{where} holds parameters of plugins and does not record the spec that it was trained with: give it "
                f"with plugins=... (--plugins). They are {learned[:5]} ({len(learned)} in all)"
            )
        warnings.warn(
            f"{where} does not record the plugins that it was trained with: softmax is assumed. plugins='softmax' "
            "(--plugins softmax) says that it is right",
            stacklevel=3,
        )
        return Choice("softmax", "assumed")
    if nameless:
        raise CheckpointError(
            f"{where} was trained with {spec!r}, a callable without a name: register it with "
            "attn_plugins.register_normalizer and give that name with plugins=... (--plugins)"
        )
    return Choice(spec, "recorded" if requested is None else "asked for", said.layers, said.order)


def _by_itself(spec: str, paths: Sequence[str]) -> dict[str, str]:
    """{attention layer: its spec} of a model with these layers that is patched with ``spec``."""
    parsed = parse(spec)
    plugins = zip(paths, parsed.for_layers(len(paths)), strict=True)
    return {path: str(Spec((plugin,), parsed.mechanisms)) for path, plugin in plugins if plugin is not None}


def _check_whole(spec: str, where: str) -> None:
    """Raise where layers of a file contradict what it tells of each of them."""
    if parse(spec).by_layer:
        raise CheckpointError(f"{where} tells {spec!r}, and its layers record something else: it was put together")


def apply_plugins(model: nn.Module, choice: Choice, where: str) -> None:
    """Patch ``model``: the layers that are recorded with what is recorded for each, or all with the spec.

    Raises:
        CheckpointError: layers are recorded that the model lacks, or plugins that it cannot have.
        ValueError: plugins were asked for that it cannot have: as ``attn_plugins.patch``.
    """
    paths = [site.path for site in find_attention(model)] if choice.layers or choice.order else []
    own = {flat_key(path + ".").removesuffix("."): path for path in paths}
    layers = {own.get(layer, layer): spec for layer, spec in choice.layers.items()}
    if choice.order:
        if len(choice.order) != len(paths):
            raise CheckpointError(
                f"{where} records plugins for {len(choice.order)} attention layers, {type(model).__name__} has "
                f"{len(paths)}"
            )
        mechanisms = [str(plugin) for plugin in parse(choice.spec).mechanisms]
        layers = {
            path: "+".join([normalizer, *mechanisms])
            for path, normalizer in zip(paths, choice.order, strict=True)
            if normalizer is not None
        }
    unknown = sorted(layers.keys() - set(paths))
    if unknown:
        raise CheckpointError(f"{where} records plugins of layers that {type(model).__name__} lacks: {unknown}")
    try:
        groups: dict[str, list[str] | None] = {choice.spec: None}
        if layers and layers != _by_itself(choice.spec, paths):
            _check_whole(choice.spec, where)
            groups = {spec: [path for path in layers if layers[path] == spec] for spec in layers.values()}
        for spec, chosen in groups.items():
            patch(model, spec, chosen)
    except ValueError as error:
        if choice.source != "recorded":
            raise
        raise CheckpointError(f"{where} records plugins that {type(model).__name__} cannot have: {error}") from error
