# PASCAL VOC 2012, linear segmentation probe.
_base_ = [
    "_base_/backbones/segmentation_probe.py",
    "_base_/datasets/voc2012.py",
    "_base_/schedules/segmentation_40k.py",
]
model = dict(decode_head=dict(num_classes=21))
probe = "voc2012"  # the column of the table
