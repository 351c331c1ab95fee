"""Whether an adapter's patched attention computes what the original does, and what the spec says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..codebases.base import Adapter, adapter_for, register_adapter
from ..patching import PREFIX, describe, verify
from ..patching.sites import Site, survey
from ..registry import ADAPTERS
from .models import Tried, snapshot, unlike
from .report import Report, close, run_checks

__all__ = ["check_adapter"]

TOLERANCE = 1e-4
"""Of outputs and gradients, relative to the largest value."""

_NUMBERS = itertools.count(1)


def check_adapter(
    adapter: Adapter, module: nn.Module, *inputs: Any, skip: Collection[str] = (), **kwargs: Any
) -> Report:
    """Check an adapter on a module that it is for: the attention alone or a model around it.

    Properties, in this order: ``matches`` (it is the one that is used), ``heads`` (a number, or None), ``check``
    (``Adapter.check`` changes nothing), ``softmax`` (patched with softmax, outputs and gradients are the original's),
    ``normalizer`` (another normalizer is used, and no other than it), ``verify`` (``attn_plugins.verify`` of
    entmax15 finds no problem), ``gradient`` (a learnable normalizer gets one), ``state dict``, ``again``, ``copies``,
    ``unpatch`` (as ``check_mechanism`` has them).

    Args:
        adapter: registered, or not yet; then it is for the time of the check.
        module: it is copied and stays as it is.
        *inputs: what its forward takes.
        **kwargs: likewise, by name.
        skip: properties to leave out.

    Raises:
        CheckFailed: the first property that does not hold.
        ValueError: another adapter has that name, or there is no such property.
    """
    with ADAPTERS.temporarily():
        used = adapter
        if adapter.name not in ADAPTERS:
            # A name of its own: patched classes go by it, and those of an earlier version may still be alive.
            used = register_adapter(replace(adapter, name=f"{adapter.name}-{next(_NUMBERS)}"))
        elif ADAPTERS.get(adapter.name) is not adapter:
            raise ValueError(f"another adapter is registered as {adapter.name!r}; choose another name")
        tried = Tried(module, inputs, kwargs)
        checks = _Checks(used, tried)
        properties: dict[str, Callable[[], str | None]] = {
            "matches": checks.matches,
            "heads": checks.heads,
            "check": checks.check,
            "softmax": checks.softmax,
            "normalizer": checks.normalizer,
            "verify": checks.verify,
            "gradient": checks.gradient,
            "state dict": lambda: tried.check_state_dict("entmax15"),
            "again": lambda: tried.check_again("entmax15"),
            "copies": lambda: tried.check_copies("entmax15"),
            "unpatch": lambda: tried.check_unpatch("entmax15"),
        }
        return run_checks(f"adapter {adapter.name} on {type(module).__qualname__}", properties, skip)


def first_key(scores: Tensor, dim: int = -1) -> Tensor:
    """All weight on the first key, which no softmax gives."""
    keys = torch.arange(scores.shape[dim], device=scores.device)
    weights = (keys == 0).to(scores.dtype).view(-1, *[1] * (-dim - 1 if dim < 0 else scores.dim() - dim - 1))
    return weights.expand_as(scores) + 0 * scores.nan_to_num(neginf=0.0)


class _Checks:
    def __init__(self, adapter: Adapter, tried: Tried) -> None:
        self.adapter, self.tried = adapter, tried

    def sites(self, model: nn.Module) -> list[Site]:
        found = survey(model)
        return [s for s in (*found.layers, *found.pooling) if s.adapter.name == self.adapter.name]

    def matches(self) -> None:
        seen = [f"{path or 'the module'}: {_used(module)}" for path, module in self.tried.model.named_modules()]
        others = ", ".join(line for line in seen if not line.endswith(": None")) or "none"
        used = any(_used(module) == self.adapter.name for module in self.tried.model.modules())
        assert used, (
            f"no module is reached by it; adapters that are used: {others}. The last one registered is asked first"
        )

    def heads(self) -> None:
        for site in self.sites(self.tried.model):
            heads = self.adapter.num_heads(site.module)
            fine = heads is None or (isinstance(heads, int) and heads > 0)
            assert fine, f"{site.path or 'the module'}: num_heads gives {heads!r}, not a number of heads or None"

    def check(self) -> None:
        model = self.tried.copy()
        before = snapshot(model)
        for site in self.sites(model):
            self.adapter.check(site.module)
        changed = unlike(before, snapshot(model))
        assert not changed, f"its check changes the module: {changed}"

    def softmax(self) -> None:
        original, patched = self.tried.copy(), self.tried.patched("softmax")
        self.tried.alike(patched, self.tried.outputs(original), "the module patched with softmax", TOLERANCE)
        expected, got = self.tried.gradients(original), self.tried.gradients(patched)
        for name, grad in expected.items():
            if grad is not None:
                own = got.get(name)
                assert own is not None, f"patched with softmax, {name} gets no gradient"
                close(own, grad, f"the gradient of {name} under softmax", TOLERANCE * grad.abs().max().item() + 1e-7)

    def normalizer(self) -> None:
        outputs = [self.tried.outputs(self.tried.patched(spec)) for spec in ("softmax", first_key)]
        pairs = zip(*outputs, strict=True)
        changed = any(not torch.allclose(one, other, rtol=1e-3, atol=1e-6) for one, other in pairs)
        assert changed, "with all weight on the first key the output is that of softmax: the normalizer is not used"

    def verify(self) -> None:
        model = self.tried.patched("entmax15")
        lost = [line.path for line in describe(model) if line.spec is None and line.adapter == self.adapter.name]
        assert not [path for path in lost if path], f"not patched: {lost}"
        problems = verify(model, *self.tried.inputs, **self.tried.kwargs).problems
        assert not problems, "; ".join(problems)

    def gradient(self) -> str | None:
        if any(self.adapter.num_heads(site.module) is None for site in self.sites(self.tried.model)):
            return "the number of heads is not told: no learnable normalizers"
        gradients = self.tried.gradients(self.tried.patched("entmax_alpha"))
        for name, grad in gradients.items():
            missing = PREFIX in name and (grad is None or not grad.isfinite().all())
            assert not missing, f"{name} gets no gradient, or none that is finite"
        return None


def _used(module: nn.Module) -> str | None:
    found = adapter_for(module)
    return None if found is None else found[0].name
