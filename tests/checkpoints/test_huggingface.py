"""transformers' own format: what `save_pretrained` writes of a patched model comes back bit for bit, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attn_plugins
from attn_plugins.checkpoints import CheckpointError, build, identify, save
from attn_plugins.checkpoints.building import chosen_plugins

transformers = pytest.importorskip("transformers")

SPEC = "entmax_alpha+registers:num=2"
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}


def model_of(name: str, spec: str = SPEC, layers: Any = None, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    family = name.removesuffix("Model").removesuffix("ForImageClassification")
    config = getattr(transformers, f"{family}Config")(**SIZES | options)
    model = attn_plugins.patch(getattr(transformers, name)(config), spec, layers).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.dim() < 2 else 0.2)
    return model


def output(model: Any) -> Tensor:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        out: Tensor = model(pixel_values=images)[0]
        return out


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("ViTModel", SPEC),
        ("Dinov2Model", SPEC),
        ("Dinov2Model", "entmax15+gated"),
        ("DINOv3ViTModel", "entmax_alpha"),
        ("CLIPVisionModel", "entmax_alpha"),
        ("SiglipVisionModel", "sparsemax"),
        ("BeitModel", "entmax15"),
    ],
)
def test_a_folder_comes_back_bit_for_bit(name: str, spec: str, tmp_path: Path) -> None:
    model = model_of(name, spec)
    model.save_pretrained(tmp_path)
    for loaded in (
        attn_plugins.from_pretrained(tmp_path),
        attn_plugins.from_pretrained(tmp_path, getattr(transformers, name), plugins=spec),
        build(f"transformers/{tmp_path}")[0],
        build(checkpoint=tmp_path)[0],
    ):
        torch.testing.assert_close(output(loaded), output(model), rtol=0, atol=0)
        assert {line.spec for line in attn_plugins.describe(loaded) if line.note == ""} == {
            str(attn_plugins.parse(spec).normalizer)
        }
    with pytest.raises(CheckpointError, match="'softmax' was asked for"):
        attn_plugins.from_pretrained(tmp_path, plugins="softmax")


def test_a_second_journey_changes_nothing(tmp_path: Path) -> None:
    model = model_of("ViTModel")
    model.save_pretrained(tmp_path / "first")
    attn_plugins.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    again = attn_plugins.from_pretrained(tmp_path / "second")
    torch.testing.assert_close(output(again), output(model), rtol=0, atol=0)


def test_a_classifier_comes_back_whole_or_as_its_backbone(tmp_path: Path) -> None:
    model: Any = model_of("ViTForImageClassification", num_labels=4)
    model.save_pretrained(tmp_path)
    whole = attn_plugins.from_pretrained(tmp_path, transformers.ViTForImageClassification)
    torch.testing.assert_close(output(whole), output(model), rtol=0, atol=0)
    torch.testing.assert_close(output(attn_plugins.from_pretrained(tmp_path)), output(model.vit), rtol=0, atol=0)


def test_layers_are_patched_one_by_one(tmp_path: Path) -> None:
    model = model_of("ViTModel", "entmax_alpha", [2])
    model.save_pretrained(tmp_path)
    loaded = attn_plugins.from_pretrained(tmp_path)
    assert [line.spec for line in attn_plugins.describe(loaded)] == [None, None, "entmax_alpha"]
    torch.testing.assert_close(output(loaded), output(model), rtol=0, atol=0)


def test_shards_come_back(tmp_path: Path) -> None:
    model = model_of("ViTModel")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    torch.testing.assert_close(output(attn_plugins.from_pretrained(tmp_path)), output(model), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ViTModel", "Dinov2Model"])
def test_our_own_file_comes_back(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    model.save_pretrained(tmp_path / "folder")
    file = save(tmp_path / "own.pth", model, arch=f"transformers/{tmp_path / 'folder'}")
    plain = save(tmp_path / "plain.pth", model)
    for built, identity in (
        build(checkpoint=file),
        build(checkpoint=plain),
        build(f"transformers/{tmp_path / 'folder'}", file),
    ):
        torch.testing.assert_close(output(built), output(model), rtol=0, atol=0)
        assert identity["plugins_source"] == "recorded"
        assert identity["digest"] == build(checkpoint=tmp_path / "folder")[1]["digest"]
    assert identify(file).spec == SPEC and identify(file).codebase == "transformers"


def test_a_folder_without_a_pooling_layer_has_no_random_one(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**SIZES)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    digests = {build(checkpoint=tmp_path, plugins="softmax")[1]["digest"] for _ in range(2)}
    assert len(digests) == 1


def test_config_and_tensors_must_agree(tmp_path: Path) -> None:
    model: Any = model_of("ViTModel", "entmax15")
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(output(attn_plugins.from_pretrained(tmp_path)), output(model), rtol=0, atol=0)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"attn_plugins": {"spec": "sparsemax"}}))
    with pytest.raises(CheckpointError, match="more than one spec"):
        attn_plugins.from_pretrained(tmp_path)


def test_a_model_that_automodel_loaded_and_saved_again_is_refused(tmp_path: Path) -> None:
    model: Any = model_of("ViTModel", "entmax15")
    model.save_pretrained(tmp_path / "first")
    transformers.AutoModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    with pytest.raises(CheckpointError, match="loaded without attn_plugins and saved again"):
        attn_plugins.from_pretrained(tmp_path / "second")


def test_a_folder_that_says_nothing_is_assumed_to_be_softmax_or_asks(tmp_path: Path) -> None:
    transformers.ViTModel(transformers.ViTConfig(**SIZES)).save_pretrained(tmp_path / "plain")
    with pytest.warns(UserWarning, match="does not record the plugins"):
        attn_plugins.from_pretrained(tmp_path / "plain")
    model = attn_plugins.patch(transformers.ViTModel(transformers.ViTConfig(**SIZES)), "entmax_alpha")
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("attn_plugins_record")}
    model.save_pretrained(tmp_path / "older", state_dict=state)
    config = tmp_path / "older" / "config.json"
    settings = json.loads(config.read_text())
    assert settings.pop("attn_plugins") == {"spec": "entmax_alpha"}  # what releases before this one did not write
    config.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"does not record the spec.*--plugins"):
        attn_plugins.from_pretrained(tmp_path / "older")
    loaded = attn_plugins.from_pretrained(tmp_path / "older", plugins="entmax_alpha")
    torch.testing.assert_close(output(loaded), output(model.eval()))


def test_what_is_no_folder_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no folder of transformers.*checkpoints\.build"):
        attn_plugins.from_pretrained(tmp_path)


def test_code_that_a_folder_brings_is_not_run(tmp_path: Path) -> None:
    model = model_of("ViTModel", "entmax15")
    model.save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    settings = json.loads((tmp_path / "config.json").read_text())
    settings |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="trust_remote_code"):
        attn_plugins.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "evil"}, "which transformers has no model of"),
        ({"model_type": 3}, "which transformers has no model of"),
        ({"architectures": ["os.system"]}, "features are read from ViTModel"),
        ({"hidden_act": "os.system"}, "its config makes no ViTModel"),
        ({"hidden_size": "many"}, "its config makes no ViTModel"),
    ],
)
def test_a_config_in_a_file_chooses_no_code(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "own.pth", model_of("ViTModel", "entmax15"))
    contents = torch.load(path, weights_only=True)
    contents["attn_plugins"]["config"] |= change
    torch.save(contents, path)
    with pytest.raises(CheckpointError, match=message):
        build(checkpoint=path)


def test_what_could_fetch_something_is_left_out_of_a_config_in_a_file(tmp_path: Path) -> None:
    model = model_of("ViTModel", "entmax15")
    path = save(tmp_path / "own.pth", model)
    contents = torch.load(path, weights_only=True)
    evil = {
        "attn_implementation": "evil/kernels",
        "_attn_implementation": "evil/kernels",
        "auto_map": {"AutoModel": "x"},
    }
    contents["attn_plugins"]["config"] |= evil
    torch.save(contents, path)
    built, _ = build(checkpoint=path)
    torch.testing.assert_close(output(built), output(model), rtol=0, atol=0)


def test_chosen_plugins_of_a_folder(tmp_path: Path) -> None:
    model_of("SiglipVisionModel", "sparsemax").save_pretrained(tmp_path)
    choice, said = chosen_plugins(tmp_path)
    assert (choice.spec, choice.source, said) == ("sparsemax", "recorded", "sparsemax")


def test_a_repository_of_the_hub_is_downloaded_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    model = model_of("ViTModel")
    model.save_pretrained(tmp_path)
    asked = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["revision"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = attn_plugins.from_pretrained("lab/model", revision="v1")
    torch.testing.assert_close(output(loaded), output(model), rtol=0, atol=0)
    assert asked == [("lab/model", "v1")]
