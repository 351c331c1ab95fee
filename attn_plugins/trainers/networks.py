"""What the lines inserted into a trainer call, and what the launcher does for a trainer without them.

``patches/`` holds those lines. They are few because the work is here: patch the networks as they are built, before
anything (DDP, FSDP, an optimizer) takes hold of their parameters, and refuse weights of another spec.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoints import CheckpointError, agree, recorded_spec
from ..mechanisms import as_its_trainer_has_it
from ..mechanisms.registers import decided
from ..patching import PREFIX, patch
from ..patching.record import refuse_others, same_model, spec_of, stamp
from ..record import RECORD
from ..spec import parse, settled
from .annealing import anneal_network
from .compat import read_own_checkpoints
from .proof import tell_answers
from .watching import asked, watch_network

__all__ = ["before_load", "patch_networks", "spec_from"]


def patch_networks(spec: str, *networks: nn.Module) -> None:
    """Patch student and teacher, or any networks that a trainer has just built, alike.

    With ``softmax`` they compute as they are. Where the environment asks for a monitor, the one that an optimizer turns
    out to train is watched. What a mechanism's spec leaves unsaid of its training (``std`` and ``decay`` of
    ``registers``) is the codebase's own, and stands in the record. Either way their state dicts tell the spec from now
    on, and weights of another are refused: that is how a resumed run notices that it was started with another one.

    Raises:
        UnknownPluginError, UnsupportedModelError, ValueError: as ``attn_plugins.patch``.
    """
    read_own_checkpoints()
    asked_for = settled(parse(spec), new=True)
    for network in networks:
        present = spec_of(network)
        wanted = as_its_trainer_has_it(asked_for, network)
        if present is not None and not same_model(present, str(wanted)):
            raise ValueError(
                f"asked for {str(wanted)!r} by the trainer's own option, but {type(network).__name__} has {present!r} "
                "already (from the launcher?): give the spec in one place"
            )
        if str(wanted) == "softmax" and not asked():
            stamp(network, wanted, {})
        elif present is None:
            patch(network, wanted)  # softmax too where it is watched: it computes what it did
            tell_answers(network, str(wanted))
            anneal_network(network)
            watch_network(network)
        refuse_others(network)


def spec_from(config: Any) -> str:
    """``attn_plugins`` of an argparse Namespace or an OmegaConf section; ``softmax`` where it is not set."""
    return getattr(config, "attn_plugins", None) or "softmax"


def before_load(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Called before a trainer loads ``path`` into ``model`` its own way, which forgives what does not match.

    A path that is not a file (a URL, nothing) is left to the trainer.

    Raises:
        CheckpointError: the file cannot be read safely, was trained with another spec than the model is patched
            with, or lacks the parameters that the model's plugins learn.
    """
    read_own_checkpoints()
    if not Path(path).is_file():
        return
    recorded, keys = recorded_spec(path)
    agree(recorded, spec_of(model) or "softmax", str(path))
    learned = [name for name in model.state_dict() if PREFIX in name and not name.endswith(RECORD)]
    held = [decided(key) for key in keys]
    missing = [name for name in learned if not any(key.endswith(decided(name)) for key in held)]
    if missing:
        raise CheckpointError(
            f"{path} lacks what {spec_of(model)!r} learns: {missing}. It was trained without it: evaluate it without."
        )
