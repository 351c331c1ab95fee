# KITTI (Eigen), linear depth probe.
_base_ = [
    "_base_/backbones/depth_probe.py",
    "_base_/datasets/kitti.py",
    "_base_/schedules/depth_38k.py",
]
model = dict(decode_head=dict(max_depth=80.0))  # metres
probe = "kitti"  # the column of the table
