# ADE20K, linear segmentation probe.
_base_ = [
    "_base_/backbones/segmentation_probe.py",
    "_base_/datasets/ade20k.py",
    "_base_/schedules/segmentation_40k.py",
]
model = dict(decode_head=dict(num_classes=150))
probe = "ade20k"  # the column of the table
