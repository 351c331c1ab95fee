"""The models of an analysis: each loaded when its turn comes and let go afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..codebases.features import ViTFeatures
from ..patching.record import spec_of
from .attention import cls_attention

if TYPE_CHECKING:
    from ..checkpoints import Choice
    from .findings import Settings

__all__ = ["Subject", "check_heads", "epoch_of", "from_checkpoints", "loaded", "short_name", "try_out"]


@dataclass(frozen=True)
class Subject:
    """One model.

    Attributes:
        name: how figures call it.
        load: makes it, in eval mode.
        spec: its plugin spec.
        source: ``recorded`` in the file, ``asked for``, or ``assumed`` where neither is: names of assumed ones say so.
        checkpoint: its file, if it has one.
        sha256: of the file.
        epoch: of its training, if known: models of one spec that have one make up a time series.
    """

    name: str
    load: Callable[[], nn.Module] = field(repr=False)
    spec: str = "softmax"
    source: str = "recorded"
    checkpoint: Path | None = None
    sha256: str | None = None
    epoch: int | None = None

    @classmethod
    def of(cls, model: nn.Module, name: str | None = None) -> Subject:
        """A model that is at hand."""
        spec = spec_of(model) or "softmax"
        return cls(name or spec, lambda: model.eval(), spec)


def loaded(subject: Subject, settings: Settings) -> tuple[nn.Module, ViTFeatures]:
    """The model, and what reads its features.

    Raises:
        ValueError: it takes no images of this size.
    """
    model = subject.load().to(settings.device)
    features = ViTFeatures(model)
    if settings.size % features.patch_size:
        raise ValueError(
            f"size={settings.size} is no multiple of the patch size {features.patch_size} of {subject.name}"
        )
    return model, features


@torch.no_grad()
def try_out(subject: Subject, settings: Settings, kinds: Collection[str]) -> None:
    """Load a model, show it one empty image and let it go: what cannot be examined is refused before anything is.

    Raises:
        ValueError: it cannot be built, loaded or patched so, cannot take images of this size, or has no such layer or
            head.
    """
    try:
        model, _ = loaded(subject, settings)
        blank = torch.zeros(1, 3, settings.size, settings.size, device=settings.device)
        overlay = cls_attention(model, blank, settings.layer if "attention" in kinds else -1)
        if "attention" in kinds:
            check_heads(overlay, subject, settings)
    except ValueError as error:
        raise ValueError(f"{subject.name} cannot be examined, and nothing was: {error}") from error


def check_heads(overlay: Tensor, subject: Subject, settings: Settings) -> None:
    """Raise ``ValueError`` where a head is asked for that attention ``[B, heads, h, w]`` does not have."""
    heads = overlay.shape[1]
    if any(not 0 <= head < heads for head in settings.heads or ()):
        raise ValueError(f"heads={settings.heads}: {subject.name} has heads 0 to {heads - 1}")


def from_checkpoints(
    paths: Sequence[str | Path], arch: str = "auto", plugins: str = "auto", repo: str | None = None
) -> list[Subject]:
    """Subjects from checkpoint files; what they are is read from the files (``attn_plugins.checkpoints``).

    Args:
        paths: the files, in the order of the figures; ``FILE=SPEC`` shows one under another spec than it records, so
            that a checkpoint can stand beside itself.
        arch: as ``FrozenViT`` takes it, e.g. "timm/vit_small_patch16_224"; "auto" asks the file.
        plugins: a spec, "auto" for the file's own.
        repo: checkout of the official code.

    Raises:
        CheckpointError: a file cannot be read, contradicts ``plugins``, or holds parameters of plugins and no spec.
        ValueError: what follows a file's ``=`` is no spec.
    """
    from ..checkpoints import build, reference
    from ..checkpoints.digest import sha256_of

    def loader(path: Path, choice: Choice, own: str | None) -> Callable[[], nn.Module]:
        # What was assumed has been warned of once.
        wanted = own or (choice.spec if choice.source == "assumed" else plugins)
        return lambda: build(arch, path, wanted, repo, other_spec=own is not None)[0]

    references = [reference(path) for path in paths]
    described = [_described(path, plugins, own) for path, own in references]
    labels = [label for _, label in described]
    epochs = [epoch_of(path) for path, _ in references]
    subjects = []
    for (path, own), (choice, label), epoch in zip(references, described, epochs, strict=True):
        twins = [other for other, same in zip(epochs, labels, strict=True) if same == label]
        if len(twins) == 1:
            name = label
        elif epoch is not None and twins.count(epoch) == 1:
            name = f"{label}, epoch {epoch}"
        else:
            name = f"{label}, {short_name(path)}"
        load = loader(path, choice, own)
        subjects.append(Subject(name, load, choice.spec, choice.source, path, sha256_of(path), epoch))
    return subjects


def _described(path: Path, plugins: str, own: str | None) -> tuple[Choice, str]:
    """The plugins that a file is shown under, and how figures say it."""
    from ..checkpoints import chosen_plugins

    choice, recorded = chosen_plugins(path, own or plugins, other_spec=own is not None)
    if choice.source == "assumed":
        return choice, f"{choice.spec} (assumed)"
    if recorded not in (None, choice.spec):
        return choice, f"{choice.spec} (trained with {recorded})"
    return choice, choice.spec


def short_name(path: Path) -> str:
    """A file's folder and name: most trainers call all their files alike, in a folder a run.

    What cannot be printed (bytes that are no UTF-8, control characters) is shown as an escape.
    """
    name = "/".join(path.absolute().with_suffix("").parts[-2:])
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def epoch_of(path: Path) -> int | None:
    """The epoch in a file's name (``checkpoint0040.pth``, ``epoch_40.pth``, ``epoch=40-step=100.ckpt``, ``ep40.pth``).

    Other numbers, as in ``entmax15.pth``, ``vitb14_pretrain.pth`` or ``iter_4000.pth``, are none.
    """
    number = re.search(r"(?:^checkpoint|(?<![a-z])ep(?:och)?[-_=]?)(\d+)(?!\d)", path.stem)
    return int(number[1]) if number else None
