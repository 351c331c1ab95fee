"""One file per codebase, whose record answers whatever is asked about it (``base.Codebase``).

Upstream's own forward runs, and the attention calls in it are answered by ``attn_plugins.attention``. A forward
of ours takes its place only where the code is known to be exactly that one (``exact``).

| adapter | reaches |
|---|---|
| ``dinov1`` | DINOv1's ``Attention``, which returns its map |
| ``dinov2`` | DINOv2's ``MemEffAttention``, packed batches included; DINOv2 before June 2025; lightly-train's; MAE's |
| ``transformers`` | what goes through ``AttentionInterface``: ViT, DINOv2, DINOv3, DeiT, BEiT, SigLIP, CLIP, ... |
| ``multihead_attention`` | ``torch.nn.MultiheadAttention``: torchvision, mmcv and mmsegmentation |
| ``sdpa`` | what calls torch's SDPA or xformers: DINOv3, timm, most ViTs that people write today |
| ``softmax`` | what multiplies, takes a softmax over the keys and multiplies: Swin, LeViT, CvT, CroCo, ... |

Attention between channels (XCiT, DaViT) and of one class token (CaiT) has rows of weights like any other and is
patched. Pooling heads, in which learned queries read the features, are patched only by name.
"""

from .base import CODEBASES, Adapter, Codebase, Container, adapter_for, register_adapter, register_codebase
from .dinov1 import DINOV1
from .dinov2 import DINOV2
from .dinov3 import DINOV3
from .generic import GENERIC
from .mae import MAE
from .parts import Builder, Built, Features, Parts, Shape, StateDict
from .registers import inserted
from .timm import TIMM
from .torchvision import TORCHVISION
from .transformers import TRANSFORMERS
from .vit import ViT, find_vits

__all__ = [
    "CODEBASES",
    "Adapter",
    "Builder",
    "Built",
    "Codebase",
    "Container",
    "Features",
    "Parts",
    "Shape",
    "StateDict",
    "ViT",
    "adapter_for",
    "find_vits",
    "inserted",
    "register_adapter",
    "register_codebase",
]

# The most general first: where several know a module, a model or a key, the last one is used.
for _codebase in (GENERIC, TORCHVISION, TRANSFORMERS, DINOV1, TIMM, DINOV2, DINOV3, MAE):
    register_codebase(_codebase)
