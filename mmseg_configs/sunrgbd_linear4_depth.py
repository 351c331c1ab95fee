# SUN RGB-D, by transfer: the NYUv2 probe, tested on SUN RGB-D (DINOv2's column). Test a finished NYUv2 probe with
#   mim test mmseg sunrgbd_linear4_depth.py --checkpoint NYUV2_PROBE.pth --cfg-options model.backbone.checkpoint=…
# or train: on NYUv2, validated on SUN RGB-D.
_base_ = "nyuv2_linear4_depth.py"
meta_keys = ("img_path", "depth_map_path", "ori_shape", "img_shape")
val_dataloader = dict(
    dataset=dict(
        data_root="data/sunrgbd",
        data_prefix=dict(img_path="", depth_map_path=""),
        ann_file="SUNRGBD_val_splits.txt",
        pipeline=[
            dict(type="LoadImageFromFile", _scope_="attn_plugins"),
            dict(type="LoadDepth", scale=1000, rotated=True),
            dict(type="PackSegInputs", meta_keys=meta_keys),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(crop=None)
test_evaluator = val_evaluator
probe = "sunrgbd"  # the column of the table
