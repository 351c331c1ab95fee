# DINOv2's published depth configs (dinov2_vit*_{nyu,kitti}_linear4_config.py); iterations and learning rate also in
# the paper, section 4.1.
_base_ = "../runtime/probe.py"
total_batch_size = 16  # 2 x 8 GPUs
max_iters = 38400
interval = 4800  # ours: the paper's Table 1 takes the best during training

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01),
    clip_grad=dict(max_norm=35, norm_type=2),
)
# mmcv 1.x multiplies the two over the whole run, so the cosine begins at 0 here, not where warm-up ends. mmengine
# divides warm-up by end - begin - 1, hence the + 1; the cosine by T_max.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=12800 + 1, by_epoch=False),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-8, T_max=max_iters, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(type="ProbeTrainLoop", total_batch_size=total_batch_size, max_iters=max_iters, val_interval=interval)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    checkpoint=dict(
        type="CheckpointHook",
        by_epoch=False,
        interval=interval,
        max_keep_ckpts=2,
        save_best="rmse",
        rule="less",
    ),
)
