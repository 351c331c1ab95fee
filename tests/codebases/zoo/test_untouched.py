"""Softmax that is no attention's stays softmax beside attention that is entmax: routers, gates, heads and losses."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attn_plugins

from .entries_dino import Mae, plain
from .entries_spelling import Spelled
from .entry import DIM, HEADS, Entry, Host, Normalize, Zoo, attend, built, entmax15, made, merge, one, qkv_of, softmax
from .test_zoo import same

ZOO = Zoo()


class Routed(Spelled):
    """A router over experts after SDPA, in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(DIM, 4)
        self.experts = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(4))

    def attention(self, x: Tensor) -> Any:
        return self.join(F.scaled_dot_product_attention(*self.qkv(x), scale=1.0))

    def mix(self, gates: Tensor, outs: Tensor) -> Tensor:
        return (gates[..., None] * outs).sum(dim=-2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.attention(x)
        gates = F.softmax(3 * self.router(x), dim=-1)
        return self.mix(gates, torch.stack([expert(x) for expert in self.experts], -2)), gates


class RoutedProduct(Routed):
    """The experts' outputs are mixed by a matrix product."""

    def mix(self, gates: Tensor, outs: Tensor) -> Tensor:
        return torch.einsum("bne,bned->bnd", gates, outs)


class RoutedWritten(Routed):
    def attention(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join((q @ k.mT).softmax(dim=-1) @ v)


def routed(m: Any, normalize: Normalize, x: Tensor) -> Any:
    x = m.out(merge(attend(normalize, *qkv_of(m.in_proj(x)))))
    gates = softmax(3 * m.router(x))
    return sum(gates[..., i : i + 1] * expert(x) for i, expert in enumerate(m.experts)), gates


ZOO.add("router after SDPA", Routed, one)(routed)
ZOO.add("router by einsum after SDPA", RoutedProduct, one)(routed)
ZOO.add("router after softmax attention", RoutedWritten, one)(routed)


class GatedHeads(Spelled):
    """A softmax over heads gates what SDPA gives."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(DIM, HEADS)

    def forward(self, x: Tensor) -> Any:
        out = F.scaled_dot_product_attention(*self.qkv(x), scale=1.0)
        return self.join(out * torch.softmax(self.gate(x), -1).transpose(1, 2)[..., None])


@ZOO.add("gates over heads", GatedHeads, one)
def gated(m: Any, normalize: Normalize, x: Tensor) -> Any:
    out = attend(normalize, *qkv_of(m.in_proj(x)))
    return m.out(merge(out * softmax(m.gate(x)).mT[..., None]))


class Selective(nn.Module):
    """SKNet's and ResNeSt's: branches are weighed by a softmax over them; no attention of tokens, beside a block's."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.fc = Mae(), nn.Linear(DIM, 2 * DIM)

    def forward(self, x: Tensor) -> Any:
        branches = torch.stack([self.attn(x), x], 1)
        weights = self.fc(branches.sum(1).mean(1)).view(-1, 2, DIM).softmax(dim=1)
        return (branches * weights[:, :, None]).sum(1)


@ZOO.add("branches weighed", Selective, one, sites=("attn",))
def selective(m: Any, normalize: Normalize, x: Tensor) -> Any:
    y = plain(m.attn, normalize, x)[0]
    weights = torch.stack([softmax(pair) for pair in m.fc((x + y).mean(1)).view(-1, 2, DIM).mT.unbind(0)]).mT
    return y * weights[:, :1] + x * weights[:, 1:]


class Classifier(nn.Module):
    """Probabilities of classes come from the same forward."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.head, self.softmax = Mae(), nn.Linear(DIM, 5), nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Any:
        return self.softmax(self.head(self.attn(x)).mean(1))


@ZOO.add("probabilities of classes", Classifier, one, sites=("attn",))
def classifier(m: Any, normalize: Normalize, x: Tensor) -> Any:
    return softmax(m.head(plain(m.attn, normalize, x)[0]).mean(1))


class WithLoss(Classifier):
    """DINO's, CLIP's and SwAV's losses as methods of the model: products and softmaxes, none of them attention."""

    def forward(self, x: Tensor) -> Any:
        return self.attn(x)

    def distillation(self, student: Tensor, teacher: Tensor) -> Tensor:
        target = F.softmax(teacher / 0.5, dim=-1)
        return -(target * F.log_softmax(student, dim=-1)).sum(-1).mean()

    def contrastive(self, a: Tensor, b: Tensor) -> Tensor:
        probabilities = torch.softmax(a.flatten(1) @ b.flatten(1).T, dim=-1)
        return -probabilities.diagonal().clamp(min=1e-12).log().mean()


def patched(model: Host) -> None:
    """A softmax that was left alone may be named."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        attn_plugins.patch(model, "entmax15")


every_entry = pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in ZOO])


@every_entry
def test_only_the_attention_is_entmax(entry: Entry) -> None:
    model, inputs = built(entry.build), made(entry.inputs)
    same(entry.reference(model.attn, softmax, *inputs), model(*inputs))
    expected = entry.reference(model.attn, entmax15, *inputs)
    patched(model)
    same(model(*inputs), expected)


def test_losses_stay_what_they_were() -> None:
    model, (x,) = built(WithLoss), made(one)
    a, b = x.detach(), x.detach().flip(0) / 2
    before = model.attn.distillation(a, b), model.attn.contrastive(a, b)
    patched(model)
    assert all(map(torch.equal, (model.attn.distillation(a, b), model.attn.contrastive(a, b)), before))
    same(model(x), plain(model.attn.attn, entmax15, x)[0])
