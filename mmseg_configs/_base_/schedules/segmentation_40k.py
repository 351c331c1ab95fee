# DINOv2's published segmentation configs (dinov2_vit*_{voc2012,ade20k}_linear_config.py); iterations and learning
# rate also in the paper, section 4.1.
_base_ = "../runtime/probe.py"
total_batch_size = 16  # 2 x 8 GPUs
max_iters = 40000
interval = 4000  # ours: DINOv2 validates at the end, the paper's Table 1 takes the best during training

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4),
)
# mmcv 1.x multiplies the two over the whole run, so poly begins at 0 here, not where warm-up ends. mmengine divides by
# end - begin - 1 where mmcv 1.x divides by the number of iterations, hence the + 1.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1500 + 1, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0, begin=0, end=max_iters + 1, by_epoch=False),
]
train_cfg = dict(type="ProbeTrainLoop", total_batch_size=total_batch_size, max_iters=max_iters, val_interval=interval)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    class_count=dict(type="ClassCountHook"),
    checkpoint=dict(
        type="CheckpointHook",
        by_epoch=False,
        interval=interval,
        max_keep_ckpts=2,
        save_best="mIoU",
        rule="greater",
    ),
)
