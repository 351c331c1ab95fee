"""Real steps of official DINOv2's SSLMetaArch: argv is the config, the number of steps, then options.

Everything between the images and the printed losses is upstream's: collation with masks, local and global crops packed
in one nested batch, FSDP, backward, gradient clipping, AdamW, the averaged teacher.
"""

import random
import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from dinov2 import distributed
from dinov2.configs import dinov2_default_config
from dinov2.data import MaskingGenerator, collate_data_and_cast
from dinov2.train.ssl_meta_arch import SSLMetaArch
from omegaconf import OmegaConf

config, steps, *options = sys.argv[1:]
cfg = OmegaConf.merge(dinov2_default_config, OmegaConf.load(config), OmegaConf.from_cli(options))
distributed.enable(overwrite=True)
random.seed(0)
np.random.seed(0)
torch.manual_seed(0)
model = SSLMetaArch(cfg).to(torch.device("cuda"))
model.prepare_for_distributed_training()
model.train()
optimizer = torch.optim.AdamW(model.get_params_groups(), lr=1e-3)

crops, patch = cfg.crops, cfg.student.patch_size
side = crops.global_crops_size // patch
collate = partial(
    collate_data_and_cast,
    mask_ratio_tuple=cfg.ibot.mask_ratio_min_max,
    mask_probability=cfg.ibot.mask_sample_probability,
    dtype=torch.half,
    n_tokens=side**2,
    mask_generator=MaskingGenerator(input_size=(side, side), max_num_patches=side**2 // 2),
)


def sample() -> Any:
    views = [torch.randn(3, crops.global_crops_size, crops.global_crops_size) for _ in range(2)]
    local = [torch.randn(3, crops.local_crops_size, crops.local_crops_size) for _ in range(crops.local_crops_number)]
    return {"global_crops": views, "local_crops": local}, ()


for _ in range(int(steps)):
    before = [parameter.detach().clone() for parameter in model.teacher.parameters()]
    optimizer.zero_grad(set_to_none=True)
    losses = model.forward_backward(collate([sample() for _ in range(4)]), teacher_temp=0.07)
    for network in model.student.values():
        network.clip_grad_norm_(3.0)
    optimizer.step()
    model.update_teacher(0.9)
    moved = sum(not old.equal(new) for old, new in zip(before, model.teacher.parameters(), strict=True))
    print(f"total_loss: {sum(loss.item() for loss in losses.values()):.9f} teacher_moved: {moved}/{len(before)}")
