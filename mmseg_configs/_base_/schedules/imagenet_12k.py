# DINOv2, eval/linear.py: 10 epochs of 1,250 iterations; iterations and learning rates also in the paper, section 4.1.
_base_ = "../runtime/probe.py"
total_batch_size = 1024  # 128 per GPU x 8 GPUs
max_iters = 12500
interval = 1250

# One group per classifier: lr_mult is its learning rate, and auto_scale_lr multiplies by total batch / 256.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=1.0, momentum=0.9, weight_decay=0),
    paramwise_cfg=dict(
        custom_keys={
            "lr_1e-05": dict(lr_mult=1e-5),
            "lr_2e-05": dict(lr_mult=2e-5),
            "lr_5e-05": dict(lr_mult=5e-5),
            "lr_1e-04": dict(lr_mult=1e-4),
            "lr_2e-04": dict(lr_mult=2e-4),
            "lr_5e-04": dict(lr_mult=5e-4),
            "lr_1e-03": dict(lr_mult=1e-3),
            "lr_2e-03": dict(lr_mult=2e-3),
            "lr_5e-03": dict(lr_mult=5e-3),
            "lr_1e-02": dict(lr_mult=1e-2),
            "lr_2e-02": dict(lr_mult=2e-2),
            "lr_5e-02": dict(lr_mult=5e-2),
            "lr_1e-01": dict(lr_mult=1e-1),
        }
    ),
)
auto_scale_lr = dict(enable=True, base_batch_size=256)
param_scheduler = dict(type="CosineAnnealingLR", eta_min=0, T_max=max_iters, begin=0, end=max_iters, by_epoch=False)
train_cfg = dict(type="ProbeTrainLoop", total_batch_size=total_batch_size, max_iters=max_iters, val_interval=interval)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    checkpoint=dict(
        type="CheckpointHook",
        by_epoch=False,
        interval=interval,
        max_keep_ckpts=2,
        save_best="top1",
        rule="greater",
    ),
)
