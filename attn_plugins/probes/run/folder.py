"""The config of a probe on a user's own pictures: a shipped one, with only data, classes and lengths exchanged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...data.own import Classes
from ...files import write_text
from .command import iteration_options, size_options
from .paths import config_file

__all__ = [
    "OWN",
    "FolderData",
    "classes_config",
    "default_iterations",
    "depth_config",
    "masks_config",
    "set_iterations",
    "write_config",
]

OWN = "own:"
"""What the ``probe`` of such a config begins with; the name behind it is the column of the table."""

# Passes over the training images, where the protocol's 40,000 iterations would be hundreds.
_PASSES = 60
_LEAST = 400


@dataclass(frozen=True)
class FolderData:
    """Where a user's pictures are, and how they are parted.

    Attributes:
        name: of the data, for the table.
        images: folder.
        targets: folder of masks or depth maps; None for class folders.
        share: of the images that are validated on, where neither lists nor folders tell.
        lists: files of the names of the training and the validation images.
        leave_out: names that are not used.
    """

    name: str
    images: Path
    targets: Path | None = None
    share: float = 0.2
    lists: tuple[str, str] | None = None
    leave_out: Sequence[str] = field(default_factory=tuple)

    def dataset(self, kind: str, part: str, pipeline: Any, **more: Any) -> dict[str, Any]:
        """Config of the data set of a part."""
        told: dict[str, Any] = {"type": kind, "part": part, "data_prefix": {"img_path": str(self.images.absolute())}}
        if self.lists is not None:
            told["lists"] = [str(Path(file).absolute()) for file in self.lists]
        elif self.share != 0.2:
            told["share"] = self.share
        if self.leave_out:
            told["leave_out"] = list(self.leave_out)
        return {**told, **more, "pipeline": pipeline, "_delete_": True}


def default_iterations(images: int, batch: int, protocol: int) -> int:
    """Optimizer steps for so many training images: 60 passes, at least 400 steps, never more than the protocol's."""
    return min(max(math.ceil(_PASSES * images / batch / 100) * 100, _LEAST), protocol)


def masks_config(data: FolderData, classes: Classes, size: int | None = None) -> Config:
    """Segmentation: the linear probe of VOC 2012.

    Args:
        data: images and masks.
        classes: of the masks.
        size: shortest side that images are resized to, and side of the crop; default 512, the protocol's.
    """
    config = Config.fromfile(config_file("voc2012"))
    if size is not None:
        config.merge_from_dict(size_options("voc2012", (size, size), (4 * size, size)))
    reading = {"type": "LoadMask", "values": [_plain(value) for value in classes.values]}
    if classes.void:
        reading["void"] = [_plain(value) for value in classes.void]
    meta = {"classes": list(classes.names), "palette": [list(colour) for colour in classes.palette]}
    for loader, part in (("train", "train"), ("val", "val"), ("test", "val")):
        pipeline = _exchanged(config[f"{loader}_dataloader"].dataset.pipeline, "LoadAnnotations", reading)
        dataset = data.dataset("OwnMasks", part, pipeline, metainfo=meta)
        dataset["data_prefix"]["seg_map_path"] = str(_targets(data))
        config.merge_from_dict({f"{loader}_dataloader": {"dataset": dataset}})
    config.test_pipeline = _exchanged(config.test_pipeline, "LoadAnnotations", reading)
    config.merge_from_dict({"model": {"decode_head": {"num_classes": len(classes.names)}}})
    for evaluator in ("val_evaluator", "test_evaluator"):
        config[evaluator].type = "ImageIoU"
    return _named(config, data)


