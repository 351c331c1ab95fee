# NYU Depth v2, linear depth probe.
_base_ = [
    "_base_/backbones/depth_probe.py",
    "_base_/datasets/nyuv2.py",
    "_base_/schedules/depth_38k.py",
]
model = dict(decode_head=dict(max_depth=10.0))  # metres
probe = "nyuv2"  # the column of the table
