"""A trainer that knows nothing of plugins: student, averaged teacher, optimizer, checkpoint, resume."""

import argparse
import copy
import os

import torch
from tiny_vit import TinyViT

parser = argparse.ArgumentParser()
parser.add_argument("--out", required=True)
parser.add_argument("--steps", type=int, default=3)
parser.add_argument("--model", default="vit")
args = parser.parse_args()

torch.manual_seed(0)
student = TinyViT() if args.model == "vit" else torch.nn.Linear(3, 3)
teacher = copy.deepcopy(student)
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
path, start = os.path.join(args.out, "checkpoint.pth"), 0
if os.path.exists(path):
    checkpoint = torch.load(path)
    student.load_state_dict(checkpoint["student"])
    teacher.load_state_dict(checkpoint["teacher"])
    start = checkpoint["step"]
for step in range(start, args.steps):
    torch.manual_seed(step)
    images = torch.randn(4, 3, 16, 16) if args.model == "vit" else torch.randn(4, 3)
    loss = (student(images) - 1).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
            mine.lerp_(theirs, 0.1)
    print(f"loss {loss.item():.9f}")
contents = {"student": student.state_dict(), "teacher": teacher.state_dict(), "step": args.steps, "args": args}
torch.save(contents, path)
