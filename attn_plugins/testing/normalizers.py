"""Whether a normalizer does what attention needs of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import functional
from ..attention import attention
from ..functional.normalizer import build
from ..patching import patch, unpatch
from ..spec import Spec, parse
from .report import Report, close, run_checks

__all__ = ["check_normalizer"]

HEADS = 3
SHAPE = (2, HEADS, 4, 6)
"""Of the scores: batch, heads, queries, keys."""


def check_normalizer(
    normalizer: str | Spec | Callable[..., Any], *, simplex: bool = True, skip: Collection[str] = ()
) -> Report:
    """Check that a normalizer does what attention needs, on the CPU, in a few seconds.

    Properties, in this order: ``shape`` (and dtype, along dim -1 and -2), ``scores unchanged``, ``simplex`` (weights
    of 0 or more that sum to 1), ``rows`` (none depends on another), ``masks`` (a score of -inf gets weight 0 and no
    gradient, as if the key were not there; a row of nothing else gives zeros), ``gradient`` (gradcheck in float64, of
    scores and parameters), ``half precision`` (float16 and bfloat16 keep their dtype and are right within 2e-2),
    ``alpha`` (what was registered as ``alpha=`` is true), ``attention`` (the backend that is chosen computes it),
    ``vmap``, ``compile`` (``fullgraph=True``, values and gradients; forgets what was compiled before), ``copies``
    (deepcopy and pickle), ``patch`` (on and off a layer, state dict).

    Args:
        normalizer: a registered name with or without parameters, or a callable, as ``attn_plugins.patch`` takes it.
        simplex: whether rows are meant to sum to 1; if not, ``simplex`` is left out, and so is that masking a key is
            as if it were not there.
        skip: properties to leave out.

    Raises:
        CheckFailed: the first property that does not hold, with the input.
        UnknownPluginError, ValueError: there is no such normalizer or property.
    """
    checks = _Checks(parse(normalizer), simplex)
    properties: dict[str, Callable[[], str | None]] = {
        "shape": checks.shape,
        "scores unchanged": checks.unchanged,
        "simplex": checks.simplex,
        "rows": checks.rows,
        "masks": checks.masks,
        "gradient": checks.gradient,
        "half precision": checks.half,
        "alpha": checks.alpha,
        "attention": checks.attention,
        "vmap": checks.vmap,
        "compile": checks.compile,
        "copies": checks.copies,
        "patch": checks.patch,
    }
    with torch.random.fork_rng():
        return run_checks(f"normalizer {checks.plugin}", properties, skip)


class _Checks:
    def __init__(self, spec: Spec, sums_to_one: bool) -> None:
        if spec.mechanisms:
            raise ValueError(f"{spec} names token mechanisms; check_mechanism is for those")
        self.plugin, self.sums_to_one = spec.normalizer, sums_to_one
        build(self.plugin, HEADS)  # its own errors come before any property

    def make(self, dtype: torch.dtype = torch.float64) -> Any:
        torch.manual_seed(0)
        made = build(self.plugin, HEADS)
        return made.to(dtype).eval() if isinstance(made, nn.Module) else made

    @property
    def inputs(self) -> dict[str, Tensor]:
        """float64 ``[2, 3, 4, n]``, each with its name."""
        drawn = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return {
            "random scores": 2 * drawn,
            "equal scores": torch.zeros(SHAPE, dtype=torch.float64),
            "scores of ±1000": 1000 * drawn.sign(),
            "a single key": drawn[..., :1],
        }

    @property
    def scores(self) -> Tensor:
        return self.inputs["random scores"]

    def shape(self) -> None:
        for name, scores in self.inputs.items():
            for dtype in (torch.float64, torch.float32):
                given = scores.to(dtype)
                weights = self.make(dtype)(given, dim=-1)
                assert isinstance(weights, Tensor), f"{name}: it returns {type(weights).__name__}"
                same = weights.shape == given.shape and weights.dtype == dtype
                got = f"{tuple(weights.shape)} {weights.dtype}"
                assert same, f"{name} {tuple(given.shape)} {dtype}: it returns {got}"
                assert weights.isfinite().all(), f"{name}, {dtype}: it returns NaN or infinity"
                turned = self.make(dtype)(given.mT, dim=-2)
                close(turned, weights.mT, f"{name}: dim=-2 of the transposed scores", 1e-5)

    def unchanged(self) -> None:
        for name, scores in self.inputs.items():
            given = scores.clone()
            self.make()(given, dim=-1)
            assert torch.equal(given, scores), f"{name}: it changes its argument in place"

    def simplex(self) -> str | None:
        if not self.sums_to_one:
            return "not meant"
        for name, scores in self.inputs.items():
            weights = self.make()(scores, dim=-1)
            assert (weights >= 0).all(), f"{name}: the smallest weight is {weights.min().item():.2e}"
            close(weights.sum(-1), torch.ones(scores.shape[:-1]), f"{name}: the sum of a row", 1e-5)
        return None

    def rows(self) -> None:
        whole = self.make()(self.scores, dim=-1)
        close(self.make()(self.scores[:1], dim=-1), whole[:1], "the first of two images alone")
        close(self.make()(self.scores[..., :1, :], dim=-1), whole[..., :1, :], "the first of four queries alone")

    def masks(self) -> None:
        masked = self.scores.clone()
        masked[..., 4:] = -torch.inf
        masked[:, :, 0] = -torch.inf
        masked.requires_grad_()
        weights = self.make()(masked, dim=-1)
        assert (weights[:, :, 1:, 4:] == 0).all(), "a score of -inf has a weight that is not 0"
        assert (weights[:, :, 0] == 0).all(), "a row of nothing but -inf does not give zeros"
        if self.sums_to_one:
            left = self.make()(self.scores[..., 1:, :4], dim=-1)
            close(weights[..., 1:, :4], left, "the weights of the keys that are not masked")
        (grad,) = torch.autograd.grad((weights * self.scores).sum(), masked)
        assert grad.isfinite().all(), "the gradient of scores of which some are -inf is NaN or infinite"
        assert (grad.masked_select(masked == -torch.inf) == 0).all(), "a score of -inf has a gradient that is not 0"

    def gradient(self) -> None:
        made = self.make()
        named = dict(made.named_parameters()) if isinstance(made, nn.Module) else {}
        learned = {name: p for name, p in named.items() if p.requires_grad}

        def weights(scores: Tensor, *values: Tensor) -> Tensor:
            if not learned:
                return cast(Tensor, made(scores, dim=-1))
            given = dict(zip(learned, values, strict=True))
            return cast(Tensor, torch.func.functional_call(made, given, (scores,), {"dim": -1}))

        inputs = [self.scores, *learned.values()]
        torch.autograd.gradcheck(weights, [x.detach().clone().requires_grad_() for x in inputs])

    def half(self) -> None:
        for dtype in (torch.float16, torch.bfloat16):
            given = self.scores.to(dtype)
            weights = self.make(dtype)(given, dim=-1)
            assert weights.dtype == dtype, f"scores of {dtype} give weights of {weights.dtype}"
            close(weights, self.make()(given.double(), dim=-1), f"weights of {dtype} scores", 2e-2)

    def alpha(self) -> str | None:
        made = self.make()
        alpha = getattr(made, "alpha", None)
        if alpha is None:
            return "none registered"
        weights = made(self.scores, dim=-1)
        if isinstance(alpha, Tensor):
            assert alpha.shape == (HEADS,), f"its alpha has shape {tuple(alpha.shape)}, not one value for each head"
            expected = functional.entmax_alpha(self.scores, alpha.view(-1, 1, 1))
        else:
            expected = functional.entmax(self.scores, alpha)
        close(weights, expected, f"random scores: what entmax with alpha={alpha} gives, as kernels compute it,", 1e-5)
        return None

    def attention(self) -> None:
        drawn = torch.randn(3, 2, HEADS, 5, 8, generator=torch.Generator().manual_seed(1))
        q, k, v = drawn.unbind()
        mask = torch.ones(5, 5, dtype=torch.bool).tril()
        for name, given in {"no mask": None, "a causal mask": mask}.items():
            made = self.make(torch.float32)
            scores = q @ k.mT / 8**0.5
            scores = scores if given is None else scores.masked_fill(~given, -torch.inf)
            out = attention(q, k, v, given, normalizer=made)
            close(out, made(scores, dim=-1) @ v, f"attention with {name}", 1e-4)

    def vmap(self) -> None:
        made = self.make()
        over_batch = torch.func.vmap(lambda scores: made(scores, dim=-1))(self.scores)
        close(over_batch, made(self.scores, dim=-1), "vmap over the batch")

    def compile(self) -> None:
        made = self.make()
        torch.compiler.reset()  # or many normalizers in one process would reach the limit of recompilations

        def plain(scores: Tensor) -> Any:
            return made(scores, dim=-1)

        results = []
        for function in (torch.compile(plain, fullgraph=True, backend="aot_eager"), plain):
            scores = self.scores.clone().requires_grad_()
            weights = function(scores)
            results.append((weights, *torch.autograd.grad((weights * self.scores).sum(), scores)))
        for got, expected, what in zip(*results, ("weights", "gradient"), strict=True):
            close(got, expected, f"the compiled {what}")

    def copies(self) -> None:
        made = self.make()
        expected = made(self.scores, dim=-1)
        close(copy.deepcopy(made)(self.scores, dim=-1), expected, "a deep copy", 0)
        close(pickle.loads(pickle.dumps(made))(self.scores, dim=-1), expected, "a pickled copy", 0)

    def patch(self) -> None:
        torch.manual_seed(0)
        layer, x = nn.MultiheadAttention(8 * HEADS, HEADS, batch_first=True).eval(), torch.randn(2, 5, 8 * HEADS)
        before, keys = layer(x, x, x)[0], list(layer.state_dict())
        patch(layer, Spec((self.plugin,)))
        patched = layer(x, x, x)[0]
        other = patch(nn.MultiheadAttention(8 * HEADS, HEADS, batch_first=True).eval(), Spec((self.plugin,)))
        other.load_state_dict(layer.state_dict())
        close(other(x, x, x)[0], patched, "a patched layer with the state dict of another")
        unpatch(layer)
        assert list(layer.state_dict()) == keys, "unpatched, a layer has other keys than before"
        close(layer(x, x, x)[0], before, "an unpatched layer", 0)
