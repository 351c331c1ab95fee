"""Writers of the built-in scenes in the layouts of real data sets, by the name that the probes use.

Each is `writer(root, num_train, num_val, seed, size, *, progress=None) -> data root`. What is written lies below
`root` as the official archives unpack; the path returned is the data root that a probe's config takes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attn_plugins.data.layouts.common import printed_progress
from attn_plugins.data.layouts.voc import write_voc

__all__ = ["LAYOUTS", "printed_progress"]

LAYOUTS: dict[str, Callable[..., Path]] = {
    "voc2012": write_voc,
}
