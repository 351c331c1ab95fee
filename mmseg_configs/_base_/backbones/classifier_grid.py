# ImageNet linear probe: the [CLS] feature after the final norm → 13 linear classifiers, one per learning rate (paper,
# section 4.1; DINOv2, eval/linear.py).
_base_ = "frozen_vit.py"
model = dict(
    type="ClassifierGrid",
    data_preprocessor=dict(type="ImgDataPreprocessor"),
    backbone=dict(out_indices=[-1], norm=True, cls_token="tuple"),
    num_classes=1000,
    learning_rates=[1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1],
    # DINOv2 also grids over blocks=[1, 4] (with out_indices=[-4, -3, -2, -1]) and avgpool=[False, True].
    blocks=[1],
    avgpool=[False],
)
