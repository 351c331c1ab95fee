"""Copies and checkpoints of patched models: deepcopy, pickle, torch.save, state dicts, meta device."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from codebases.twin import assert_same_outputs
from helpers.tiny_vit import Attention, TinyViT
from torch import nn

import attn_plugins

from .models import images, snapshot, tiny_vit

SPECS = ["entmax15", "entmax:alpha=1.3", "entmax_alpha:init=1.2"]


def patched_vit(spec: str) -> TinyViT:
    model = attn_plugins.patch(tiny_vit(), spec, layers=slice(0, 3))
    for name, parameter in model.named_parameters():
        if "attn_plugins" in name:
            nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("spec", SPECS)
def test_a_deepcopy_is_independent(spec: str) -> None:
    """Every DINO trainer builds its teacher so, and then changes its weights."""
    student, x = patched_vit(spec), images()
    teacher = copy.deepcopy(student)
    expected = student(x)
    assert torch.equal(teacher(x), expected)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.zero_()
    assert torch.equal(student(x), expected)
    attn_plugins.unpatch(teacher)
    assert torch.equal(student(x), expected)
    assert [line.spec for line in attn_plugins.describe(teacher)] == [None] * 4
    assert not ({id(m) for m in student.modules()} & {id(m) for m in teacher.modules()})


@pytest.mark.parametrize("spec", SPECS)
def test_pickle(spec: str) -> None:
    model, x = patched_vit(spec), images()
    loaded = pickle.loads(pickle.dumps(model))
    assert torch.equal(loaded(x), model(x))
    assert attn_plugins.describe(loaded) == attn_plugins.describe(model)
    assert type(loaded.blocks[0].attn) is type(model.get_submodule("blocks.0.attn"))
    attn_plugins.unpatch(loaded)
    assert type(loaded.blocks[0].attn) is Attention


@pytest.mark.slow
def test_pickle_is_read_by_another_process(tmp_path: Path) -> None:
    """Where nothing was patched yet: the classes are made on the way in."""
    timm = pytest.importorskip("timm", reason="needs a model class that another process can import")
    model = attn_plugins.patch(timm.create_model("test_vit"), "entmax15").eval()
    image = torch.ones(1, 3, 160, 160)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps((model, image, model(image).detach())))
    code = "import pickle, sys, torch; m, x, y = pickle.load(open(sys.argv[1], 'rb')); assert torch.equal(m(x), y)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pkl")], check=True, timeout=120)


@pytest.mark.parametrize("spec", SPECS)
def test_torch_save_of_the_whole_model(spec: str) -> None:
    model, x = patched_vit(spec), images()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    needed = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    assert "attn_plugins.swap._rebuild" in needed
    file.seek(0)
    classes = {type(module) for module in model.modules()}
    with torch.serialization.safe_globals([*map(_imported, needed), *((cls, str(id(cls))) for cls in classes)]):
        loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded(x), model(x))


def _imported(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules[module] if module in sys.modules else __import__(module), attribute)


@pytest.mark.parametrize("spec", ["softmax", "sparsemax", "entmax15", "entmax:alpha=1.3"])
def test_plugins_without_parameters_add_one_record_a_layer(spec: str) -> None:
    bare, x = tiny_vit(), images()
    patched = attn_plugins.patch(copy.deepcopy(bare), spec)
    records = [f"blocks.{n}.attn.attn_plugins_record" for n in range(4)]
    assert [key for key in patched.state_dict() if key not in bare.state_dict()] == records
    with torch.no_grad():
        bare.patch_embed.weight.mul_(2)
    patched.load_state_dict(bare.state_dict(), strict=True)
    expected = patched(x)
    fresh = tiny_vit()
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"blocks\.0\.attn\.attn_plugins_record"'):
        fresh.load_state_dict(patched.state_dict(), strict=True)
    attn_plugins.patch(fresh, spec).load_state_dict(patched.state_dict(), strict=True)
    assert torch.equal(fresh(x), expected)


def test_learned_alphas_load_strictly_between_patched_models() -> None:
    one, other, x = patched_vit("entmax_alpha"), patched_vit("entmax_alpha"), images()
    records = [f"blocks.{n}.attn.attn_plugins_record" for n in range(3)]
    keys = [key for key in one.state_dict() if "attn_plugins" in key and key not in records]
    assert keys == [f"blocks.{n}.attn.attn_plugins_normalizer.logit" for n in range(3)]
    with torch.no_grad():
        other.get_parameter("blocks.0.attn.attn_plugins_normalizer.logit").sub_(1)
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict(), strict=True)
    assert torch.equal(one(x), other(x))
    missing, unexpected = tiny_vit().load_state_dict(one.state_dict(), strict=False)
    assert missing == [] and set(unexpected) == {*keys, *records}


def test_a_model_on_the_meta_device_is_patched_there() -> None:
    real, x = patched_vit("entmax_alpha"), images()
    with torch.device("meta"):
        model = tiny_vit()
    attn_plugins.patch(model, "entmax_alpha", layers=slice(0, 3))
    assert all(parameter.is_meta for parameter in model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing runs there, so no kernel is missed
        assert next(line.spec for line in attn_plugins.describe(model)) == "entmax_alpha"
    model.to_empty(device="cpu").load_state_dict(real.state_dict(), strict=True)
    assert torch.equal(model(x), real(x))


def test_parameters_join_the_dtype_and_device_of_their_layer() -> None:
    model = attn_plugins.patch(tiny_vit().to(torch.bfloat16), "entmax_alpha")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(images().to(torch.bfloat16)).dtype == torch.bfloat16


def test_classes_are_freed_with_their_models() -> None:
    """Notebooks define a class again and again; nothing here may hold on to the old ones."""

    class Local(Attention):
        pass

    model = attn_plugins.patch(nn.Sequential(Local()), "entmax15")
    attn_plugins.describe(model)
    kept: list[weakref.ref[Any]] = [weakref.ref(Local), weakref.ref(type(model[0]))]
    del model, Local
    gc.collect()
    assert [reference() for reference in kept] == [None, None]


def test_the_patched_class_is_made_once() -> None:
    one, other = patched_vit("entmax15"), patched_vit("sparsemax")
    made = type(one.get_submodule("blocks.0.attn"))
    assert made is type(other.get_submodule("blocks.1.attn")) is not Attention
    assert made.__name__ == "Attention"
    assert snapshot(one) != snapshot(other)


def test_a_copy_runs_after_the_original_was_unpatched() -> None:
    model, x = patched_vit("entmax15"), torch.randn(3, 9, 32)
    double = copy.copy(model.get_submodule("blocks.0.attn"))
    expected = double(x)
    attn_plugins.unpatch(model)
    assert_same_outputs(double, expected, lambda m: m(x), atol=0)
