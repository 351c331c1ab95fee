"""peft's LoRA on a patched backbone: `python with_peft.py OUT STEPS`."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
import yours
from peft import LoraConfig, PeftModel, get_peft_model

import attn_plugins
from attn_plugins.checkpoints import recorded_spec, save

SPEC = "entmax15:scale=learnable"


def patched(file: Path) -> torch.nn.Module:
    """A model with the spec and the weights of a file."""
    model = attn_plugins.patch(yours.model(), recorded_spec(file)[0] or "softmax")
    model.load_state_dict(torch.load(file)["model"])
    return model


def train(out: Path, steps: int) -> None:
    torch.manual_seed(0)
    # First the patch, and its file: an adapter's file holds adapters alone, and no record of the spec.
    save(out / "base.pth", attn_plugins.patch(yours.model(), SPEC))
    # What a spec learns is frozen like the rest, unless it is named: here the normalizers, with their scales.
    lora = LoraConfig(r=4, target_modules=["qkv", "proj"], modules_to_save=["head", "attn_plugins_normalizer"])
    model = get_peft_model(patched(out / "base.pth"), lora)
    monitor = attn_plugins.Monitor(model, out / "attention.jsonl", every=5)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        images, labels = yours.batch(step)
        loss = F.cross_entropy(model.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step()
        print(f"step {step} loss {loss.item():.6f}")
    model.save_pretrained(out / "adapter")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    train(folder, int(sys.argv[2]))
    tuned = PeftModel.from_pretrained(patched(folder / "base.pth"), folder / "adapter")
    print(attn_plugins.verify(tuned.eval(), yours.batch(0)[0]))
    save(folder / "merged.pth", tuned.merge_and_unload())  # one file, which tells its spec as any other does
    print(recorded_spec(folder / "merged.pth")[0])
