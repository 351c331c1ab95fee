# Linear segmentation probe: patch features of the last layer after the final norm → batch norm → 1x1 convolution
# (paper, section 4.1; head and slide window: DINOv2's dinov2_vit*_{voc2012,ade20k}_linear_config.py).
_base_ = "frozen_vit.py"
crop_size = (512, 512)
model = dict(
    type="LinearProbe",
    data_preprocessor=dict(type="SegDataPreProcessor", size=crop_size, pad_val=0, seg_pad_val=255),
    # One layer, any layer ([5]), or "four"; cls_token="concat" appends [CLS] to every patch (Figure 2b).
    backbone=dict(out_indices=[-1], norm=True, cls_token="none"),
    decode_head=dict(
        type="BNLinearHead",
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(341, 341)),
)
