"""Monitor and Anneal as callbacks of Lightning and of transformers, in their own trainers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.tiny_vit import TinyViT
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from attn_plugins.record import decode
from attn_plugins.training import read_run

IMAGES = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_lightning_counts_optimizer_steps_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    lightning = pytest.importorskip("pytorch_lightning", reason="pip install pytorch-lightning")
    from attn_plugins.training.lightning import AnnealCallback, MonitorCallback

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.ModuleDict({"student": TinyViT(), "teacher": TinyViT()})

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            loss: Tensor = self.net["student"](batch[0]).square().mean()
            return loss

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            self.net["student"](torch.randn(1, 3, 32, 32))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.net["student"].parameters(), lr=1e-3)

    def fit(epochs: int, checkpoint: Path | None) -> None:
        torch.manual_seed(0)
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accumulate_grad_batches=2,
            accelerator="cpu",
            callbacks=[
                AnnealCallback("entmax15", models=["net.student", "net.teacher"], steps=4),
                MonitorCallback(tmp_path / "run.jsonl", model="net.student", every=2),
            ],
            logger=lightning.loggers.CSVLogger(tmp_path, version=epochs),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = DataLoader(TensorDataset(IMAGES), batch_size=2)
        trainer.fit(Module(), loader, loader, ckpt_path=checkpoint, weights_only=False)
        trainer.save_checkpoint(tmp_path / "last.ckpt")

    fit(1, None)  # 6 batches, 3 steps
    assert [seen.step for seen in read_run(tmp_path / "run.jsonl")] == [0, 2]
    fit(2, tmp_path / "last.ckpt")
    seen = read_run(tmp_path / "run.jsonl")
    assert [one.step for one in seen] == [0, 2, 4]
    assert {layer.keys for one in seen for layer in one.layers} == {5}, "training and not validation"
    assert [one.means()["alpha"] for one in seen] == pytest.approx([1, 1.25, 1.5])
    weights = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    told = decode(weights["net.teacher.blocks.1.attn.attn_plugins_normalizer._extra_state"])
    assert (int(told["step"]), told["alpha"]) == (6, "1.500000")
    logged = (tmp_path / "lightning_logs" / "version_1" / "metrics.csv").read_text()
    assert "attention/zero_share" in logged


@pytest.mark.slow
def test_transformers_trainer_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it: pip install accelerate")
    from attn_plugins.training.transformers import AnnealCallback, MonitorCallback

    def fit(steps: int, resume: bool) -> None:
        torch.manual_seed(0)
        config = transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=16,
            patch_size=8,
        )
        model = transformers.ViTForImageClassification(config)
        data = [{"pixel_values": image, "labels": 0} for image in IMAGES]
        arguments = transformers.TrainingArguments(
            tmp_path, max_steps=steps, save_steps=3, per_device_train_batch_size=2, use_cpu=True, report_to="none"
        )
        callbacks = [AnnealCallback("entmax15", steps=4), MonitorCallback(tmp_path / "run.jsonl", every=2)]
        transformers.Trainer(model, arguments, train_dataset=data, callbacks=callbacks).train(resume)

    fit(3, False)
    fit(6, True)
    seen = read_run(tmp_path / "run.jsonl")
    assert [one.step for one in seen] == [0, 2, 4] and {len(one.layers) for one in seen} == {2}
    assert [one.means()["alpha"] for one in seen] == pytest.approx([1, 1.25, 1.5])
