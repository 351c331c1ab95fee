"""The name that a patch registers in transformers: refused without a patch, and right as a model's own setting."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attn_plugins

transformers = pytest.importorskip("transformers", reason="transformers (the test extra) is not installed")

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "vocab_size": 50,
}


def bert(implementation: str) -> Any:
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**SIZES, attn_implementation=implementation)).eval()


def test_a_model_that_is_not_patched_is_refused_with_the_remedy() -> None:
    attn_plugins.patch(bert("sdpa"), "entmax15")
    model = bert("attn_plugins")
    with pytest.raises(attn_plugins.UnsupportedModelError, match=r"BertSelfAttention .* attn_plugins\.patch"):
        model(torch.zeros(1, 4, dtype=torch.long))
    attn_plugins.patch(model, "entmax15")
    assert model(torch.zeros(1, 4, dtype=torch.long)).last_hidden_state.isfinite().all()


def test_a_name_with_a_spec_is_refused() -> None:
    attn_plugins.patch(bert("sdpa"), "entmax15")
    with pytest.raises(ValueError, match="not supported"):
        bert("attn_plugins|entmax15")


def test_the_name_as_a_models_setting_keeps_its_masks() -> None:
    model = bert("sdpa")
    ids, mask = torch.arange(12).reshape(2, 6), torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).last_hidden_state
        assert (expected - model(ids).last_hidden_state).abs().max() > 1e-4
        attn_plugins.patch(model, "softmax")
        model.set_attn_implementation("attn_plugins")
        assert (model(ids, attention_mask=mask).last_hidden_state - expected).abs().max() <= 1e-5
