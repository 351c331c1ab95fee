"""A factor on the scores is the same normalizer of scores that were multiplied by hand."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from entmax import entmax15
from torch import Tensor, nn

import attn_plugins
from attn_plugins import UnsupportedModelError, attention, parse
from attn_plugins.attention import choose_backend
from attn_plugins.attention.call import AttentionCall
from attn_plugins.functional.normalizer import bind, build
from attn_plugins.functional.scale import HeadScale, LengthScale
from attn_plugins.testing import check_normalizer

HEADS, WIDTH = 3, 8
FACTORS = torch.tensor([0.2, 0.7, 1.6])


def qkv(tokens: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    drawn = torch.randn(3, 2, HEADS, tokens, WIDTH, generator=torch.Generator().manual_seed(0), dtype=dtype)
    q, k, v = drawn.unbind()
    return 2 * q, k, v


def per_head(spec: str = "entmax15:scale=per_head") -> HeadScale:
    made = build(parse(spec).normalizer, HEADS)
    assert isinstance(made, HeadScale)
    made.log_scale.data.copy_(FACTORS.log())
    return made


def by_hand(q: Tensor, k: Tensor, v: Tensor, factor: Any, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.mT / math.sqrt(WIDTH)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    out: Tensor = entmax15(scores * factor, dim=-1) @ v
    return out


MASKS: dict[str, Any] = {
    "none": None,
    "bool": torch.ones(6, 6, dtype=torch.bool).tril(),
    "float": torch.randn(HEADS, 6, 6, generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_attention_multiplies_the_scores(mask: str, backend: str) -> None:
    q, k, v = qkv()
    factor = FACTORS.view(-1, 1, 1)
    out = attention(q, k, v, MASKS[mask], normalizer=per_head(), backend=backend)
    torch.testing.assert_close(out, by_hand(q, k, v, factor, MASKS[mask]), rtol=1e-4, atol=1e-5)
    out = attention(q, k, v, MASKS[mask], normalizer="entmax15:scale=0.3", backend=backend)
    torch.testing.assert_close(out, by_hand(q, k, v, 0.3, MASKS[mask]), rtol=1e-4, atol=1e-5)


def test_a_number_is_the_kernels_own_scale() -> None:
    q, k, v = qkv()
    out = attention(q, k, v, normalizer="softmax:scale=0.3", backend="sdpa")
    assert torch.equal(out, F.scaled_dot_product_attention(q, k, v, scale=0.3 / math.sqrt(WIDTH)))


@pytest.mark.parametrize("spec", ["entmax15:scale=0.3", "entmax15:scale=per_head", "entmax_alpha:scale=learnable"])
def test_the_fused_kernel_still_runs(spec: str) -> None:
    q, k, v = qkv()
    normalizer: Any = build(parse(spec).normalizer, HEADS)
    call = AttentionCall(q, k, v, normalizer, normalizer.alpha)
    assert choose_backend(call).name == "cpu"


def test_packed_batches() -> None:
    q, k, v = (t[:1] for t in qkv())
    out = attention(q, k, v, [4, 2], normalizer=per_head())
    factor = FACTORS.view(-1, 1, 1)
    parts = [by_hand(q[..., s, :], k[..., s, :], v[..., s, :], factor) for s in (slice(4), slice(4, 6))]
    torch.testing.assert_close(out, torch.cat(parts, -2), rtol=1e-4, atol=1e-5)


SPECS = ["entmax15:scale=0.3", "sparsemax:scale=2", "softmax:scale=0.5", "entmax:alpha=1.3,scale=0.3"]
MODULES = ["entmax15:scale=per_head", "softmax:scale=learnable", "entmax_alpha:scale=learnable", "entmax_alpha:scale=2"]


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*SPECS, *MODULES])
def test_it_does_what_attention_needs(spec: str) -> None:
    check_normalizer(spec, skip=["alpha"])  # which is that of the normalizer behind the factor


def test_every_factor_learns() -> None:
    q, k, v = qkv(4, torch.float64)
    for spec in ("entmax15:scale=learnable", "entmax15:scale=asentmax", "entmax_alpha:scale=asentmax"):
        made = build(parse(spec).normalizer, HEADS, WIDTH)
        assert isinstance(made, nn.Module)
        made.double()
        for parameter in made.parameters():  # off the start, where some derivatives are zero
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        names, values = zip(*made.named_parameters(), strict=True)

        def run(query: Tensor, *given: Tensor, made: Any = made, names: Any = names) -> Tensor:
            holder = _Holder(made, k, v)
            state = {f"made.{name}": value for name, value in zip(names, given, strict=True)}
            out: Tensor = torch.func.functional_call(holder, state, (query,))
            return out

        inputs = [t.detach().clone().requires_grad_() for t in (q, *values)]
        assert torch.autograd.gradcheck(run, inputs)


class _Holder(nn.Module):
    def __init__(self, made: nn.Module, k: Tensor, v: Tensor) -> None:
        super().__init__()
        self.made, self.k, self.v = made, k, v

    def forward(self, query: Tensor) -> Tensor:
        return attention(query, self.k, self.v, normalizer=self.made, backend="reference")


def length_scale() -> LengthScale:
    made = build(parse("entmax15:scale=asentmax").normalizer, HEADS, WIDTH)
    assert isinstance(made, LengthScale)
    generator = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        parameter.data.copy_(torch.rand(parameter.shape, generator=generator))
    return made


@pytest.mark.parametrize(("tokens", "mask", "seen"), [(6, None, [6] * 6), (9, None, [9] * 9),
                                                     (6, "bool", [2, 2, 3, 4, 5, 6])])  # fmt: skip
def test_asentmax_is_its_formula(tokens: int, mask: str | None, seen: list[int]) -> None:
    q, k, v = qkv(tokens)
    made = length_scale()
    out = attention(q, k, v, MASKS[mask or "none"], normalizer=made)
    expected = torch.empty_like(v)
    for image in range(2):
        for head in range(HEADS):
            for row, n in enumerate(seen):
                beta = math.log1p(math.exp((q[image, head, row] @ made.weight[head] + made.bias[head]).item()))
                factor = made.delta[head].item() + beta * math.log(n) ** made.gamma[head].item()
                a, b, c = (t[image, head] for t in (q[..., row : row + 1, :], k, v))
                seen_by = None if mask is None else MASKS[mask][row : row + 1]
                expected[image, head, row] = by_hand(a, b, c, factor, seen_by)[0]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_asentmax_starts_as_the_normalizer_itself() -> None:
    q, k, v = qkv()
    made = build(parse("entmax15:scale=asentmax").normalizer, HEADS, WIDTH)
    torch.testing.assert_close(attention(q, k, v, normalizer=made), by_hand(q, k, v, 1), rtol=1e-4, atol=1e-5)
    with pytest.raises(UnsupportedModelError, match="needs the query"):
        made(q @ k.mT)


def test_asentmax_counts_the_keys_of_each_packed_sequence() -> None:
    q, k, v = (t[:1] for t in qkv())
    made = length_scale()
    parts = [attention(q[..., s, :], k[..., s, :], v[..., s, :], normalizer=made) for s in (slice(4), slice(4, 6))]
    torch.testing.assert_close(attention(q, k, v, [4, 2], normalizer=made), torch.cat(parts, -2))


@pytest.mark.parametrize("value", ["0", "-1", "true", "inf", "each_head", "0..1"])
def test_what_is_no_factor_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"is no factor on the scores: a number above 0, such as 0.3, or per_head"):
        parse(f"entmax15:scale={value}")


def test_a_normalizers_own_scale_stays_its_own() -> None:
    with attn_plugins.registry.NORMALIZERS.temporarily():

        @attn_plugins.register_normalizer("own")
        def own(scores: Tensor, scale: float = 5.0, dim: int = -1) -> Tensor:
            return torch.softmax(scores + scale, dim)

        assert bind("own:scale=-2").inner is None


def vit(fused: bool = True) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "depth": 2,
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "num_heads": 3,
        "num_classes": 0,
    }
    model: Any = timm.create_model("vit_tiny_patch16_224", **options).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
        block.attn.qkv.weight.data.mul_(8)  # or the scores of random weights are all alike
    return model


def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def set_factors(model: nn.Module) -> None:
    for name, buffer in model.state_dict().items():
        if name.endswith("log_scale"):
            buffer.copy_(FACTORS.log())


def test_a_model_keeps_its_projections_and_gets_softmax_back() -> None:
    model = vit()
    before, state = model(images()), copy.deepcopy(model.state_dict())
    attn_plugins.patch(model, "entmax15:scale=per_head")
    plain = attn_plugins.patch(vit(), "entmax15")(images())
    torch.testing.assert_close(model(images()), plain)
    set_factors(model)
    assert not torch.allclose(model(images()), plain, atol=1e-3)
    assert not [name for name, _ in model.named_parameters() if "attn_plugins" in name]
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert torch.equal(attn_plugins.unpatch(model)(images()), before)


def test_a_layer_that_multiplies_itself_computes_the_same() -> None:
    fused, materialised = (attn_plugins.patch(vit(fused), "entmax15:scale=per_head") for fused in (True, False))
    for model in (fused, materialised):
        set_factors(model)
    torch.testing.assert_close(materialised(images()), fused(images()), rtol=1e-4, atol=1e-5)
    attn_plugins.patch(vit(), "entmax15:scale=asentmax")(images())
    with pytest.raises(UnsupportedModelError, match="use a fused path"):
        attn_plugins.patch(vit(False), "entmax15:scale=asentmax")(images())


def test_factors_travel_and_stay_when_they_are_to_be_learned() -> None:
    model = attn_plugins.patch(vit(), "entmax15:scale=per_head")
    set_factors(model)
    expected = model(images())
    other = attn_plugins.patch(vit(), "entmax15:scale=per_head")
    other.load_state_dict(model.state_dict())
    for again in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(images()), expected)
    attn_plugins.patch(model, "entmax15:scale=learnable")
    assert torch.equal(model(images()), expected)
    model(images()).sum().backward()
    grads = [p.grad for n, p in model.named_parameters() if n.endswith("log_scale")]
    assert len(grads) == 2 and all(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_numbers_change_from_layer_to_layer() -> None:
    model = attn_plugins.patch(vit(), "entmax15:scale=0.2..0.4")
    assert [line.spec for line in attn_plugins.describe(model)] == ["entmax15:scale=0.2", "entmax15:scale=0.4"]
    assert attn_plugins.verify(model, images()).ok


@pytest.mark.slow
@pytest.mark.parametrize(
    "scale",
    ["per_head", "asentmax", *(pytest.param(scale, marks=pytest.mark.nightly) for scale in ("learnable", "0.3"))],
)
def test_compiled_and_exported_it_is_the_same(scale: str) -> None:
    model = attn_plugins.patch(vit(), f"entmax15:scale={scale}")
    set_factors(model)
    expected = model(images())
    compiled: Any = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(images()), expected, rtol=1e-4, atol=1e-5)
    with attn_plugins.exportable(model):
        program = torch.export.export(model, (images(),))
    torch.testing.assert_close(program.module()(images()), expected, rtol=1e-4, atol=1e-5)
