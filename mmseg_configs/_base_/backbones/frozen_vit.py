# The frozen backbone. Give it with --cfg-options model.backbone.checkpoint=FILE; architecture, patch size and plugin
# spec come from the file.
model = dict(
    # ImageNet mean and standard deviation (DINOv2, data/transforms.py), in 0-255.
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        type="FrozenViT",
        checkpoint=None,
        arch="auto",  # or timm/NAME, transformers/FOLDER, dinov1/vit_small, dinov2/…, dinov3/…
        plugins="auto",  # the spec that the checkpoint was trained with
        repo=None,  # checkout of the official code; else DINO_ROOT, DINOV2_ROOT, DINOV3_ROOT, else timm
        autocast=None,  # bf16 or fp16 for the backbone's forward
    ),
)
