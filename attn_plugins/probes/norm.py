"""Batch norm over a batch that is spread over processes, on any device."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["GlobalBatchNorm"]


class GlobalBatchNorm(nn.BatchNorm2d):
    """`SyncBatchNorm` for inputs that need no gradient, which frozen features do not.

    Without a gradient through the statistics, synchronising is one all-reduce; it runs on CPUs (gloo) too, where
    torch's `SyncBatchNorm` does not. One process: plain batch norm. State dict keys are batch norm's.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input [B, C, H, W]`.

        Raises:
            ValueError: `input` needs a gradient while the statistics are synchronised.
        """
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        if input.requires_grad:
            raise ValueError(
                "GlobalBatchNorm synchronises statistics without their gradient: its input has to be frozen"
            )
        mean, var = self._global_statistics(input)
        return nn.functional.batch_norm(input, mean, var, self.weight, self.bias, training=False, eps=self.eps)

    @torch.no_grad()
    def _global_statistics(self, input: Tensor) -> tuple[Tensor, Tensor]:
        count = torch.tensor([input.numel() / input.shape[1]], device=input.device, dtype=torch.float64)
        total = input.sum((0, 2, 3), dtype=torch.float64)
        moments = torch.cat([total, count])
        dist.all_reduce(moments)
        count = moments[-1]
        mean = moments[:-1] / count
        # Two passes, as the one-pass E[x²] - E[x]² cancels where a channel's mean is large.
        squares = (input - mean.to(input.dtype)[:, None, None]).square().sum((0, 2, 3), dtype=torch.float64)
        dist.all_reduce(squares)
        mean, var = mean.to(input.dtype), (squares / count).to(input.dtype)
        unbiased = (squares / (count - 1)).to(input.dtype)
        self.get_buffer("num_batches_tracked").add_(1)
        self.get_buffer("running_mean").lerp_(mean, self.momentum or 0.0)
        self.get_buffer("running_var").lerp_(unbiased, self.momentum or 0.0)
        return mean, var
