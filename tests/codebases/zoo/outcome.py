"""What becomes of a module when its model is patched: refused, named, raised, answered, or changed in silence."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import attn_plugins

from .entries_dino import Mae, plain
from .entry import built, entmax15, made, tensors, tokens, user_warnings

REFUSALS = {"refused", "raised"}
"""What may become of attention that is no attention to us, in a model of its own."""


class Beside(nn.Module):
    """Attention that can be patched, and another module beside it; both outputs are returned."""

    x: Tensor

    def __init__(self, odd: nn.Module) -> None:
        super().__init__()
        self.good, self.odd = Mae(), odd
        self.register_buffer("x", tokens())

    def forward(self, *args: Any) -> tuple[Any, Any]:
        return self.good(self.x), self.odd(*args)


def alone(build: Callable[[], nn.Module], inputs: Callable[[], tuple[Any, ...]], reference: Any = None) -> str:
    """Of a model that has this module and nothing else.

    Returns:
        "refused" (by ``UnsupportedModelError`` at patch), "raised" (at the first forward), "answered" (equals the
        reference, gradient of the input included) or "silent".
    """
    return _outcome(build, inputs, reference, "attn", lambda model: model.attn, lambda out: out)[0]


def beside(build: Callable[[], nn.Module], inputs: Callable[[], tuple[Any, ...]], reference: Any = None) -> str:
    """Of the module beside attention that is patched, which has to be right where the model is not refused.

    Returns:
        One of :func:`alone`'s, or "named": left as it was, with a warning and a line of ``describe`` that say so.
    """
    return _outcome(
        lambda: Beside(build()), inputs, reference, "attn.odd", lambda model: model.attn.odd, lambda out: out[1]
    )[0]


def told(build: Callable[[], nn.Module], inputs: Callable[[], tuple[Any, ...]], reference: Any = None) -> str:
    """All that the user is told about a module of its own: the text of the error, or of the warnings."""
    return _outcome(build, inputs, reference, "attn", lambda model: model.attn, lambda out: out)[1]


def _outcome(
    build: Callable[[], nn.Module],
    inputs: Callable[[], tuple[Any, ...]],
    reference: Any,
    path: str,
    part: Callable[[Any], Any],
    output: Callable[[Any], Any],
) -> tuple[str, str]:
    model, arguments = built(build), made(inputs)
    before = model(*arguments)
    wanted = None if reference is None else reference(part(model), entmax15, *arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            attn_plugins.patch(model, "entmax15")
        except attn_plugins.UnsupportedModelError as error:
            assert all(map(torch.equal, tensors(model(*arguments)), tensors(before))), "refused, and changed"
            return "refused", str(error)
    texts = " ".join(user_warnings(caught))
    try:
        after = model(*arguments)
    except (attn_plugins.UnsupportedModelError, RuntimeError) as error:
        name = type(part(model)).__name__
        assert path in str(error) or name in str(error), f"the error names neither {path} nor {name}: {error}"
        return "raised", str(error)
    if isinstance(model.attn, Beside):
        good = plain(model.attn.good, entmax15, model.attn.x)[0]
        torch.testing.assert_close(after[0], good, atol=1e-5, rtol=0)
    if wanted is not None and _equal(output(after), wanted) and _same_gradient(output(after), wanted, arguments):
        return "answered", texts
    line = next((line for line in attn_plugins.describe(model) if line.path == path), None)
    unchanged = all(map(torch.equal, tensors(output(after)), tensors(output(before))))
    if path in texts and line is not None and line.spec is None and unchanged:
        return "named", texts
    return "silent", texts


def _equal(actual: Any, wanted: Any) -> bool:
    return all(torch.allclose(a, b, atol=1e-5, rtol=0) for a, b in zip(tensors(actual), tensors(wanted), strict=True))


def _same_gradient(actual: Any, wanted: Any, arguments: tuple[Any, ...]) -> bool:
    if not torch.is_grad_enabled():
        return True

    def gradient(output: Any) -> tuple[Tensor, ...]:
        leaves = [x for x in tensors(arguments) if x.requires_grad]
        return torch.autograd.grad(torch.stack([y.pow(2).sum() for y in tensors(output)]).sum(), leaves)

    return all(map(torch.allclose, gradient(actual), gradient(wanted)))
