# SUN RGB-D: split files "IMAGE DEPTH", depth PNGs in 1/1000 m with their bits rotated left by 3, as released.
# Test: 5,050 images, whole, valid pixels. Training is ours: the paper does not give one; crop and augmentation are
# NYUv2's, without its border crop.
data_root = "data/sunrgbd"
meta_keys = ("img_path", "depth_map_path", "ori_shape", "img_shape")

train_pipeline = [
    dict(type="SeedDraw"),
    dict(type="LoadProbeImage"),
    dict(type="LoadDepth", scale=1000, rotated=True),
    dict(type="RandomDepthRotate", prob=0.5, degree=2.5),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomCrop", crop_size=(416, 544)),
    dict(type="ColorAugment", prob=0.5, gamma=(0.9, 1.1), brightness=(0.75, 1.25), color=(0.9, 1.1)),
    dict(type="PackSegInputs", meta_keys=meta_keys),
]
test_pipeline = [
    dict(type="LoadImageFromFile", _scope_="attn_plugins"),  # LoadProbeImage, by the name that mmseg's inferencer wants
    dict(type="LoadDepth", scale=1000, rotated=True),
    dict(type="PackSegInputs", meta_keys=meta_keys),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="ProbeSampler", shuffle=True, group=2),
    dataset=dict(
        type="DepthSplit",
        data_root=data_root,
        data_prefix=dict(img_path="", depth_map_path=""),
        ann_file="SUNRGBD_train_splits.txt",
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="DepthSplit",
        data_root=data_root,
        data_prefix=dict(img_path="", depth_map_path=""),
        ann_file="SUNRGBD_val_splits.txt",
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="DepthErrors", min_depth=0.001, max_depth=10.0, crop=None)
test_evaluator = val_evaluator
