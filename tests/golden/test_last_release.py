"""Files that the last release wrote are read, and compute what they computed (README.md says how they were made)."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import attn_plugins
from attn_plugins.checkpoints import identify, recorded_spec
from attn_plugins.cli import main

HERE = Path(__file__).parent


def _models() -> ModuleType:
    # Under the name that the files hold, however pytest imports tests.
    spec = importlib.util.spec_from_file_location("attn_plugins_golden_models", HERE / "models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


models = _models()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("last_release")
    with tarfile.open(HERE / "last_release.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def outputs(files: Path) -> dict[str, Any]:
    out: dict[str, Any] = json.loads((files / "outputs.json").read_text())
    return out


@pytest.mark.parametrize("name", models.WHOLE)
def test_a_pickled_model_computes_what_it_did(name: str, files: Path, outputs: dict[str, Any]) -> None:
    if name == "dinov1":
        sys.path.insert(0, os.environ.get("DINO_ROOT") or pytest.skip("DINO_ROOT names no checkout of DINOv1"))
    if name == "dinov2":
        pytest.importorskip("lightly_train")
    # Whole pickles are what is tested; these are this repository's own.
    model = torch.load(files / f"{name}.model.pt", weights_only=False)
    torch.testing.assert_close(models.output(model), torch.tensor(outputs[name]), rtol=1e-4, atol=1e-5)
    _, spec, layers = models.WHOLE[name]
    description = attn_plugins.describe(model)
    patched = [line for line in description if line.spec is not None]
    assert len(patched) == (models.DEPTH if layers is None else len(layers))
    parsed = attn_plugins.parse(spec)
    assert {line.spec for line in patched} == {str(parsed.normalizer)}
    assert description.mechanisms == parsed.mechanisms
    attn_plugins.unpatch(model)
    assert not any("attn_plugins" in key for key in model.state_dict())


@pytest.mark.parametrize("name", ["timm-alpha-registers", "encoder", "hf_vit"])
def test_a_pickled_model_is_pickled_again(name: str, files: Path, outputs: dict[str, Any], tmp_path: Path) -> None:
    # Whole pickles, of this repository, again.
    torch.save(torch.load(files / f"{name}.model.pt", weights_only=False), tmp_path / "again.pt")
    model = torch.load(tmp_path / "again.pt", weights_only=False)
    torch.testing.assert_close(models.output(model), torch.tensor(outputs[name]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["state.pt", "saved.pt", "saved-arch.pt"])
def test_a_state_dict_tells_its_spec_and_loads(name: str, files: Path, outputs: dict[str, Any]) -> None:
    spec = "entmax_alpha+registers:num=2"
    assert identify(files / name).spec == recorded_spec(files / name)[0] == spec
    contents = torch.load(files / name, weights_only=True)
    model = attn_plugins.patch(models.timm(), spec).eval()
    model.load_state_dict(contents["model"] if name != "state.pt" else contents)
    torch.testing.assert_close(models.output(model), torch.tensor(outputs["state"]), rtol=1e-4, atol=1e-5)


def test_a_state_dict_of_some_layers_tells_its_spec_and_loads(files: Path, outputs: dict[str, Any]) -> None:
    assert identify(files / "layers.pt").spec == "entmax15"
    model = attn_plugins.patch(models.timm(), "entmax15", layers=[1]).eval()
    model.load_state_dict(torch.load(files / "layers.pt", weights_only=True))
    torch.testing.assert_close(models.output(model), torch.tensor(outputs["layers"]), rtol=1e-4, atol=1e-5)


def test_a_file_that_says_nothing_has_no_spec(files: Path) -> None:
    assert identify(files / "silent.pt").spec is None


def test_a_result_stands_in_the_table(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mmseg", reason="attn-plugins table of the probes needs mmseg")
    assert main(["table", str(files)]) == 0
    assert "42.50" in capsys.readouterr().out
