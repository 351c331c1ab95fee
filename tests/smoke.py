"""What an installed wheel must do by itself: run from an empty folder with the wheel's folder in PYTHONPATH."""

from __future__ import annotations

import os
from pathlib import Path

import torch

import attn_plugins
from attn_plugins.cli import main
from attn_plugins.shipped import shipped
from attn_plugins.trainers.insertions import load

PLACE = Path(os.environ["PYTHONPATH"].split(os.pathsep)[0]).resolve()


class Attention(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)


for place in (Path(attn_plugins.__file__), shipped("patches", "manifest.json"), shipped("mmseg_configs", "_base_")):
    assert place.resolve().is_relative_to(PLACE), f"{place} is not the wheel's"
assert load("dino").before and main(["list"]) == 0
model, x = attn_plugins.patch(torch.nn.Sequential(Attention()), "entmax15"), torch.randn(1, 2, 30, 8)
torch.testing.assert_close(model(x), attn_plugins.attention(x, x, x, normalizer="entmax15"))
print(f"the wheel in {PLACE} works: {attn_plugins.describe(model)}")
