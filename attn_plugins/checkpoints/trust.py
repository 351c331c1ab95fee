"""What a file may choose of how its model is built: a registered name and plain sizes, nothing that runs or fetches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from .architectures import builders
from .errors import CheckpointError

__all__ = ["SIZES", "trusted_arch", "trusted_options"]

SIZES = frozenset(
    {"img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_classes"}
    | {"qkv_bias", "qk_norm", "pre_norm", "final_norm", "fc_norm", "init_values", "dynamic_img_size"}
    | {"class_token", "no_embed_class", "reg_tokens", "num_register_tokens"}
    | {"drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"}
    | {"interpolate_antialias", "interpolate_offset"}
)
"""Arguments of constructors that a file may give: numbers that say how large a model is."""

_WORDS = {"global_pool": ("", "token", "avg", "avgmax", "max")}
_LARGEST = 1e5


def trusted_arch(arch: str, where: str) -> str:
    """``arch`` as a file tells it, if it names an architecture of timm or of the official code.

    Raises:
        CheckpointError: it is anything else, which only the user may ask for.
    """
    family, _, name = arch.partition("/")
    builder = builders().get(family)
    if builder is None or not builder.may_be_told(name):
        raise CheckpointError(
            f"{where} tells arch={arch!r}: from a file only timm/NAME (of timm.list_models()) and names that a "
            f"codebase has ({', '.join(f'{family}/vit_NAME' for family in builders())}) are taken. If you trust it, "
            "give it yourself: arch=... (--arch)"
        )
    return arch


def trusted_options(options: Mapping[str, Any], where: str, *, arch_given: bool = False) -> dict[str, Any]:
    """Arguments of a constructor as a file tells them, if they are sizes.

    Args:
        options: the arguments.
        where: the file, for messages.
        arch_given: whether the user has given the architecture: what else the file tells is then left out, with a
            warning, and may be given as well.

    Raises:
        CheckpointError: one is no size, which only the user may ask for.
    """
    others = {name: value for name, value in options.items() if not _is_size(name, value)}
    for name, value in others.items():
        told = f"{where} tells the argument {name}={value!r:.80}: from a file only sizes are taken (numbers for "
        told += f"{', '.join(sorted(SIZES))}). If you trust it, give "
        if not arch_given:
            raise CheckpointError(f"{told}arch=... (--arch) and its arguments yourself")
        warnings.warn(f"{told}it yourself; it is left out", stacklevel=2)
    # Features are read, no classes: how many there were does not matter.
    kept = {name: value for name, value in options.items() if name not in others and name != "num_classes"}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}


def _is_size(name: str, value: Any) -> bool:
    if isinstance(value, str):
        return value in _WORDS.get(name, ())
    return name in SIZES and _plain_size(value)


def _plain_size(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) == 2 and all(_plain_size(item) and not isinstance(item, list | tuple) for item in value)
    if value is None or isinstance(value, bool):
        return True
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= _LARGEST
