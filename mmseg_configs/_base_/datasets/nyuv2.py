# NYU Depth v2 as BTS prepares it: split files "IMAGE DEPTH FOCAL", depth PNGs in 1/1000 m.
# Crops, augmentation and Eigen crop: DINOv2's dinov2_vit*_nyu_linear4_config.py.
data_root = "data/nyu"
meta_keys = ("img_path", "depth_map_path", "ori_shape", "img_shape")

train_pipeline = [
    dict(type="SeedDraw"),
    dict(type="LoadProbeImage"),
    dict(type="LoadDepth", scale=1000),
    dict(type="BorderCrop", crop=(45, 472, 43, 608)),
    dict(type="RandomDepthRotate", prob=0.5, degree=2.5),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomCrop", crop_size=(416, 544)),
    dict(type="ColorAugment", prob=0.5, gamma=(0.9, 1.1), brightness=(0.75, 1.25), color=(0.9, 1.1)),
    dict(type="PackSegInputs", meta_keys=meta_keys),
]
test_pipeline = [
    dict(type="LoadImageFromFile", _scope_="attn_plugins"),  # LoadProbeImage, by the name that mmseg's inferencer wants
    dict(type="LoadDepth", scale=1000),
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
        data_prefix=dict(img_path="sync", depth_map_path="sync"),
        ann_file="nyudepthv2_train_files_with_gt.txt",
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
        data_prefix=dict(img_path="official_splits/test", depth_map_path="official_splits/test"),
        ann_file="nyudepthv2_test_files_with_gt.txt",  # 654 images
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="DepthErrors", min_depth=0.001, max_depth=10.0, crop="eigen")
test_evaluator = val_evaluator
