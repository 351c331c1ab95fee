"""Where a student begins: patched, calibrated, or with an alpha that is raised from softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..functional.anneal import EntmaxAnneal
from ..functional.scale import HeadScale
from ..params import SCALE
from ..patching import patch, spec_of
from ..patching.scales import Scales
from ..progress import Progress
from ..spec import Plugin, Spec, parse
from ..training import Anneal
from .calibrate import calibrate
from .recipe import Recipe

__all__ = ["Moving", "begin", "calibrates"]


def calibrates(model: nn.Module, spec: Spec, recipe: Recipe) -> bool:
    """Whether factors are fitted first.

    Raises:
        ValueError: they cannot be, for a reason that the message says with what to do instead.
    """
    if recipe.start != "calibrated" or spec.normalizers == (Plugin("softmax"),):
        return False
    if spec.by_layer:
        raise ValueError(f"{str(spec)!r} says something for each layer, which is not calibrated; say start='patched'")
    if parse(spec_of(model) or "softmax").normalizers != (Plugin("softmax"),):
        raise ValueError(
            f"the model has {spec_of(model)!r}, and a calibration starts from softmax; say start='patched'"
        )
    scale = spec.normalizer.kwargs.get(SCALE, "per_head")
    if scale not in ("per_head", "learnable"):
        raise ValueError(f"{spec.normalizer} has a scale of its own; leave it out, or say start='patched'")
    if scale == "learnable" and recipe.anneal:
        raise ValueError(
            "anneal moves calibrated factors with alpha, and scale=learnable trains them; "
            "say start='patched', or leave one of them out"
        )
    return True


def begin(
    model: nn.Module, spec: Spec, recipe: Recipe, images: Sequence[Tensor], progress: Progress | None = None
) -> Scales | None:
    """Patch ``model`` with ``spec`` in place, with factors fitted on ``images`` where the recipe wants them."""
    if not calibrates(model, spec, recipe):
        patch(model, spec)
        return None
    plain = replace(spec.normalizer, params=tuple(param for param in spec.normalizer.params if param[0] != SCALE))
    present = parse(spec_of(model) or "softmax").mechanisms
    scales = calibrate(model, images, Spec((plain,), present), recipe.sparsity, progress=progress).scales
    layers = tuple(tuple(value * recipe.factor for value in layer) for layer in scales.layers)
    scales = replace(scales, layers=layers)
    patch(model, spec, scales=scales)
    return scales


class Moving:
    """What a step moves besides the optimizer: alpha with the factors that belong to it, and the mean of learned ones.

    Args:
        model: that ``begin`` has patched.
        recipe: how alpha and factors move.
        steps: of the whole run.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, steps: int) -> None:
        self.anneal: Anneal | None = None
        if recipe.anneal:
            own = parse(spec_of(model) or "softmax")  # with the scale that a calibration gave it
            options = {"steps": max(1, int(steps * recipe.anneal_share)), "shape": "cosine", "order": recipe.anneal}
            self.anneal = Anneal(model, own, **options)
        scales = _scales(model)
        self.learned = [scale.log_scale for scale in scales if isinstance(scale.log_scale, nn.Parameter)]
        if not recipe.hold:
            self.learned = []
        self.mean = self._mean()
        self.fitted = [
            (scale, scale.log_scale.clone())
            for scale in scales
            if isinstance(scale.inner, EntmaxAnneal) and not isinstance(scale.log_scale, nn.Parameter)
        ]

    def arrange(self) -> None:
        """Give factors the share of their way that alpha has gone; before every step."""
        for scale, end in self.fitted:
            inner = scale.inner
            assert isinstance(inner, EntmaxAnneal)
            scale.log_scale.copy_(end * ((inner.value - 1) / (inner.end - 1)))

    def step(self) -> None:
        """After every step of the optimizer."""
        if self.anneal is not None:
            self.anneal.step()
        if self.learned:
            off = self._mean() - self.mean
            with torch.no_grad():
                for log_scale in self.learned:
                    log_scale.sub_(off)

    def finish(self) -> None:
        """Patch the model with the target itself."""
        if self.anneal is not None:
            for scale, end in self.fitted:
                scale.log_scale.copy_(end)
            self.anneal.finish()

    def _mean(self) -> Tensor:
        return torch.cat([p.detach() for p in self.learned]).mean() if self.learned else torch.zeros(())


def _scales(model: nn.Module) -> list[HeadScale]:
    return [module for module in model.modules() if isinstance(module, HeadScale)]
