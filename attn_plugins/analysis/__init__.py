"""What a model's features and attention look like: PiB, PCA pictures, attention density, token norms, layers.

The functions need numpy and Pillow; figures and the report need matplotlib (``pip install 'attn_plugins[analysis]'``).
"""
