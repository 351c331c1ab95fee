"""What the lines inserted into the official trainers call."""

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_vit

from attn_plugins import UnknownPluginError, patch
from attn_plugins.checkpoints import CheckpointError
from attn_plugins.patching.record import spec_of
from attn_plugins.trainers import before_load, patch_networks, spec_from
from attn_plugins.trainers.compat import keep_old_fsdp_names, read_own_checkpoints


def test_softmax_changes_no_module_and_is_told_all_the_same() -> None:
    student, plain = tiny_vit.TinyViT(), tiny_vit.TinyViT()
    patch_networks("softmax", student)
    assert [type(module) for module in student.modules()] == [type(module) for module in plain.modules()]
    assert all(set(vars(block.attn)) == set(vars(plain.blocks[0].attn)) for block in student.blocks)
    state: Any = student.state_dict()
    assert state._metadata[""]["attn_plugins"] == {"spec": "softmax"}


def test_softmax_is_not_resumed_as_anything_else() -> None:
    trained, other = tiny_vit.TinyViT(), tiny_vit.TinyViT()
    patch_networks("softmax", trained)
    patch_networks("entmax15", other)
    with pytest.raises(ValueError, match=r"trained with attn_plugins \{'spec': 'softmax'\}"):
        other.load_state_dict(trained.state_dict())
    trained.load_state_dict(trained.state_dict())


def test_student_and_teacher_are_patched_alike() -> None:
    networks = tiny_vit.TinyViT(), tiny_vit.Deeper()
    patch_networks("entmax15", *networks)
    assert [spec_of(network) for network in networks] == ["entmax15", "entmax15"]


def test_a_network_that_has_another_spec_already_is_an_error() -> None:
    network = patch(tiny_vit.TinyViT(), "entmax15")
    with pytest.raises(ValueError, match="give the spec in one place"):
        patch_networks("sparsemax", network)
    with pytest.raises(ValueError, match="give the spec in one place"):
        patch_networks("softmax", network)
    patch_networks("entmax15", network)


def test_a_typo_is_told_before_anything_is_patched() -> None:
    network = tiny_vit.TinyViT()
    with pytest.raises(UnknownPluginError, match="entmax15"):
        patch_networks("entmaks15", network)
    assert spec_of(network) is None


@pytest.mark.parametrize(("config", "spec"), [({}, "softmax"), ({"attn_plugins": "entmax15"}, "entmax15")])
def test_the_spec_is_read_from_namespaces_and_omegaconf(config: Any, spec: str | None) -> None:
    from omegaconf import OmegaConf

    assert spec_from(argparse.Namespace(**config)) == spec
    assert spec_from(OmegaConf.create(config)) == spec


def test_before_load_lets_a_matching_file_and_no_file_pass(tmp_path: Path) -> None:
    model = patch(tiny_vit.TinyViT(), "entmax15")
    torch.save({"teacher": model.state_dict()}, tmp_path / "entmax15.pth")
    torch.save({"teacher": tiny_vit.TinyViT().state_dict()}, tmp_path / "silent.pth")
    before_load(model, tmp_path / "entmax15.pth")
    before_load(model, tmp_path / "silent.pth")
    before_load(model, "https://example.org/weights.pth")
    before_load(model, "")
    with pytest.raises(CheckpointError, match="'entmax15' and 'softmax' was asked"):
        before_load(tiny_vit.TinyViT(), tmp_path / "entmax15.pth")


def test_before_load_misses_what_plugins_should_have_learned(tmp_path: Path) -> None:
    torch.save(tiny_vit.TinyViT().state_dict(), tmp_path / "silent.pth")
    with pytest.raises(CheckpointError, match=r"lacks what 'entmax_alpha' learns: \['blocks\.0\.attn\.attn_plugins"):
        before_load(patch(tiny_vit.TinyViT(), "entmax_alpha"), tmp_path / "silent.pth")


def test_a_network_that_is_no_vit_passes(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    patch_networks("softmax", network)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "resnet.pth")
    before_load(network, tmp_path / "resnet.pth")


def test_a_checkpoint_with_a_namespace_and_numpy_numbers_is_read_again(tmp_path: Path) -> None:
    contents = {"args": argparse.Namespace(arch="vit_small"), "optimizer": {"lr": np.float64(0.1)}}
    torch.save(contents, tmp_path / "old.pth")
    read_own_checkpoints()
    before_load(tiny_vit.TinyViT(), tmp_path / "old.pth")  # reads with a list of its own, and leaves this one
    assert torch.load(tmp_path / "old.pth") == contents


def test_networks_on_the_meta_device_are_initialised_with_their_plugins() -> None:
    class LateViT(tiny_vit.TinyViT):
        def init_weights(self) -> None:
            torch.nn.init.ones_(self.cls_token)

    with torch.device("meta"):
        network = LateViT()
    patch_networks("entmax_alpha:init=1.25", network)
    network = copy.deepcopy(network).to_empty(device="cpu")
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    network.init_weights()
    assert network.cls_token.eq(1).all()
    for block in network.blocks:
        normalizer: Any = block.get_submodule("attn.attn_plugins_normalizer")
        torch.testing.assert_close(normalizer.alpha, torch.full((2,), 1.25))


def test_fsdp_answers_to_its_old_names() -> None:
    keep_old_fsdp_names()
    keep_old_fsdp_names()
    import torch.distributed.fsdp._runtime_utils as runtime
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    class Handle:
        def __init__(self) -> None:
            self.freed: list[bool] = []

        def reshard(self, free: bool) -> None:
            self.freed.append(free)

        def post_reshard(self) -> None:
            pass

    class State:
        limit_all_gathers = False

    handles = [Handle(), Handle()]
    runtime._reshard(State(), handles, [True, False])
    runtime._reshard(State(), handles[0], True)
    assert [handle.freed for handle in handles] == [[True, True], [False]]
    one, other = (FSDP.__new__(FSDP) for _ in range(2))
    one.__dict__["_unshard_stream"] = other.__dict__["_handle"] = "stream"
    other._streams = one._streams
    assert other.__dict__["_unshard_stream"] == "stream"
    assert other._handles == ["stream"]
