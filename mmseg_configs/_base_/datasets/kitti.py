# KITTI, Eigen's split: split files "IMAGE DEPTH FOCAL", depth PNGs in 1/256 m.
# Crops, augmentation and Garg crop: DINOv2's dinov2_vit*_kitti_linear4_config.py.
data_root = "data/kitti"
meta_keys = ("img_path", "depth_map_path", "ori_shape", "img_shape")
folders = dict(img_path="", depth_map_path="data_depth_annotated")
# Improved ground truth: 652 of Eigen's 697 test images. Raw: dict(img_path="", depth_map_path="data_depth_velodyne")
# and replace=[("groundtruth", "velodyne_raw")]. KITTI's archive holds raw maps of the same 652 images alone; the log
# says where those of the other 45 come from (the drives' own velodyne scans) and where to put them.

train_pipeline = [
    dict(type="SeedDraw"),
    dict(type="LoadProbeImage"),
    dict(type="LoadDepth", scale=256),
    dict(type="KBCrop", height=352, width=1216),
    dict(type="RandomDepthRotate", prob=0.5, degree=2.5),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomCrop", crop_size=(352, 704)),
    dict(type="ColorAugment", prob=0.5, gamma=(0.9, 1.1), brightness=(0.9, 1.1), color=(0.9, 1.1)),
    dict(type="PackSegInputs", meta_keys=meta_keys),
]
test_pipeline = [
    dict(type="LoadImageFromFile", _scope_="attn_plugins"),  # LoadProbeImage, by the name that mmseg's inferencer wants
    dict(type="LoadDepth", scale=256),
    dict(type="KBCrop", height=352, width=1216),
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
        data_prefix=folders,
        replace=[],
        ann_file="eigen_train_files_with_gt.txt",
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
        data_prefix=folders,
        replace=[],
        ann_file="eigen_test_files_with_gt.txt",
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="DepthErrors", min_depth=0.001, max_depth=80.0, crop="garg")
test_evaluator = val_evaluator
