"""Lightning: `python with_lightning.py OUT STEPS`. With more steps it goes on from its checkpoint."""

import sys
from pathlib import Path

import pytorch_lightning as lightning  # or: from lightning import pytorch as lightning
import torch
import torch.nn.functional as F
import yours
from torch import Tensor

import attn_plugins
from attn_plugins.training.lightning import AnnealCallback, MonitorCallback


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = yours.model()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch["pixel_values"]), batch["labels"])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), lr=1e-3)


def train(out: Path, steps: int) -> None:
    lightning.seed_everything(0)
    # Without a schedule: attn_plugins.patch(self.net, "entmax15") at the end of __init__.
    anneal = AnnealCallback("entmax15", models=["net"], steps=10)
    monitor = MonitorCallback(out / "attention.jsonl", model="net", every=5)
    keep = lightning.callbacks.ModelCheckpoint(out, save_last=True, every_n_train_steps=2)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_steps=steps, callbacks=[anneal, monitor, keep], **options)
    loader = torch.utils.data.DataLoader(yours.Pictures(), batch_size=16)
    last = out / "last.ckpt"
    trainer.fit(Module(), loader, ckpt_path=last if last.exists() else None, weights_only=True)


def load(file: Path) -> Module:
    """Another process, which knows the file alone."""
    spec, _ = attn_plugins.checkpoints.recorded_spec(file)
    module = Module()
    attn_plugins.patch(module.net, spec or "softmax")
    module.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
    return module.eval()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    train(folder, int(sys.argv[2]))
    print(attn_plugins.verify(load(folder / "last.ckpt").net, yours.batch(0)[0]))
