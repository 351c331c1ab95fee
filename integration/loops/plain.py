"""Plain PyTorch: `python plain.py OUT STEPS`. With more steps it goes on from its checkpoint."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
import yours

import attn_plugins
from attn_plugins.checkpoints import recorded_spec, save


def train(out: Path, steps: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = yours.model()
    # First the patch: a spec may add parameters, which the optimizer, DDP and torch.compile have to find.
    anneal = attn_plugins.Anneal(model, "entmax15", steps=10)
    monitor = attn_plugins.Monitor(model, out / "attention.jsonl", every=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    last = out / "last.pth"
    if last.exists():
        saved = torch.load(last)
        model.load_state_dict(saved["model"])  # alpha goes on where it was: that is in there
        optimizer.load_state_dict(saved["optimizer"])
        monitor.load_state_dict(saved["monitor"])
    for step in range(anneal.steps, steps):
        images, labels = yours.batch(step)
        loss = F.cross_entropy(model.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        anneal.step()
        monitor.step()
        print(f"step {step} loss {loss.item():.6f} alpha {anneal.alphas[0]:.2f}")
    # Whole or not at all, with the spec beside the records that every state dict of a patched model holds.
    save(last, model, optimizer=optimizer.state_dict(), monitor=monitor.state_dict())
    monitor.close()
    if anneal.finished:
        anneal.finish()  # from here on it is entmax15, and so says the file
        save(out / "model.pth", model)


def load(file: Path) -> torch.nn.Module:
    """Another process, which knows the file alone: the weights with their own attention, or an error."""
    spec, _ = recorded_spec(file)
    model = attn_plugins.patch(yours.model(), spec or "softmax")
    model.load_state_dict(torch.load(file)["model"])
    return model.eval()


if __name__ == "__main__":
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    train(folder, count)
    print(attn_plugins.verify(load(folder / ("model.pth" if count >= 10 else "last.pth")), yours.batch(0)[0]))
