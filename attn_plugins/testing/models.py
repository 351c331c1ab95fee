"""What checks of mechanisms and adapters share: a model's state, its outputs and its copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..patching import PREFIX, patch, unpatch
from ..record import RECORD
from ..spec import Spec
from ..swap import Starts
from ..torch_names import leaves
from .report import close

__all__ = ["Tried", "additions", "snapshot", "unlike"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")


@dataclass
class Tried:
    """A model and what it is given; checks work on copies of it, in eval mode.

    Attributes:
        model: left as it is.
        inputs, kwargs: what its forward takes.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.model).eval()

    def patched(self, spec: str | Spec | Callable[..., Any]) -> nn.Module:
        return patch(self.copy(), spec)

    def outputs(self, model: nn.Module, grad: bool = False) -> list[Tensor]:
        """The floating point tensors of its output, with the same random numbers at every call."""
        with torch.random.fork_rng(), torch.set_grad_enabled(grad):
            torch.manual_seed(0)
            output = model(*self.inputs, **self.kwargs)
        held = leaves(dict(output) if hasattr(output, "keys") else output)
        found = [leaf for leaf in held if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        assert found, f"its output holds no floating point tensor: {type(output).__name__}"
        return found

    def alike(self, model: nn.Module, expected: list[Tensor], what: str, relative: float = 0.0) -> None:
        """Raise ``AssertionError`` unless ``model`` gives ``expected`` within a share of the largest value."""
        got = self.outputs(model)
        assert len(got) == len(expected), f"{what} gives {len(got)} tensors, not {len(expected)}"
        for one, other in zip(got, expected, strict=True):
            close(one, other, f"the output of {what}", relative * other.abs().max().item())

    def gradients(self, model: nn.Module) -> dict[str, Tensor | None]:
        """Of a fixed weighted sum of its outputs, by the name of the parameter."""
        with torch.enable_grad():
            total = sum(
                (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in self.outputs(model, True)
            )
            assert isinstance(total, Tensor) and total.requires_grad, "its output has no gradient"
            total.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    def check_unpatch(self, spec: str | Spec) -> None:
        model = self.copy()
        expected = self.outputs(model)  # first: a forward may leave attributes behind by itself
        before = snapshot(model)
        patch(model, spec)
        self.outputs(model)
        unpatch(model)
        changed = unlike(before, snapshot(model))
        assert not changed, f"after unpatch the model is not what it was: {changed}"
        self.alike(model, expected, "the unpatched model")

    def check_copies(self, spec: str | Spec) -> str | None:
        model = perturbed(self.patched(spec))
        expected = self.outputs(model)
        self.alike(copy.deepcopy(model), expected, "a deep copy")
        try:
            pickle.dumps(self.model)
        except Exception as error:
            return f"deepcopy holds; not pickled, because the bare model is not: {error}"
        self.alike(pickle.loads(pickle.dumps(model)), expected, "a pickled copy")
        return None

    def check_state_dict(self, spec: str | Spec) -> None:
        model = perturbed(self.patched(spec))
        state = {key: value.clone() for key, value in model.state_dict().items()}
        other = self.patched(spec)
        other.load_state_dict(state)
        self.alike(other, self.outputs(model), "another patched model with its state dict")

    def check_again(self, spec: str | Spec) -> None:
        model = perturbed(self.patched(spec))
        expected, before = self.outputs(model), snapshot(model)
        patch(model, spec)
        changed = unlike(before, snapshot(model))
        assert not changed, f"patched again with the same spec, the model changes: {changed}"
        self.alike(model, expected, "the model patched twice")


def perturbed(model: nn.Module) -> nn.Module:
    """With other values in the parameters of plugins, as after training."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if PREFIX in name and parameter.is_floating_point():
                parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    return model


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Every module's class, attributes and hooks, and every tensor's value, by name."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        names = sorted((*vars(module), *module._modules, *module._buffers, *module._parameters))
        hooks = {name: len(vars(module).get(name, ())) for name in _HOOKS}
        found[f"{path or 'the model'} ({type(module).__qualname__})"] = (type(module), names, hooks)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return found | {name: tensor.detach().clone() for name, tensor in tensors.items()}


def unlike(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Where two snapshots differ, in words; empty if they do not."""
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            if one.shape != other.shape or not torch.equal(one.nan_to_num(), other.nan_to_num()):
                return f"the values of {name}"
        elif one is None or other is None:
            return f"{name} is {'new' if one is None else 'gone'}"
        elif one != other:
            added = sorted(set(other[1]) ^ set(one[1]))
            return f"{name}: " + (f"its attributes {added}" if added else "its class or hooks")
    return ""


def additions(model: nn.Module, patched: nn.Module) -> list[str]:
    """Names of what a patch has added to modules, without records and what starts plugins with the model."""
    before = dict(model.named_modules())
    found = []
    for path, module in patched.named_modules():
        old = before.get(path)
        if old is not None:
            own = [name for name, value in vars(module).items() if not isinstance(value, Starts)]
            names = {*own, *module._modules, *module._buffers, *module._parameters}
            old_names = {*vars(old), *old._modules, *old._buffers, *old._parameters}
            found += [f"{path}.{name}".lstrip(".") for name in sorted(names - old_names - {RECORD})]
    return found
