"""Accelerate: `accelerate launch with_accelerate.py OUT STEPS`. With more steps it goes on from its checkpoint."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
import yours
from accelerate import Accelerator

import attn_plugins
from attn_plugins.checkpoints import recorded_spec, save


def train(out: Path, steps: int) -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = yours.model()
    # Before prepare(), which wraps the model in DDP or FSDP and compiles it.
    anneal = attn_plugins.Anneal(model, "entmax15", steps=10)
    monitor = attn_plugins.Monitor(model, out / "attention.jsonl", every=5)
    loader = torch.utils.data.DataLoader(yours.Pictures(), batch_size=16 // accelerator.num_processes)
    wrapped, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loader)
    accelerator.register_for_checkpointing(monitor)
    state = out / "state"
    if state.exists():
        accelerator.load_state(str(state))  # alpha is in the model's
    while anneal.steps < steps:
        for batch in accelerator.skip_first_batches(loader, anneal.steps % len(loader)):
            with accelerator.accumulate(wrapped):
                loss = F.cross_entropy(wrapped.train()(batch["pixel_values"]), batch["labels"])
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:  # an optimizer step, of perhaps several batches
                anneal.step()
                monitor.step()
                accelerator.print(f"step {anneal.steps} loss {loss.item():.6f}")
            if anneal.steps == steps:
                break
    accelerator.save_state(str(state))
    if anneal.finished:
        anneal.finish()
    if accelerator.is_main_process:
        save(out / "model.pth", accelerator.unwrap_model(wrapped))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    train(folder, int(sys.argv[2]))
    # Another process, which knows the file alone.
    fresh = attn_plugins.patch(yours.model(), recorded_spec(folder / "model.pth")[0] or "softmax")
    fresh.load_state_dict(torch.load(folder / "model.pth")["model"])
    print(attn_plugins.verify(fresh.eval(), yours.batch(0)[0]))
