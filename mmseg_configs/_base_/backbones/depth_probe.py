# Linear depth probe: four evenly spaced layers without the final norm, each layer's patch tokens with that layer's
# [CLS] appended → 256 bins (paper, section 4.1; DINOv2, hub/depthers.py).
_base_ = "frozen_vit.py"
model = dict(
    type="DepthProbe",
    data_preprocessor=dict(type="SegDataPreProcessor", size_divisor=1, pad_val=0, seg_pad_val=0),
    backbone=dict(out_indices="four", norm=False, cls_token="concat"),
    decode_head=dict(
        type="DepthBinsHead",
        min_depth=0.001,
        n_bins=256,
        upsample=4,
        align_corners=False,
        # DINOv2's dinov2_vit*_{nyu,kitti}_linear4_config.py; the weights of the two, and 2 images per GPU.
        loss_decode=[
            dict(type="SigLoss", loss_weight=1.0, warm_iter=100, images=2),
            dict(type="LogGradientLoss", loss_weight=0.5),
        ],
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole", flip=True),
)
