"""The C kernels: compiled for this machine on first use, then kept.

Why C and not ``torch.compile``: the four files build in about a second, for every shape, where inductor took
about 30 s for one shape; and inductor cannot fuse the products with the threshold search, which is what makes
``attention/cpu.py`` faster than unfused products. Measured on 2 cores of an AMD EPYC, torch 2.14.1.
"""

from .build import load, unavailable

__all__ = ["load", "unavailable"]
