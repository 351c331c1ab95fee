"""``Anneal``: alpha is moved from softmax to the target while the model trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..functional import EntmaxAnneal
from ..functional.anneal import NAME
from ..functional.scale import ScoreScale
from ..patching import NORMALIZER, patch
from ..registry import NORMALIZERS
from ..spec import Plugin, Spec, parse

__all__ = ["Anneal", "arrange"]

DEFAULT_ALPHA = 1.5
"""Of ``entmax``, where the spec gives none."""


class Anneal:
    """A schedule of alpha, stepped as a learning-rate scheduler is: from softmax through entmax to the target spec.

    The models are patched once, with the normalizer ``entmax_anneal``; afterwards a step sets a number. So it can be
    made before DDP, FSDP or ``torch.compile`` take the model, like any patch, and stepped after. Where the schedule
    stands is in the models' own state dicts: load them, and the next step goes on. Student and teacher are annealed
    together by one object. Calibrated factors of the target (``scale=per_head``) stay: they hold from the first step,
    at alpha 1 too; ``attn-plugins adapt --anneal`` moves them with alpha.

        >>> anneal = attn_plugins.Anneal([student, teacher], "entmax15", steps=10_000)
        >>> for images in loader:
        ...     loss.backward(); optimizer.step(); anneal.step()
        >>> anneal.finish()                                        # the models are patched with entmax15 from now on

    Args:
        models: one or several. They are patched, or have been, with ``"entmax_anneal:steps=10000"`` (which is how
            trainers' flags say it), and then ``spec`` is left out.
        spec: the target: ``entmax15``, ``sparsemax`` or ``entmax:alpha=``, with layers, scales and mechanisms if one
            likes (``entmax15@6-11:scale=per_head+registers``).
        options: of ``attn_plugins.functional.EntmaxAnneal``: ``steps``, ``warmup``, ``shape``, ``order``,
            ``start``.

    Raises:
        ValueError: the target has no fixed alpha, an option is out of range, or ``spec`` is left out and a model has
            no such layers.
        UnknownPluginError, UnsupportedModelError: as ``attn_plugins.patch``.
    """

    def __init__(self, models: nn.Module | Sequence[nn.Module], spec: str | Spec | None = None, **options: Any) -> None:
        self.models = [models] if isinstance(models, nn.Module) else list(models)
        if spec is None and options:
            raise ValueError(f"Anneal: {', '.join(options)} say how a target is approached; name the target, spec=")
        self.target = None if spec is None else parse(spec)
        if self.target is not None:
            aims = self.target.normalizers
            kept = [plugin for plugin in aims if plugin.name == "softmax" and plugin.layers]
            parts = [*kept, *(_annealed(plugin, options) for plugin in aims if plugin not in kept)]
            towards = parse("+".join(map(str, [*parts, *self.target.mechanisms])))
            for model in self.models:
                _patched(model, towards)
        self.layers = [layer for model in self.models for layer in arrange(model)]
        bare = [type(model).__qualname__ for model in self.models if not _layers(model)]
        if bare or not self.models:
            raise ValueError(
                f"Anneal: {', '.join(bare) or 'no model'} has no layer with {NAME}; name the target "
                f"(Anneal(model, 'entmax15', steps=10_000)), or patch with '{NAME}:steps=10000' first"
            )

    @property
    def steps(self) -> int:
        """How many were made, those before a checkpoint was loaded too."""
        return self.layers[0].step

    @property
    def alphas(self) -> list[float]:
        """alpha of every layer now, model by model."""
        return [layer.value for layer in self.layers]

    @property
    def finished(self) -> bool:
        """Whether every layer is at its end."""
        return all(layer.value == layer.end for layer in self.layers)

    def step(self) -> None:
        """To be called once after each optimizer step."""
        after = self.steps + 1
        for layer in self.layers:
            layer.set_step(after)

    def finish(self) -> None:
        """Patch the models with the target itself, which their records say from then on.

        Raises:
            ValueError: alpha is not there yet, or models were patched with the schedule and no target is known.
        """
        if not self.finished:
            raise ValueError(f"Anneal: alpha is {min(self.alphas):g} to {max(self.alphas):g}, not at its end yet")
        if self.target is None:
            raise ValueError("Anneal: the models were patched with the schedule; patch them with the target yourself")
        for model in self.models:
            _patched(model, self.target)

    def state_dict(self) -> dict[str, int]:
        """For trainers that ask for one; the models' state dicts tell it as well."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        for layer in self.layers:
            layer.set_step(state["steps"])


def arrange(model: nn.Module) -> list[EntmaxAnneal]:
    """Tell each annealed layer of ``model`` which of how many it is, in the order of ``describe``; those layers."""
    found = _layers(model)
    for place, layer in enumerate(found):
        layer.set_place(place, len(found))
    return found


def _layers(model: nn.Module) -> list[EntmaxAnneal]:
    return [module for module in model.modules() if isinstance(module, EntmaxAnneal)]


def _patched(model: nn.Module, spec: Spec) -> None:
    """Patch ``model``; factors that were learned or calibrated in front of a normalizer stay in front of its schedule.

    And the other way round, once alpha is at its end.
    """
    held = [(module, module._modules[NORMALIZER]) for module in model.modules() if NORMALIZER in module._modules]
    patch(model, spec)
    for module, before in held:
        _keep_scale(before, module._modules.get(NORMALIZER))


def _keep_scale(before: nn.Module | None, after: nn.Module | None) -> None:
    if isinstance(before, ScoreScale) and isinstance(after, ScoreScale) and _end(before) == _end(after):
        own = {name: value for name, value in before.state_dict().items() if not name.startswith("inner.")}
        after.load_state_dict(own, strict=False)


def _end(scaled: ScoreScale) -> Any:
    """alpha of the normalizer behind a factor, or where its schedule ends."""
    return getattr(scaled.inner, "end", scaled.alpha)


def _annealed(target: Plugin, options: dict[str, Any]) -> Plugin:
    """The plugin that anneals towards ``target``, in its layers and with its scale."""
    known = NORMALIZERS.get(target.name).alpha if target.factory is None else None
    given = target.kwargs
    alpha: Any = given.pop(known, DEFAULT_ALPHA) if isinstance(known, str) else known
    if alpha is None or alpha == 1:
        raise ValueError(f"Anneal: {str(target)!r} has no alpha to go to; name entmax15, sparsemax or entmax:alpha=1.3")
    return Plugin(NAME, tuple(sorted((given | {"alpha": alpha} | options).items())), layers=target.layers)
