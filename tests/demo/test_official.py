"""Official weights by name: the addresses of the official code, and a download that is whole or not there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.official_trainers import checkout

from attn_plugins.demo import official


class Asked(Exception):
    """The address that upstream's code asked for."""


def asking(url: str, **options: Any) -> None:
    raise Asked(url)


@pytest.mark.parametrize(
    ("root", "module", "vits", "prefix"),
    [
        ("dino", "hubconf", "vision_transformer", "dino_"),
        ("dinov2", "dinov2.hub.backbones", "dinov2.models.vision_transformer", "dinov2_"),
    ],
)
def test_addresses_are_those_that_upstream_asks_for(
    root: str, module: str, vits: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(checkout(root)))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("hubconf", "utils", "vision_transformer")]:
        monkeypatch.delitem(sys.modules, name)
    hub = importlib.import_module(module)
    models = importlib.import_module(vits)
    for size in ("small", "base", "large", "giant2"):  # which would take memory, and are not asked for
        monkeypatch.setitem(vars(models), f"vit_{size}", lambda **options: torch.nn.Identity())
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", asking)
    names = [name for name in official.OFFICIAL if name.startswith(prefix)]
    assert names
    for name in names:
        with pytest.raises(Asked) as asked:
            getattr(hub, name)()
        assert str(asked.value) == official.OFFICIAL[name]


def test_a_file_is_fetched_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "there" / "tiny_pretrain.pth"
    source.parent.mkdir()
    source.write_bytes(b"weights")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setitem(official.OFFICIAL, "tiny", source.as_uri())
    path = official.download("tiny")
    assert path == tmp_path / "hub" / "checkpoints" / "tiny_pretrain.pth" and path.read_bytes() == b"weights"
    source.unlink()
    assert official.download("tiny") == path


def test_where_there_is_no_network_the_address_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    address = (tmp_path / "nothing.pth").as_uri()
    monkeypatch.setitem(official.OFFICIAL, "tiny", address)
    with pytest.raises(ValueError, match=r"cannot be reached.*put that file at .*nothing\.pth") as raised:
        official.download("tiny")
    assert address in str(raised.value)
    assert not (tmp_path / "checkpoints" / "nothing.pth").exists()
    with pytest.raises(ValueError, match=r"the official weights are dino_vits16, .*dinov2_vitg14_reg"):
        official.download("dinov2_vits15")
