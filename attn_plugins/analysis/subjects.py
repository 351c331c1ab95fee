"""The models of an analysis: each loaded when its turn comes and let go afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ..patching.record import spec_of

__all__ = ["Subject", "epoch_of", "from_checkpoints", "short_name"]


@dataclass(frozen=True)
class Subject:
    """One model.

    Attributes:
        name: how figures call it.
        load: makes it, in eval mode.
        spec: its plugin spec.
        checkpoint: its file, if it has one.
        sha256: of the file.
        epoch: of its training, if known: models of one spec that have one make up a time series.
    """

    name: str
    load: Callable[[], nn.Module] = field(repr=False)
    spec: str = "softmax"
    checkpoint: Path | None = None
    sha256: str | None = None
    epoch: int | None = None

    @classmethod
    def of(cls, model: nn.Module, name: str | None = None) -> Subject:
        """A model that is at hand."""
        spec = spec_of(model) or "softmax"
        return cls(name or spec, lambda: model.eval(), spec)


def from_checkpoints(
    paths: Sequence[Path], arch: str = "auto", plugins: str = "auto", repo: str | None = None
) -> list[Subject]:
    """Subjects from checkpoint files; what they are is read from the files (:mod:`attn_plugins.checkpoints`).

    Args:
        paths: the files, in the order of the figures.
        arch: as ``FrozenViT`` takes it, e.g. "timm/vit_small_patch16_224"; "auto" asks the file.
        plugins: a spec, "auto" for the file's own.
        repo: checkout of the official code.

    Raises:
        CheckpointError: a file cannot be read or contradicts ``plugins``.
    """
    from ..backbones.architectures import load_backbone, sha256_of
    from ..checkpoints import identify

    def loader(path: Path) -> Callable[[], nn.Module]:
        return lambda: load_backbone(arch, path, plugins, repo)[0]

    specs = [(identify(path).spec or "softmax") if plugins == "auto" else plugins for path in paths]
    epochs = [epoch_of(path) for path in paths]
    subjects = []
    for path, spec, epoch in zip(paths, specs, epochs, strict=True):
        twins = [other for other, same in zip(epochs, specs, strict=True) if same == spec]
        if len(twins) == 1:
            name = spec
        elif epoch is not None and twins.count(epoch) == 1:
            name = f"{spec}, epoch {epoch}"
        else:
            name = f"{spec}, {short_name(path)}"
        subjects.append(Subject(name, loader(path), spec, path, sha256_of(path), epoch))
    return subjects


def short_name(path: Path) -> str:
    """A file's folder and name: most trainers call all their files alike, in a folder a run."""
    return "/".join(path.absolute().with_suffix("").parts[-2:])


def epoch_of(path: Path) -> int | None:
    """The epoch in a file's name (``checkpoint0040.pth``, ``epoch_40.pth``, ``epoch=40-step=100.ckpt``, ``ep40.pth``).

    Other numbers, as in ``entmax15.pth``, ``vitb14_pretrain.pth`` or ``iter_4000.pth``, are none.
    """
    number = re.search(r"(?:^checkpoint|(?<![a-z])ep(?:och)?[-_=]?)(\d+)(?!\d)", path.stem)
    return int(number[1]) if number else None
