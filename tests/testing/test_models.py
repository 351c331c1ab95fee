"""``check_mechanism`` and ``check_adapter``: ours pass, and broken ones fail by the property that they break."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attn_plugins
from attn_plugins import Adapter
from attn_plugins.codebases import generic, torchvision
from attn_plugins.mechanisms import Mechanism, Owned, ViT, add_layer
from attn_plugins.registry import ADAPTERS, MECHANISMS
from attn_plugins.testing import CheckFailed, check_adapter, check_mechanism

timm = pytest.importorskip("timm", reason="the ViT of these tests is timm's")


@pytest.fixture(autouse=True)
def new_names() -> Iterator[None]:
    with MECHANISMS.temporarily(), ADAPTERS.temporarily():
        yield


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
    out: nn.Module = timm.create_model("vit_tiny_patch16_224", **options)
    return out


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "spec", ["registers:num=2", "cb_s", "context_broadcasting", "gated", "last_vit", "specialization", "entmax15+gated"]
)
def test_our_mechanisms_pass(spec: str, vit: nn.Module) -> None:
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    report = check_mechanism(spec, vit, images())
    assert {check.result for check in report} <= {"holds", "it adds no parameters"}, str(report)
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())


class Shift(Owned):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.bias)


def shifting(base: Any) -> dict[str, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        out: Tensor = base.forward(self, x) + self.attn_plugins_shifted.bias
        return out

    return {"forward": forward}


class Shifted(Mechanism):
    """Adds a learnable vector to the final norm's output."""

    def apply(self, vit: ViT) -> None:
        if not hasattr(vit.norm, "attn_plugins_shifted"):
            vit.norm.attn_plugins_shifted = Shift(24).like(vit.cls_token)
        add_layer(vit.norm, shifting)


