"""Official weights by their names, from where the official hubconf has them."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["OFFICIAL", "download"]

_BASE = "https://dl.fbaipublicfiles.com"
_DINOV1 = {"vits16": "deitsmall16", "vits8": "deitsmall8", "vitb16": "vitbase16", "vitb8": "vitbase8"}
OFFICIAL = {
    **{f"dino_{name}": f"{_BASE}/dino/dino_{file}_pretrain/dino_{file}_pretrain.pth" for name, file in _DINOV1.items()},
    **{
        f"dinov2_{size}14{hub}": f"{_BASE}/dinov2/dinov2_{size}14/dinov2_{size}14{file}_pretrain.pth"
        for size in ("vits", "vitb", "vitl", "vitg")
        for hub, file in (("", ""), ("_reg", "_reg4"))
    },
}
"""Name to address: DINO's ``hubconf.py`` and DINOv2's ``dinov2/hub/backbones.py``."""


def download(name: str) -> Path:
    """The official file, from torch's hub cache (``TORCH_HOME``) if it is there; whole or not at all.

    Raises:
        ValueError: there is no such name, or the address cannot be reached.
    """
    if name not in OFFICIAL:
        raise ValueError(f"--weights {name}: the official weights are {', '.join(OFFICIAL)}; else give --checkpoint")
    address = OFFICIAL[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / address.rsplit("/", 1)[1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(path))
        except OSError as error:
            raise ValueError(
                f"--weights {name}: {address} cannot be reached ({error}); put that file at {path}, or give its place "
                "by --checkpoint"
            ) from error
    return path
