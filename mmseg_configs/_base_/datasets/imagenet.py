# ImageNet-1K: ROOT/train/WNID/*.JPEG; ROOT/val/WNID/*.JPEG, or ROOT/val/*.JPEG with ROOT/meta/val.txt.
# Crops: DINOv2, data/transforms.py. Its loader (PIL) does not turn images as EXIF says, so exif=False here and nowhere
# else; boxes lie over the images as stored.
data_root = "data/imagenet"

train_pipeline = [
    dict(type="SeedDraw"),
    dict(type="LoadProbeImage", exif=False),
    dict(type="RandomResizedCrop", size=224),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackImageLabel"),
]
test_pipeline = [
    dict(type="LoadProbeImage", exif=False),
    dict(type="ResizeCenterCrop", resize=256, crop=224),
    dict(type="PackImageLabel"),
]
train_dataloader = dict(
    batch_size=128,  # per GPU in DINOv2; the most that one process takes at once here, the total is the schedule's
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="ProbeSampler", shuffle=True),
    dataset=dict(
        type="ImageNetFolder",
        data_root=data_root,
        data_prefix=dict(img_path="train"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ImageNetFolder",
        data_root=data_root,
        data_prefix=dict(img_path="val"),
        ann_file="meta/val.txt",
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="GridTop1")
test_evaluator = val_evaluator
