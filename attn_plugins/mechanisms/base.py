"""What a token mechanism is, and how the mechanisms of a spec are planned, applied and taken off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..codebases.base import Layer
from ..codebases.parts import Parts
from ..codebases.vit import ViT, find_vits
from ..registry import MECHANISMS
from ..spec import Plugin, Spec, computed
from ..swap import PREFIX, remove_layers
from ..swap import starts as _starts  # noqa: F401 - the name that pickles of release 0.1 hold
from .layout import LAYOUT

__all__ = [
    "Mechanism",
    "Owned",
    "Plan",
    "applied_mechanisms",
    "as_in_place",
    "as_its_trainer_has_it",
    "lift_mechanisms",
    "plan_mechanisms",
]

APPLIED = PREFIX + "mechanisms"


class Mechanism:
    """Base class of token mechanisms; a spec's parameters are the arguments of its constructor.

    Attributes:
        extra_tokens: tokens that it adds after [CLS].
        order: of those that change the same module, the one with the lower order is nearer to the original;
            what replaces a computation comes before what acts on its output.
        adds_parameters: whether it does.
        training_only: names of parameters of a spec that say how what it adds starts and is trained, and nothing of
            what a model computes: weights of specs that differ in no others are exchanged.
    """

    extra_tokens: int = 0
    order: int = 1
    adds_parameters: bool = True
    training_only: tuple[str, ...] = ()

    @classmethod
    def settled(cls, params: Mapping[str, Any], *, new: bool) -> dict[str, Any]:
        """Parameters with what they leave unsaid, where that does not mean the same everywhere.

        A default that changes must not change what files mean: here the parameters of a spec are given the value that
        they have in a file, or with ``new`` that of a patch that is made now, and records say it.
        """
        return dict(params)

    @classmethod
    def trained(cls, params: Mapping[str, Any], known: Parts) -> dict[str, Any]:
        """Parameters with what they leave unsaid as a codebase's own trainer has it, which is about to run."""
        return dict(params)

    def check(self, vit: ViT) -> None:
        """Raise ``UnsupportedModelError`` for a ViT that this mechanism cannot change; change nothing."""

    def apply(self, vit: ViT) -> None:
        """Change ``vit``: add class layers (``attn_plugins.swap.add_layer``), and parameters where there are none.

        What it stores on modules is named ``attn_plugins_<name of the mechanism>``, and further things
        ``attn_plugins_<name>__<what>``.
        """
        raise TypeError(f"{type(self).__name__} does not say how it is applied")


class Owned(nn.Module):
    """A module of new parameters, which knows how they start."""

    def reset_parameters(self) -> None:
        raise TypeError(f"{type(self).__name__} does not say how its parameters start")

    def like(self, reference: Tensor) -> Owned:
        """Move to the device, dtype and trainability of ``reference`` and set the parameters to their start."""
        self.to(device=reference.device, dtype=reference.dtype).requires_grad_(reference.requires_grad)
        self.reset_parameters()
        return self


@dataclass(frozen=True)
class Plan:
    """Mechanisms that were checked and are not applied yet.

    Attributes:
        apply: replaces the mechanisms of the model by the planned ones.
        adds_parameters: whether that adds parameters to the model.
    """

    apply: Callable[[], None]
    adds_parameters: bool


def plan_mechanisms(model: nn.Module, plugins: Sequence[Plugin]) -> Plan:
    """Check that the mechanisms can be applied, and change nothing yet.

    A mechanism that is there already, with the same parameters, keeps what it has learned.

    Raises:
        UnsupportedModelError: a mechanism cannot be applied to this model.
        ValueError: a parameter is out of range.
    """
    mechanisms: list[Mechanism] = [MECHANISMS.get(plugin.name)(**plugin.kwargs) for plugin in plugins]
    before = applied_mechanisms(model)
    new = [mechanism for mechanism, plugin in zip(mechanisms, plugins, strict=True) if plugin not in before]
    vits = find_vits(model) if mechanisms else []
    for vit in vits:
        vit.extra = sum(mechanism.extra_tokens for mechanism in mechanisms)
        for mechanism in mechanisms:
            mechanism.check(vit)

    def apply() -> None:
        for gone in {plugin.name for plugin in before if plugin not in plugins}:
            _forget(model, PREFIX + gone)
        lift_mechanisms(model)
        for vit in vits:
            for mechanism in sorted(mechanisms, key=lambda mechanism: mechanism.order):
                mechanism.apply(vit)
            setattr(vit.root, APPLIED, tuple(plugins))

    return Plan(apply, any(mechanism.adds_parameters for mechanism in new))


def as_its_trainer_has_it(spec: Spec, network: nn.Module) -> Spec:
    """``spec`` for a network that a trainer has just built: what mechanisms leave unsaid is the codebase's own.

    Raises:
        UnsupportedModelError: it names mechanisms, and the network has no ViT that they know.
    """
    if not spec.mechanisms:
        return spec
    known = find_vits(network)[0].known

    def said(plugin: Plugin) -> Plugin:
        trained = getattr(MECHANISMS.get(plugin.name), "trained", None)
        return plugin if trained is None else plugin.having(trained(plugin.kwargs, known))

    return Spec(spec.normalizers, tuple(map(said, spec.mechanisms)))


def as_in_place(spec: Spec, model: nn.Module) -> Spec:
    """``spec`` with what its mechanisms leave unsaid of their training as the same mechanisms of ``model`` have it.

    So patching again, by the short name, keeps what a trainer has taught them.
    """
    before = {plugin.name: plugin for plugin in applied_mechanisms(model)}

    def said(plugin: Plugin) -> Plugin:
        there = before.get(plugin.name, plugin)
        same = computed(Spec(mechanisms=(there,))) == computed(Spec(mechanisms=(plugin,)))
        return plugin.having({**there.kwargs, **plugin.kwargs}) if same else plugin

    return Spec(spec.normalizers, tuple(map(said, spec.mechanisms)))


def applied_mechanisms(model: nn.Module) -> tuple[Plugin, ...]:
    """The mechanisms that ``model``, or a model inside it, has now."""
    return next((getattr(module, APPLIED) for module in model.modules() if hasattr(module, APPLIED)), ())


def lift_mechanisms(model: nn.Module) -> None:
    """Give every module the class that it had under the mechanisms; their parameters stay where they are."""
    for module in model.modules():
        remove_layers(module, keep=lambda overrides: isinstance(overrides, Layer))
        for name in (APPLIED, LAYOUT):
            vars(module).pop(name, None)


def _forget(model: nn.Module, name: str) -> None:
    for module in list(model.modules()):
        for key in [key for key in (*vars(module), *module._modules) if key == name or key.startswith(name + "__")]:
            delattr(module, key)
