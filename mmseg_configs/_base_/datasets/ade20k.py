# ADE20K: ROOT/{images,annotations}/{training,validation}; masks 0 = void, 1..150 = class (reduce_zero_label).
# Sizes, crop and augmentation: DINOv2's dinov2_vit*_ade20k_linear_config.py.
data_root = "data/ADEChallengeData2016"
scale = (2048, 512)

train_pipeline = [
    dict(type="SeedDraw"),
    dict(type="LoadProbeImage"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
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
    dict(type="LoadAnnotations", reduce_zero_label=True),
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
            [dict(type="LoadAnnotations", reduce_zero_label=True)],
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
        type="ADE20KDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ADE20KDataset",
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="ImageIoU", iou_metrics=["mIoU"])  # IoUMetric, which also keeps what each image contributes
test_evaluator = val_evaluator
