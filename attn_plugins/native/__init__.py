"""The C kernels: compiled for this machine on first use, then kept.

Why C and not ``torch.compile``: these files build once for every shape, where inductor builds again for each, and
inductor does not fuse the products with the threshold search. On two busy cores of an AMD EPYC (torch 2.14.1, batch
16, 6 heads, 197 tokens, dimension 64) the first call took 5 s here and 179 s there, and later calls took 0.57 and
1.75 times as long as torch's softmax attention.
"""

from .build import load, unavailable

__all__ = ["load", "unavailable"]
