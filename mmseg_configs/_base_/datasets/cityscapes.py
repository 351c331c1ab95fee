# Cityscapes fine: ROOT/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png, ROOT/gtFine/…/*_gtFine_labelTrainIds.png.
# Base scale (2048, 1024); crop and augmentation as for the other two.
data_root = "data/cityscapes"
scale = (2048, 1024)

train_pipeline = [
    dict(type="SeedDraw"),
    dict(type="LoadProbeImage"),
    dict(type="LoadAnnotations"),
    dict(type="CheckLabels"),
    dict(type="RandomResize", scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", _scope_="attn_plugins"),  # LoadProbeImage, by the name that mmseg's inferencer wants
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="CheckLabels"),
    dict(type="PackSegInputs"),
]
# `mim test … --tta`: DINOv2's multi-scale evaluation; not what the table is of.
tta_pipeline = [
    dict(type="LoadProbeImage"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale=(int(scale[0] * ratio), int(scale[1] * ratio)), keep_ratio=True)
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="CheckLabels")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
tta_model = dict(type="SegTTAModel")
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="ProbeSampler", shuffle=True),
    dataset=dict(
        type="CityscapesDataset",
        data_root=data_root,
        data_prefix=dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CityscapesDataset",
        data_root=data_root,
        data_prefix=dict(img_path="leftImg8bit/val", seg_map_path="gtFine/val"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="ImageIoU", iou_metrics=["mIoU"])  # IoUMetric, which also keeps what each image contributes
test_evaluator = val_evaluator