def depth_config(data: FolderData, scale: float, max_depth: float, crop: tuple[int, int]) -> Config:
    """Depth: the linear probe of NYUv2, without its crops.

    Args:
        data: images and depth maps.
        scale: stored units per metre.
        max_depth: metres; what lies beyond is not measured on.
        crop: (height, width) of the training crop.
    """
    config = Config.fromfile(config_file("nyuv2"))
    for loader, part in (("train", "train"), ("val", "val"), ("test", "val")):
        pipeline = [dict(t) for t in config[f"{loader}_dataloader"].dataset.pipeline if t["type"] != "BorderCrop"]
        pipeline = _exchanged(pipeline, "LoadDepth", {"type": "LoadDepth", "scale": scale})
        for transform in pipeline:
            if transform["type"] == "RandomCrop":
                transform["crop_size"] = crop
        dataset = data.dataset("OwnDepth", part, pipeline)
        dataset["data_prefix"]["depth_map_path"] = str(_targets(data))
        config.merge_from_dict({f"{loader}_dataloader": {"dataset": dataset}})
    config.test_pipeline = _exchanged(config.test_pipeline, "LoadDepth", {"type": "LoadDepth", "scale": scale})
    config.merge_from_dict({"model": {"decode_head": {"max_depth": max_depth}}})
    for evaluator in ("val_evaluator", "test_evaluator"):
        config.merge_from_dict({evaluator: {"max_depth": max_depth, "crop": None}})
    return _named(config, data)


def classes_config(data: FolderData, names: Sequence[str]) -> Config:
    """Classification: the linear probe of ImageNet, with EXIF honoured."""
    config = Config.fromfile(config_file("imagenet"))
    for loader, part in (("train", "train"), ("val", "val"), ("test", "val")):
        pipeline = _exchanged(
            config[f"{loader}_dataloader"].dataset.pipeline, "LoadProbeImage", {"type": "LoadProbeImage"}
        )
        dataset = data.dataset("OwnClasses", part, pipeline, metainfo={"classes": list(names)})
        config.merge_from_dict({f"{loader}_dataloader": {"dataset": dataset}})
    config.test_pipeline = _exchanged(config.test_pipeline, "LoadProbeImage", {"type": "LoadProbeImage"})
    config.merge_from_dict({"model": {"num_classes": len(names)}})
    return _named(config, data)


def _targets(data: FolderData) -> Path:
    if data.targets is None:
        raise ValueError(f"{data.name} has neither masks nor depth maps")
    return data.targets.absolute()


def _plain(value: int | tuple[int, int, int]) -> Any:
    return value if isinstance(value, int) else list(value)


def _exchanged(pipeline: Sequence[Mapping[str, Any]], old: str, new: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(new) if transform["type"] == old else dict(transform) for transform in pipeline]


def _named(config: Config, data: FolderData) -> Config:
    config.probe = OWN + data.name
    config.pop("tta_pipeline", None)
    config.pop("tta_model", None)
    # What the shipped configs compute the above from.
    for name in (
        "data_root", "scale", "folders", "train_pipeline", "crop_size", "total_batch_size", "max_iters", "interval",
        "low", "meta_keys",
    ):  # fmt: skip
        config.pop(name, None)
    return config


def set_iterations(config: Config, probe: str, iterations: int, validations: int = 1) -> None:
    """Shorten training, warm-up and decay in proportion, and validate so many times."""
    config.merge_from_dict(iteration_options(probe, iterations))
    interval = max(math.ceil(iterations / validations), 1)
    config.merge_from_dict(
        {"train_cfg.val_interval": interval, "default_hooks.checkpoint.interval": interval}  # both, or none is saved
    )


def write_config(config: Config, path: Path, about: str) -> Path:
    """Write a config whole, to be edited and run by ``mim train mmseg`` alone.

    Args:
        config: whole, without a base.
        path: ends in ``.py``.
        about: comment on top.

    Raises:
        ValueError: ``path`` does not end so.
    """
    if path.suffix != ".py":
        raise ValueError(f"{path}: a config is a .py file")
    path.parent.mkdir(parents=True, exist_ok=True)
    comment = "".join(f"# {line}\n" for line in about.splitlines())
    write_text(path, comment + config.pretty_text)
    return path
