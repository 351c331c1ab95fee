# Cityscapes, linear segmentation probe.
_base_ = [
    "_base_/backbones/segmentation_probe.py",
    "_base_/datasets/cityscapes.py",
    "_base_/schedules/segmentation_40k.py",
]
model = dict(decode_head=dict(num_classes=19))
probe = "cityscapes"  # the column of the table
