# SUN RGB-D, linear depth probe trained on SUN RGB-D itself. The table's column is the transfer, next door.
_base_ = [
    "_base_/backbones/depth_probe.py",
    "_base_/datasets/sunrgbd.py",
    "_base_/schedules/depth_38k.py",
]
model = dict(decode_head=dict(max_depth=10.0))  # metres
probe = "sunrgbd_train"  # the column of the table
