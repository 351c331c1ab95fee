"""What trainers are told, once however many processes there are."""

import os
import sys

__all__ = ["say"]


def say(message: str) -> None:
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        print(f"attn_plugins: {message}", file=sys.stderr, flush=True)
