"""transformers' Trainer: `python with_trainer.py OUT STEPS`. With more steps it goes on from its checkpoint."""

import sys
from pathlib import Path

import yours
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed
from transformers.trainer_utils import get_last_checkpoint

import attn_plugins
from attn_plugins.training.transformers import AnnealCallback, MonitorCallback

SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}


def train(out: Path, steps: int) -> None:
    set_seed(0)
    last = get_last_checkpoint(str(out))
    if last is None:
        model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=2, **SIZES))
    else:
        # Not left to the Trainer: that of transformers 5.23 looks for ViT's weights under other names than
        # save_pretrained gives them, and goes on with random ones. With or without a patch.
        model = attn_plugins.from_pretrained(last, ViTForImageClassification)
    arguments = TrainingArguments(
        str(out), max_steps=steps, save_steps=4, per_device_train_batch_size=16, learning_rate=1e-3, use_cpu=True,
        lr_scheduler_type="constant", logging_steps=1, report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    # Without a schedule: attn_plugins.patch(model, "entmax15") here, before the Trainer, which makes the optimizer.
    callbacks = [AnnealCallback("entmax15", steps=10), MonitorCallback(out / "attention.jsonl", every=5)]
    trainer = Trainer(model, arguments, train_dataset=yours.Pictures(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=last)
    if callbacks[0].anneal.finished:
        callbacks[0].anneal.finish()
        trainer.save_model(str(out / "final"))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    train(folder, int(sys.argv[2]))
    # Another process would know the folder alone. transformers' own from_pretrained would give softmax.
    saved = folder / "final" if (folder / "final").exists() else get_last_checkpoint(str(folder))
    print(attn_plugins.verify(attn_plugins.from_pretrained(saved, ViTForImageClassification), yours.batch(0)[0]))
