"""``verify``: one forward that shows what a patched model computes, layer by layer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import swap
from ..attention.counting import layer as current_layer
from ..attention.counting import observed
from ..codebases.answer import NORMALIZER, Answering
from ..codebases.base import Layer
from ..errors import UnsupportedModelError
from ..functional import bind
from ..text import columns
from ..torch_names import leaves
from .record import lost, spec_of
from .sites import survey

__all__ = ["LayerCheck", "Verification", "verify", "verify_run"]

TOLERANCE = 1e-3
"""Of differences, relative to the largest value; single precision through a dozen layers stays below 1e-4."""
REFUSED = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DataParallel", "OptimizedModule"}


@dataclass
class LayerCheck:
    """What one patched layer did in one forward.

    Attributes:
        path: its name in the model.
        spec: its normalizer.
        answered: attention calls that it answered.
        backends: what computed them; ``materialised`` where the layer's own code multiplies.
        row_sums: largest distance of a row's sum to 1 (rows with every key masked are left out); None for packed
            batches, whose weights have no common shape.
        zeros: share of weights that are exactly zero; None likewise.
        difference: largest difference of an output to the reference backend's, relative to its largest value; None
            where the layer's own code multiplies.
    """

    path: str
    spec: str
    answered: int = 0
    backends: set[str] = field(default_factory=set)
    row_sums: float | None = None
    zeros: float | None = None
    difference: float | None = None
    _weights: int = 0
    _zeros: int = 0

    def note(self, backend: str, weights: Any = None, output: Any = None, reference: Any = None) -> None:
        """Take one answer into account; ``weights: [..., N, S]``, ``output`` and ``reference: [..., N, Dv]``."""
        self.answered += 1
        self.backends.add(backend)
        if weights is not None:
            sums = weights.double().sum(-1)
            off = (sums[sums != 0] - 1).abs().max().item() if (sums != 0).any() else 0.0
            self.row_sums = max(self.row_sums or 0.0, off)
            self._weights += weights.numel()
            self._zeros += int((weights == 0).sum())
            self.zeros = self._zeros / max(self._weights, 1)
        if reference is not None:
            self.difference = max(self.difference or 0.0, _distance(output, reference))


class Verification(list[LayerCheck]):
    """The lines of ``verify``; prints as a table.

    Attributes:
        spec: what the model says it is patched with.
        softmax: largest difference between the model patched with softmax and the model with upstream's own softmax,
            relative to the largest value; mechanisms stay on both.
        unanswered: attention that computed softmax in this forward and that no adapter knows: ``path (Class)``. Layers
            that ``layers=`` left as they are stand in ``describe``.
    """

    spec: str = ""
    softmax: float = 0.0
    unanswered: tuple[str, ...] = ()

    @property
    def problems(self) -> list[str]:
        """What is wrong, in words; empty where the model computes what it says."""
        found = [f"{line.path}: answered no attention in this forward" for line in self if not line.answered]
        found += [f"{path}: computes softmax and is not patched" for path in self.unanswered]
        for line in self:
            if line.row_sums is not None and line.row_sums > TOLERANCE:
                found.append(f"{line.path}: rows of weights sum to 1 only within {line.row_sums:.1e}")
            if line.difference is not None and line.difference > TOLERANCE:
                found.append(f"{line.path}: {', '.join(line.backends)} is off the reference by {line.difference:.1e}")
        if self.softmax > TOLERANCE:
            found.append(f"softmax by the same patch changes the output by {self.softmax:.1e}")
        return found

    @property
    def ok(self) -> bool:
        """Whether there is nothing in ``problems``."""
        return not self.problems

    def record(self) -> dict[str, Any]:
        """The verdict for a result file: what JSON can hold."""
        zeros = [line.zeros for line in self if line.zeros is not None]
        return {
            "spec": self.spec,
            "ok": self.ok,
            "layers": len(self),
            "backends": sorted({name for line in self for name in line.backends}),
            "zeros": sum(zeros) / len(zeros) if zeros else None,
            "softmax_difference": self.softmax,
            "problems": self.problems,
        }

    def __str__(self) -> str:
        rows = [("layer", "spec", "answered", "backend", "row sums - 1", "exact zeros", "off reference")]
        for line in self:
            backends = ", ".join(sorted(line.backends)) or "none"
            rows.append(
                (
                    line.path or "(model)",
                    line.spec,
                    str(line.answered),
                    backends,
                    _shown(line.row_sums, ".0e"),
                    _shown(line.zeros, ".1%"),
                    _shown(line.difference, ".0e"),
                )
            )
        compared = f"softmax by the same patch differs from the model's own by {self.softmax:.0e}"
        verdict = self.problems or [f"verified: every layer computes {self.spec}"]
        return "\n".join([*columns(rows), compared, *verdict])


def verify(model: nn.Module, *inputs: Any, **kwargs: Any) -> Verification:
    """Run a patched model three times and say what each patched layer did.

    Once as it is, watched; once with softmax in place of its normalizers; once with upstream's own attention. It runs
    in eval mode without gradients, and leaves the random number generators, buffers, modes and the model as they were.

    Args:
        model: patched with ``attn_plugins.patch``, without a wrapper that shards or compiles it.
        inputs, kwargs: what its forward takes, e.g. images ``[B, 3, H, W]``.

    Returns:
        A line per patched layer: answers, backend, row sums, exact zeros, difference to the reference backend; and
        the difference that softmax by the same patch makes to the unpatched model.

    Raises:
        UnsupportedModelError: a layer computed no attention that could be answered; the model is sharded or compiled.
        ValueError: the model is not patched, or a patch of it was lost.
    """
    return verify_run(model, lambda: model(*inputs, **kwargs))


def verify_run(model: nn.Module, run: Callable[[], Any]) -> Verification:
    """``verify`` by a function that runs ``model`` once and returns its output, for models with other entries."""
    for path, module in model.named_modules():
        wrapper = REFUSED & {cls.__name__ for cls in type(module).__mro__}
        if wrapper or vars(module).get("_compiled_call_impl") is not None:
            kind = next(iter(wrapper)) if wrapper else "compiled (module.compile())"
            raise UnsupportedModelError(
                f"verify: {path or 'the model'} is {kind}; verify the model itself, before it is wrapped or compiled"
            )
    spec = spec_of(model)
    if spec is None or lost(model):
        raise ValueError(f"verify: {type(model).__qualname__} is not patched; patch it first")
    found = survey(model)
    patched = [site for site in (*found.layers, *found.pooling) if _normalizer(site.module) is not None]
    result = Verification(LayerCheck(site.path, str(_normalizer(site.module).plugin)) for site in patched)
    result.spec = spec
    by_module = {id(site.module): line for site, line in zip(patched, result, strict=True)}

    def note(layer: Any, **told: Any) -> None:
        line = by_module.get(id(layer))
        if line is not None:
            line.note(**told)

    with _undisturbed(model):
        with observed(note), _Watching(model) as watching, torch.random.fork_rng():
            run()
        known = {site.path for site in (*found.layers, *found.pooling)}  # left as they are by layers=
        result.unanswered = tuple(text for path, text in watching.found.items() if path not in known)
        with torch.random.fork_rng():
            for site in patched:
                _put(site.module, bind("softmax"))
            same = run()
        with torch.random.fork_rng():
            for module in model.modules():
                _without_attention(module)
            own = run()
    result.softmax = _distance(same, own)
    return result


def _normalizer(module: Any) -> Any:
    return getattr(module, NORMALIZER, None)


def _put(module: nn.Module, normalizer: Any) -> None:
    vars(module).pop(NORMALIZER, None)
    module._modules.pop(NORMALIZER, None)
    vars(module)[NORMALIZER] = normalizer


def _without_attention(module: nn.Module) -> None:
    """Give ``module`` a class without attention's layer and with those of mechanisms."""
    kept = [overrides for overrides in swap.layers_of(module) if not isinstance(overrides, Layer)]
    if swap.is_patched(module) and swap.bare(module) is not type(module):
        module.__class__ = swap.bare(module)
        for overrides in kept:
            swap.add_layer(module, overrides)


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; whatever happens, the model is afterwards what it was before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    counted = [(module, dict(vars(module))) for module in model.modules()]
    with torch.no_grad():
        state = swap.snapshot(model)
        try:
            model.eval()
            yield
        finally:
            swap.restore(model, state)
            for module, training in modes:
                module.training = training
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
            for module, attributes in counted:
                for name in vars(module).keys() - attributes.keys():
                    del vars(module)[name]