def counting(base: Any) -> dict[str, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.cat([base.forward(self, x), x[:, :1]], dim=-1)

    return {"forward": forward}


class Wider(Mechanism):
    def apply(self, vit: ViT) -> None:
        add_layer(vit.root.head, counting)


class OtherName(Mechanism):
    def apply(self, vit: ViT) -> None:
        vit.norm.shift = 3


class ChecksByChanging(Shifted):
    def check(self, vit: ViT) -> None:
        with torch.no_grad():
            vit.norm.weight.mul_(2)


class AppliesToWeights(Shifted):
    def apply(self, vit: ViT) -> None:
        with torch.no_grad():
            vit.norm.weight.mul_(2)
        super().apply(vit)


class Unused(Mechanism):
    def apply(self, vit: ViT) -> None:
        if not hasattr(vit.norm, "attn_plugins_shifted"):
            vit.norm.attn_plugins_shifted = Shift(24).like(vit.cls_token)


def by_number(base: Any) -> dict[str, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        out: Tensor = base.forward(self, x) + self.attn_plugins_shifted
        return out

    return {"forward": forward}


class NotInTheStateDict(Mechanism):
    made = 0

    def apply(self, vit: ViT) -> None:
        NotInTheStateDict.made += 1
        vit.norm.attn_plugins_shifted = NotInTheStateDict.made
        add_layer(vit.norm, by_number)


class StartsAnew(Mechanism):
    def apply(self, vit: ViT) -> None:
        vit.norm.attn_plugins_shifted = Shift(24).like(vit.cls_token)
        add_layer(vit.norm, shifting)


def test_a_sound_one_passes(vit: nn.Module) -> None:
    attn_plugins.register_mechanism("shifted")(Shifted)
    assert {check.result for check in check_mechanism("shifted", vit, images())} == {"holds"}


@pytest.mark.parametrize(
    ("broken", "name", "message"),
    [
        (Wider, "forward", r"the outputs have shapes \[\(2, 6\)\], without it \[\(2, 5\)\]"),
        (OtherName, "names", "norm.shift; names that unpatch takes off begin with attn_plugins_"),
        (ChecksByChanging, "check", r"check of broken failed, and the model has changed: the values of norm\.weight"),
        (AppliesToWeights, "all or nothing", r"the model has changed: the values of norm\.weight"),
        (Unused, "gradient", "norm.attn_plugins_shifted.bias gets no gradient"),
        (NotInTheStateDict, "state dict", "another patched model with its state dict is off"),
        (StartsAnew, "again", "patched again with the same spec, the model changes: the values of norm.attn_plugins_"),
    ],
)
def test_a_broken_mechanism_fails_by_what_it_breaks(broken: Any, name: str, message: str, vit: nn.Module) -> None:
    attn_plugins.register_mechanism("broken")(broken)
    with pytest.raises(CheckFailed, match=f"mechanism broken on VisionTransformer: {name}: .*{message}") as failure:
        check_mechanism("broken", vit, images())
    assert failure.value.property == name


def test_bad_input_is_an_error_of_its_own(vit: nn.Module) -> None:
    with pytest.raises(ValueError, match="check_normalizer is for normalizers"):
        check_mechanism("entmax15", vit, images())
    with pytest.raises(attn_plugins.UnsupportedModelError):
        check_mechanism("cb_s", nn.Linear(3, 3), images())
    attn_plugins.register_adapter(Adapter("mine", lambda cls: False, _right))
    with pytest.raises(ValueError, match="another adapter is registered as 'mine'"):
        check_adapter(Adapter("mine", lambda cls: True, _right), Strange(), tokens())


class Strange(nn.Module):
    """Attention whose scores no general adapter reads, of 2 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.out = 2, nn.Linear(8, 24), nn.Linear(8, 8)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind()
        return 2 * q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


def tokens() -> Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def _overrides(attend: Any) -> Any:
    def overrides(base: Any) -> dict[str, Any]:
        def forward(self: Any, x: Tensor) -> Tensor:
            out = attend(self, *self.heads(x))
            result: Tensor = self.out(out.transpose(1, 2).flatten(2))
            return result

        return {"forward": forward}

    return overrides


def attend(self: Any, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    out: Tensor = attn_plugins.attention(q, k, v, **{"normalizer": self.attn_plugins_normalizer} | options)
    return out


def both(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attend(self, q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def remembering(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    self.last = q.detach()
    return attend(self, q, k, v)


def once(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows = attn_plugins.attention(q, k, v, normalizer=lambda z, dim=-1: 2 * self.attn_plugins_normalizer(z, dim))
    return rows / 2


_right = _overrides(attend)


def strange(overrides: Any, **options: Any) -> Adapter:
    return Adapter("toy", lambda cls: issubclass(cls, Strange), overrides, **options)


def test_adapters_pass(vit: nn.Module) -> None:
    x = torch.randn(2, 5, 12)
    mha = nn.MultiheadAttention(12, 3, batch_first=True)
    for report in (
        check_adapter(strange(_right), Strange(), tokens()),
        check_adapter(torchvision.ADAPTER, mha, x, x, x, need_weights=False),
        check_adapter(generic.SDPA, vit, images()),
    ):
        assert {check.result for check in report} == {"holds"}, str(report)
    assert "toy" not in ADAPTERS
    told = check_adapter(strange(_right, num_heads=lambda module: None), Strange(), tokens())
    assert "heads is not told" in str(told)


def doubling(module: Any) -> None:
    module.checked = True


@pytest.mark.parametrize(
    ("adapter", "name", "message"),
    [
        (Adapter("toy", lambda cls: False, _right), "matches", "no module is reached by it; .*the module: sdpa"),
        (strange(_right, num_heads=lambda module: "2"), "heads", "gives '2', not a number of heads or None"),
        (strange(_right, check=doubling), "check", "its check changes the module: .*'checked'"),
        (strange(_overrides(lambda s, q, k, v: attend(s, q, k, v, scale=1.0))), "softmax", "with softmax is off"),
        (strange(_overrides(lambda s, q, k, v: attend(s, q, k, v).detach())), "softmax", "gets no gradient"),
        (strange(_overrides(both)), "normalizer", "that of softmax: the normalizer is not used"),
        (strange(_overrides(lambda s, q, k, v: attend(s, q, k, v, normalizer="softmax"))), "normalizer", "not used"),
        (strange(_overrides(once)), "verify", "rows of weights sum to 1 only within"),
        (strange(_right, num_heads=lambda module: 3), "gradient", "heads"),
        (strange(_overrides(remembering)), "unpatch", "not what it was: .*'last'"),
    ],
)
def test_a_broken_adapter_fails_by_what_it_breaks(adapter: Adapter, name: str, message: str) -> None:
    with pytest.raises(CheckFailed, match=f"adapter toy on Strange: {name}: .*{message}") as failure:
        check_adapter(adapter, Strange(), tokens())
    assert failure.value.property == name
