"""Run an unedited trainer with every Vision Transformer that it builds patched as it is built.

python -m attn_plugins.launch --attn-plugins entmax15 -- TRAINER.py --its --own --flags
torchrun --nproc_per_node 8 -m attn_plugins.launch --attn-plugins entmax15 -- TRAINER.py ...
python -m attn_plugins.launch --attn-plugins entmax15 -- -m package.train ...
"""

from .cli import main
from .construction import patch_as_built

__all__ = ["main", "patch_as_built"]