class _Watching(Answering):
    """Answers nothing; takes down who computes softmax attention outside of every patched layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(_Unpatched())
        self.model = model
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.found: dict[str, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if current_layer() is not None:
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    def _may_answer(self) -> None:
        self._take_down()

    def _sdpa(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._take_down()
        return func(*args, **kwargs)

    def _take_down(self) -> None:
        frame = sys._getframe(1)
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and id(owner) in self.paths:
                path = self.paths[id(owner)]
                self.found[path] = f"{path or 'the model'} ({type(owner).__qualname__})"
                return
            frame = frame.f_back  # type: ignore[assignment]
        self.found[""] = f"the model ({type(self.model).__qualname__})"


class _Unpatched:
    """In place of a patched layer: softmax stays softmax."""

    attn_plugins_normalizer = staticmethod(torch.softmax)


def _distance(one: Any, other: Any) -> float:
    """Largest difference between the tensors of two outputs, relative to the largest value."""
    pairs = zip(_tensors(one), _tensors(other), strict=True)
    far = 0.0
    for a, b in pairs:
        if a.numel():
            scale = max(b.double().abs().nan_to_num(0.0, 0.0, 0.0).max().item(), 1e-12)
            far = max(far, (a.double() - b.double()).abs().nan_to_num(0.0).max().item() / scale)
    return far


def _tensors(output: Any) -> list[Tensor]:
    held = leaves(dict(output) if hasattr(output, "keys") else output)
    return [leaf for leaf in held if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
