"""Write `last_release.tar.xz`; run with the code of the release whose formats it keeps (see README.md)."""

from __future__ import annotations

import importlib.util
import json
import sys
import tarfile
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from attn_plugins.probes.hooks import ProbeResultHook

import attn_plugins
from attn_plugins.checkpoints import save

HERE = Path(__file__).parent
OUT = Path(tempfile.mkdtemp())
spec = importlib.util.spec_from_file_location("attn_plugins_golden_models", HERE / "models.py")
assert spec is not None and spec.loader is not None
models = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = models
spec.loader.exec_module(models)

outputs = {}
for name, (build, plugins, layers) in models.WHOLE.items():
    torch.manual_seed(0)
    model = models.trained(attn_plugins.patch(build(), plugins, layers))
    outputs[name] = models.output(model).tolist()
    torch.save(model, OUT / f"{name}.model.pt")

model = models.trained(attn_plugins.patch(models.timm(), "entmax_alpha+registers:num=2"))
outputs["state"] = models.output(model).tolist()
torch.save(model.state_dict(), OUT / "state.pt")
save(OUT / "saved-arch.pt", model, arch=models.ARCH, arch_options=models.OPTIONS, epoch=3)
save(OUT / "saved.pt", model)
model = models.trained(attn_plugins.patch(models.timm(), "entmax15", layers=[1]))
outputs["layers"] = models.output(model).tolist()
torch.save({"teacher": {"module.backbone." + k: v for k, v in model.state_dict().items()}}, OUT / "silent.pt")
torch.save(model.state_dict(), OUT / "layers.pt")
(OUT / "outputs.json").write_text(json.dumps(outputs))

backbone = SimpleNamespace(
    identity={
        "arch": models.ARCH,
        "plugins": "entmax15",
        "checkpoint": "run/checkpoint.pth",
        "sha256": "0" * 64,
        "layers": [11],
        "norm": True,
        "cls_token": "none",
    }
)
runner = SimpleNamespace(
    work_dir=str(OUT),
    cfg=type("Config", (dict,), {"train_cfg": SimpleNamespace(max_iters=40)})(probe="voc2012"),
    model=SimpleNamespace(backbone=backbone),
)
for runner.iter, value in ((20, 41.25), (40, 42.5)):
    ProbeResultHook().after_val_epoch(runner, {"mIoU": value})

with tarfile.open(HERE / "last_release.tar.xz", "w:xz", format=tarfile.PAX_FORMAT) as archive:
    for file in sorted(OUT.iterdir()):
        archive.add(file, file.name, filter=lambda member: member.replace(uid=0, gid=0, uname="", gname="", deep=False))
