"""What trainers do with new parameters: weight decay, learning-rate decay, EMA, sharding, late initialisation."""

import copy
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import attn_plugins
from attn_plugins.checkpoints import load_backbone
from attn_plugins.patching import spec_of

from .tiny_vits import FAMILIES, dinov1, dinov2, dinov3, images, lightly_dinov3, trained

SPEC = "specialization+cb_s+gated+registers:num=2"


def new_parameters(build: Callable[[], Any]) -> tuple[Any, dict[str, nn.Parameter]]:
    model = build()
    names = set(dict(model.named_parameters()))
    attn_plugins.patch(model, SPEC)
    return model, {name: p for name, p in model.named_parameters() if name not in names}


def decayed(name: str) -> bool:
    """Only matrices: the copies of q, k, v and the gate's weight."""
    return name.endswith(("qkv.attn_plugins_specialization.weight", "attn_plugins_gated.weight"))


def test_dinov1_decays_the_new_matrices_alone() -> None:
    model, new = new_parameters(dinov1)
    path = os.environ["DINO_ROOT"]
    if path not in sys.path:
        sys.path.insert(0, path)
    groups = importlib.import_module("utils").get_params_groups(model)
    regularized = {id(p) for p in groups[0]["params"]}
    assert {name for name, p in new.items() if id(p) in regularized} == {name for name in new if decayed(name)}
    assert any(decayed(name) for name in new) and not all(decayed(name) for name in new)


@pytest.mark.parametrize("chunks", [0, 3])
def test_dinov2_decays_the_new_matrices_alone_and_each_by_its_layer(chunks: int) -> None:
    model, new = new_parameters(lambda: dinov2(block_chunks=chunks))
    # Under a key, as the trainer holds it; DINOv2 asks the backbone itself for its groups.
    groups = importlib.import_module("dinov2.utils.param_groups").get_params_groups_with_decay(model, 0.5)
    found = {group["name"]: group for group in groups if group["name"] in new}
    assert found.keys() == new.keys()
    for name, group in found.items():
        assert group["wd_multiplier"] == (1.0 if decayed(name) else 0.0), name
        block = name.split(".")[2 if chunks else 1] if name.startswith("blocks.") else None
        layer = {"norm": 4, "attn_plugins_registers": 0}[name.split(".")[0]] if block is None else int(block) + 1
        assert group["lr_multiplier"] == pytest.approx(0.5 ** (4 - layer)), name


@pytest.mark.parametrize("name", FAMILIES)
def test_the_teacher_follows_by_state_dict_and_by_zip(name: str) -> None:
    student = trained(attn_plugins.patch(FAMILIES[name].build(), SPEC), seed=1)
    teacher = trained(attn_plugins.patch(FAMILIES[name].build(), SPEC), seed=2)
    teacher.load_state_dict(student.state_dict())
    for parameter in student.parameters():
        parameter.data += 1
    for a, b in zip(teacher.parameters(), student.parameters(), strict=True):
        a.data.mul_(0.5).add_(b.data, alpha=0.5)
    expected = {key: value - 0.5 for key, value in student.named_parameters()}
    torch.testing.assert_close(dict(teacher.named_parameters()), expected, check_stride=False)
    frozen = copy.deepcopy(student).requires_grad_(False)
    attn_plugins.patch(attn_plugins.unpatch(frozen), SPEC)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("version", [1, 2])
def test_it_trains_under_fsdp_as_without(version: int, one_process: None) -> None:
    plain = trained(attn_plugins.patch(dinov2(), f"entmax15+{SPEC}"))
    sharded = copy.deepcopy(plain)
    if version == 2:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (1,))
        for block in sharded.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
    else:
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        kinds = {type(plain.blocks[0])}
        sharded = FullyShardedDataParallel(
            sharded, auto_wrap_policy=ModuleWrapPolicy(kinds), use_orig_params=True, device_id=torch.device("cpu")
        )
    losses = []
    for model in (plain, sharded):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(images()).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-4)
    assert spec_of(sharded) == spec_of(plain)


@pytest.mark.parametrize("build", [dinov3, lightly_dinov3])
def test_dinov3_starts_the_new_parameters_when_it_starts_its_own(
    build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attn_plugins.patch(build(), SPEC)
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.fill_(torch.nan)
    model.init_weights()
    assert not [name for name, parameter in model.named_parameters() if parameter.isnan().any()]
    new = dict(model.named_parameters())
    assert all((new[f"blocks.{i}.mlp.attn_plugins_cb_s.gamma"] == 0).all() for i in range(3))
    assert all((new[f"blocks.{i}.attn.proj.attn_plugins_gated.weight"] == 0).all() for i in range(3))


def test_a_checkpoint_loads_into_its_own_kind_of_model_and_no_other(tmp_path: Path) -> None:
    model = trained(attn_plugins.patch(dinov1(), f"entmax15+{SPEC}"))
    torch.save(model.state_dict(), tmp_path / "checkpoint.pth")
    twin = attn_plugins.patch(dinov1(), f"entmax15+{SPEC}").eval()
    load_backbone(twin, tmp_path / "checkpoint.pth")
    torch.testing.assert_close(twin(images()), model(images()))
    with pytest.raises(ValueError, match="was trained with"):
        load_backbone(attn_plugins.patch(dinov1(), "entmax15"), tmp_path / "checkpoint.pth")


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    model = trained(attn_plugins.patch(dinov1(), SPEC))
    gradients = []
    for wrap in (False, True):
        twin = copy.deepcopy(model)
        x = twin.prepare_tokens(images())
        for block in twin.blocks:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False) if wrap else block(x)
        twin.norm(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in twin.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])


def test_wrapped_models_take_no_new_parameters(one_process: None) -> None:
    model = nn.parallel.DistributedDataParallel(dinov1())
    with pytest.raises(ValueError, match="patch first, then wrap"):
        attn_plugins.patch(model, "registers")
    attn_plugins.patch(model, "context_broadcasting")
    assert "token mechanism: context_broadcasting" in str(attn_plugins.describe(model))
