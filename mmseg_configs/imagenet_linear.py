# ImageNet-1K, linear classification: the best of 13 learning rates.
_base_ = [
    "_base_/backbones/classifier_grid.py",
    "_base_/datasets/imagenet.py",
    "_base_/schedules/imagenet_12k.py",
]
probe = "imagenet"  # the column of the table
