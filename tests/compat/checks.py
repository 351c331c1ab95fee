"""What is checked in every environment of ``.ci/compat.json``: one test a column of the README's table.

Not collected with the other tests: ``make compat`` names this file. A check that an environment has no package for is
skipped, saying so.
"""

from __future__ import annotations

import copy
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attn_plugins
from attn_plugins.torch_names import VERSION

ROOT = Path(__file__).parents[2]
SPECS = ("softmax", "sparsemax", "entmax15", "entmax:alpha=1.3", "entmax_alpha")


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return out


class Blocks(nn.Module):
    def __init__(self, dim: int = 32, depth: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Attention(dim, heads) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def patched(model: nn.Module, spec: str) -> nn.Module:
    """A copy of ``model`` with ``spec``, in which every attention layer was answered."""
    copied = attn_plugins.patch(copy.deepcopy(model).eval(), spec)
    assert isinstance(copied, nn.Module)
    return copied


def differs(model: nn.Module, *inputs: Any) -> None:
    """A patched copy computes something else, softmax by the same patch the same; unpatched it is as it was."""

    def first(out: Any) -> Tensor:
        found: Tensor = out if isinstance(out, Tensor) else out[0]
        return found

    before = first(model.eval()(*inputs))
    sparse = patched(model, "entmax15")
    assert not torch.allclose(first(sparse(*inputs)), before, atol=1e-4)
    torch.testing.assert_close(first(patched(model, "softmax")(*inputs)), before, atol=1e-4, rtol=1e-4)
    attn_plugins.unpatch(sparse)
    assert torch.equal(first(sparse(*inputs)), before)


def test_functional() -> None:
    entmax = pytest.importorskip("entmax")
    scores = 3 * seeded(64, 33)
    torch.testing.assert_close(attn_plugins.functional.entmax15(scores), entmax.entmax15(scores), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        attn_plugins.functional.sparsemax(scores), entmax.sparsemax(scores), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradients(backend: str) -> None:
    q, k, v = (t.double().requires_grad_() for t in seeded(3, 1, 2, 7, 4))
    for spec in SPECS[1:4]:
        assert torch.autograd.gradcheck(
            lambda q, k, v, spec=spec: attn_plugins.attention(q, k, v, normalizer=spec, backend=backend), (q, k, v)
        )


def test_c_kernel() -> None:
    from attn_plugins import native

    assert native.unavailable() is None
    for spec in SPECS[1:4]:
        told = []
        for backend in ("cpu", "reference"):
            q, k, v = (t.clone().requires_grad_() for t in seeded(3, 2, 2, 40, 16))
            out = attn_plugins.attention(q, k, v, normalizer=spec, backend=backend)
            out.square().sum().backward()
            told.append((out, q.grad, k.grad, v.grad))
        for ours, theirs in zip(*told, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_patch() -> None:
    differs(Blocks(), 4 * seeded(2, 9, 32))
    model = patched(Blocks(), "entmax_alpha").train()
    model(seeded(2, 9, 32)).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(attn_plugins.UnknownPluginError, match="entmax15"):
        attn_plugins.patch(Blocks(), "entmax51")


def test_mha() -> None:
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    for parameter in layer.self_attn.parameters():
        nn.init.normal_(parameter, std=0.5)
    differs(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), seeded(2, 9, 32))


def timm_vit() -> nn.Module:
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")
    torch.manual_seed(0)
    model: nn.Module = vision_transformer.VisionTransformer(32, 8, num_classes=3, embed_dim=48, depth=2, num_heads=3)
    for name, parameter in model.named_parameters():
        if "qkv.weight" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def test_timm() -> None:
    differs(timm_vit(), seeded(2, 3, 32, 32))


@pytest.mark.parametrize("mechanism", ["registers:num=2", "specialization", "context_broadcasting", "gated"])
def test_timm_mechanisms(mechanism: str) -> None:
    model, images = timm_vit().eval(), seeded(2, 3, 32, 32)
    before = model(images)
    if not hasattr(model, "_pos_embed"):
        with pytest.raises(attn_plugins.UnsupportedModelError, match=r"timm from 0\.6"):
            attn_plugins.patch(model, mechanism)
        pytest.skip("token mechanisms need timm 0.6, and older ones are refused by that name")
    both = patched(model, f"entmax15+{mechanism}").train()
    both(images).square().mean().backward()
    assert both.eval()(images).shape == before.shape
    attn_plugins.unpatch(both)
    assert torch.allclose(both(images), before, atol=1e-6)


def test_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    for name in ("ViT", "Dinov2"):
        config = getattr(transformers, f"{name}Config")(**small, image_size=32, patch_size=8)
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}Model")(config)
        for key, parameter in model.named_parameters():
            if "query" in key or "key" in key or "q_proj" in key or "k_proj" in key:
                nn.init.normal_(parameter, std=0.5)
        differs(_Hidden(model), seeded(2, 3, 32, 32))


class _Hidden(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.model(pixel_values=images).last_hidden_state
        return tokens


def test_save_and_load(tmp_path: Path) -> None:
    model = patched(Blocks(), "entmax15")
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    state = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    other = patched(Blocks(), "entmax15")
    other.load_state_dict(state)
    assert torch.equal(other(x := seeded(1, 9, 32)), model(x))
    with pytest.raises(ValueError, match="entmax15"):
        patched(Blocks(), "sparsemax").load_state_dict(state)


def test_compile() -> None:
    whole = VERSION >= (2, 6)  # before, attention is left eager: see attn_plugins.torch_names.traceable
    for spec in ("entmax15", "entmax_alpha"):
        torch._dynamo.reset()
        model, x = patched(Blocks(), spec), seeded(2, 9, 32)
        compiled = torch.compile(model, fullgraph=whole, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x))
        compiled(x).square().mean().backward()


def test_export() -> None:
    if VERSION < (2, 6):
        pytest.skip("torch.export of a patched layer needs torch 2.6")
    model, x = patched(Blocks(), "entmax15"), seeded(2, 9, 32)
    expected = model(x)
    with attn_plugins.exportable(model):
        program = torch.export.export(model, (x,))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called and not [name for name in called if "attn_plugins" in name]
    torch.testing.assert_close(program.module()(x), expected, atol=1e-5, rtol=1e-4)


def test_command_line(tmp_path: Path) -> None:
    torch.save(timm_vit().state_dict(), tmp_path / "model.pth")
    for words, said in (
        (["--version"], attn_plugins.__version__),
        (["list"], "entmax15"),
        (["env"], f"torch {torch.__version__.partition('+')[0]}"),
        (["inspect", str(tmp_path / "model.pth")], "patch size"),
    ):
        command = [sys.executable, "-m", "attn_plugins", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert said in " ".join(done.stdout.split())


def _trainer(name: str, *needed: str) -> Path:
    for module in needed:
        pytest.importorskip(module)
    root = os.environ.get(f"{name.upper()}_ROOT") or pytest.skip(f"{name.upper()}_ROOT names no checkout")
    return Path(root)


def test_dinov2_step() -> None:
    root = _trainer("dinov2", "xformers", "fvcore", "omegaconf")
    from helpers import official_trainers as trainers

    script = (ROOT / "tests/integration/dinov2_steps.py", ROOT / "integration/dinov2/check.yaml", 1)
    losses = trainers.numbers(trainers.on_cpu("entmax15", *script, path=root), "total_loss")
    assert len(losses) == 1 and float(losses[0]) == float(losses[0])


def test_dinov3_step(tmp_path: Path) -> None:
    root = _trainer("dinov3", "omegaconf", "torchmetrics", "termcolor")
    from helpers import official_trainers as trainers

    dataset = trainers.dinov2_dataset(tmp_path / "data")
    script = (root / "dinov3/train/train.py", "--config-file", ROOT / "integration/dinov3/check.yaml")
    options = ("--output-dir", tmp_path / "out", f"train.dataset_path={dataset}", "train.OFFICIAL_EPOCH_LENGTH=1")
    output = trainers.on_cpu("entmax15", *script, *options, path=root)
    losses = trainers.numbers(output, "total_loss")
    assert losses and "nan" not in losses and "12 attention layers with entmax15" in output


def test_probe_iteration(tmp_path: Path) -> None:
    for module in ("mmseg", "mim"):
        pytest.importorskip(module)
    timm = pytest.importorskip("timm")
    sys.path.insert(0, str(ROOT / "tests"))
    from probes import running

    from attn_plugins.checkpoints import save
    from attn_plugins.data.layouts import LAYOUTS

    root = LAYOUTS["voc2012"](tmp_path / "voc", num_train=2, num_val=1, size=(48, 64), seed=0)
    if (
        "dynamic_img_size"
        not in inspect.signature(timm.models.vision_transformer.VisionTransformer.__init__).parameters
    ):
        with pytest.raises(ValueError, match=r"takes timm 0\.9\.16"):
            attn_plugins.checkpoints.build("timm/vit_tiny_patch16_224")
        pytest.skip("commands that build models need timm 0.9.16, and refuse older ones by that name")
    size = {"img_size": 64, "depth": 2}
    model = attn_plugins.patch(timm.create_model("vit_tiny_patch16_224", num_classes=0, **size), "entmax15")
    save(tmp_path / "backbone.pth", model, arch="timm/vit_tiny_patch16_224", arch_options=size)
    settings = running.options("voc2012_linear", tmp_path / "backbone.pth", {"voc2012": root}, 1, 2)
    output = running.mim("train", "voc2012_linear", settings, work_dir=tmp_path / "work")
    assert "mIoU" in output
