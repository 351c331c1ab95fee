"""Write a model in the format of the checkpoint that it was built from."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import require_plain, written
from ..patching.record import METADATA_KEY, spec_of
from .architectures import builders
from .errors import CheckpointError
from .identity import CheckpointInfo, identify_loaded
from .layout import is_record, sections
from .plain import config_beside
from .reading import read
from .told import plugin_keys
from .writing import save

__all__ = ["Keeping", "parent_of"]

PARENT = "parent"
OF_TRANSFORMERS, OF_CONFIG = "transformers folder", "folder with config.json"
FOLDERS = (OF_TRANSFORMERS, OF_CONFIG)


@dataclass(frozen=True)
class Keeping:
    """How a model that was built from a checkpoint will be written; ``of`` finds it before there is any work.

    Attributes:
        form: ``state dict`` (of ``torch.save``, under the names of the checkpoint and in its place there),
            ``safetensors``, ``folder with config.json`` (timm's), ``transformers folder``, or ``attn_plugins``: a file
            of ``save``.
        path: where to.
        checkpoint: what the model was built from.
        told: what ``build`` told of it.
    """

    form: str
    path: Path
    checkpoint: Path
    told: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path, model: nn.Module, checkpoint: Path, told: Mapping[str, Any]) -> Keeping:
        """The format of ``checkpoint`` where a model can be written so, and otherwise a file of ``save``.

        The latter is for what a trainer or torch.distributed wrote with more in it than one backbone, for
        architectures whose names are not the file's, and for a file (``--out FILE.pt``) made of a folder.

        Raises:
            FileExistsError: there is something at ``path``.
            ValueError: its folder is missing, or its suffix is of another format than the checkpoint's.
        """
        if path.exists() or path.is_symlink():
            raise FileExistsError(f"{path} is there already, and nothing is overwritten: choose another name")
        require_plain(path)
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
        form = _form(model, checkpoint)
        if form in FOLDERS and path.suffix:
            form = "attn_plugins"
        if path.suffix == ".safetensors" and form != "safetensors":
            raise ValueError(f"{path}: of {checkpoint} a {form} is written; choose a name without .safetensors")
        if form == "safetensors" and path.suffix != ".safetensors":
            form = "attn_plugins"
        return cls(form, path, checkpoint, told)

    def write(self, model: nn.Module) -> None:
        """Write ``model``, which was patched and trained since, whole or not at all; with its spec and its parent."""
        parent = {"checkpoint": self.checkpoint.name, "sha256": self.told["sha256"], "digest": self.told["digest"]}
        own = {"spec": spec_of(model) or "softmax", PARENT: parent}
        if self.form == "attn_plugins":
            arch, options = _construction(self.told["arch"], self.checkpoint)
            save(self.path, model, arch=arch, arch_options=options, parent=parent)
        elif self.form == OF_TRANSFORMERS:
            with _folder(self.path) as partial:
                saved: Any = model
                saved.save_pretrained(partial)
                _tell(partial / "config.json", own)
        elif self.form == OF_CONFIG:
            with _folder(self.path) as partial:
                shutil.copyfile(self.checkpoint / "config.json", partial / "config.json")
                _tell(partial / "config.json", own)
                _save_safetensors(partial / "model.safetensors", self._tensors(model), own)
        elif self.form == "safetensors":
            with written(self.path) as partial:
                _save_safetensors(partial, self._tensors(model), own)
        else:
            with written(self.path) as partial, partial.open("wb") as file:
                torch.save(self._contents(model, own), file)

    def _tensors(self, model: nn.Module) -> OrderedDict[str, Tensor]:
        """Under the names of the checkpoint, with the heads that it has beside the backbone."""
        contents = read(self.checkpoint)
        info = identify_loaded(contents, self.checkpoint)
        held = sections(contents)[info.section]
        heads = {stored: held[stored] for stored in info.heads}
        places = _places(info)
        named = {info.prefix + _stored(name, places): tensor for name, tensor in model.state_dict().items()}
        return OrderedDict({**heads, **named})

    def _contents(self, model: nn.Module, own: Mapping[str, Any]) -> dict[str, Any]:
        info = identify_loaded(read(self.checkpoint, mmap=True), self.checkpoint)
        tensors = self._tensors(model)
        if info.section:  # beside it there is room for what the file tells of itself
            inner: dict[str, Any] = tensors
            for name in reversed(info.section.split(".")):
                inner = {name: inner}
            return {**inner, METADATA_KEY: dict(own)}
        # Among the tensors there is none: where torch keeps the versions of modules, nobody's loading trips over it.
        metadata: Any = getattr(model.state_dict(), "_metadata", {})
        metadata[""] = {**metadata.get("", {}), METADATA_KEY: {**metadata.get("", {}).get(METADATA_KEY, {}), **own}}
        tensors._metadata = metadata  # type: ignore[attr-defined]
        return tensors


def parent_of(checkpoint: str | os.PathLike[str]) -> Mapping[str, Any] | None:
    """What a checkpoint that was calibrated or adapted says it was made from; None where it says nothing."""
    path = Path(checkpoint)
    beside = config_beside(path).get(METADATA_KEY)
    if isinstance(beside, Mapping) and PARENT in beside:
        return _plain(beside[PARENT], path)
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            held = (file.metadata() or {}).get(METADATA_KEY)
        try:
            told = {} if held is None else json.loads(held)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: what its header tells of {METADATA_KEY} is no JSON: {error}") from error
        return _plain(told.get(PARENT), path) if isinstance(told, Mapping) else None
    contents: Any = read(path, mmap=True)
    place: Any = getattr(contents, "_metadata", {})
    for name in ("", METADATA_KEY):
        place = place.get(name) if isinstance(place, Mapping) else None
    ours = isinstance(contents, Mapping) and METADATA_KEY in contents
    places = [place, contents[METADATA_KEY], contents] if ours else [place]
    found = [place[PARENT] for place in places if isinstance(place, Mapping) and PARENT in place]
    return _plain(found[0], path) if found else None


def _plain(parent: Any, path: Path) -> Mapping[str, Any] | None:
    if parent is not None and not isinstance(parent, Mapping):
        raise CheckpointError(f"{path}: its parent is {type(parent).__name__}: {parent!r:.80}")
    return parent


def _form(model: nn.Module, checkpoint: Path) -> str:
    config = config_beside(checkpoint)
    if checkpoint.is_dir() and "model_type" in config:
        return OF_TRANSFORMERS if hasattr(model, "save_pretrained") else "attn_plugins"
    contents = read(checkpoint, mmap=True)
    info = identify_loaded(contents, checkpoint)
    own = {name for name in model.state_dict() if not is_record(name)}
    theirs = set(info.keys.values())
    fits = theirs <= own and own <= theirs | set(info.heads.values()) | set(plugin_keys(own))
    if METADATA_KEY in contents or not fits or info.others:
        return "attn_plugins"
    if checkpoint.is_dir():
        return OF_CONFIG if "architecture" in config else "attn_plugins"
    if checkpoint.suffix == ".safetensors":
        return "safetensors"
    return "attn_plugins" if checkpoint.suffix == ".json" or checkpoint.name == ".metadata" else "state dict"


def _places(info: CheckpointInfo) -> dict[str, str]:
    """{module or tensor of the model: what it is called in the file, after the prefix}, which differs in chunks."""
    places: dict[str, str] = {}
    for stored, plain in info.keys.items():
        theirs, ours = stored[len(info.prefix) :].split("."), plain.split(".")
        while theirs and ours and theirs[-1] == ours[-1]:
            places[".".join(ours)] = ".".join(theirs)
            theirs.pop()
            ours.pop()
    return places


def _stored(name: str, places: Mapping[str, str]) -> str:
    """What a tensor of the model is called in the file; a plugin's own stands beside its layer's."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        place = places.get(".".join(parts[:length]))
        if place is not None:
            return ".".join([place, *parts[length:]])
    return name


def _construction(arch: str, checkpoint: Path) -> tuple[str | None, dict[str, Any]]:
    """Name and options to record of an architecture whose codebase names it in files, since tensors do not tell it."""
    family, _, name = arch.partition("/")
    builder = builders().get(family)
    if builder is None or builder.told({"architecture": name}) is None:
        return None, {}
    return arch, dict(identify_loaded(read(checkpoint, mmap=True), checkpoint).arch_options)


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` that gets its name when it is complete."""
    partial = path.with_name(f".{path.name[:40]}.{os.getpid()}-{secrets.token_hex(8)}.partial")
    partial.mkdir()
    try:
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _tell(config: Path, own: Mapping[str, Any]) -> None:
    held = json.loads(config.read_text(encoding="utf-8"))
    held[METADATA_KEY] = own
    config.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")


def _save_safetensors(path: Path, tensors: Mapping[str, Tensor], own: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, path, metadata={"format": "pt", METADATA_KEY: json.dumps(own)})
