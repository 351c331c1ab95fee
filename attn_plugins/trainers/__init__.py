"""Official and other trainers: what the lines inserted into them call.

`checkout` inserts those lines (`attn-plugins apply`), `networks` does their work, `launch` does it for a trainer
without them, and `compat` keeps trainers running on today's torch.
"""

from .compat import keep_old_fsdp_names
from .networks import before_load, patch_networks, spec_from

__all__ = ["before_load", "keep_old_fsdp_names", "patch_networks", "spec_from"]
