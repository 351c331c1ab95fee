"""ADE20K: the challenge's release as it unzips, and the full data set with its class indexes mapped to the 150.

    ADE20K_2016_07_26/images/{training,validation}/GROUP/SCENE/NAME.jpg, NAME_seg.png              the release of 2016
    ADE20K_2021_17_01/images/ADE/{training,validation}/GROUP/SCENE/NAME.jpg, NAME_seg.png          that of 2021
    mapFromADE.txt                                                  lines "CLASS INDEX", of CSAILVision/sceneparsing

In a ``_seg.png`` R / 10 * 256 + G is the index of a pixel's class among all objects of the data set. Which index is
which of the 150 classes nothing in the data set says, and three classes are two objects each. The challenge's authors
publish it, in ``convertFromADE/`` of their development kit, and it is read from there.

As their ``convertFromADE.m``, this makes the shortest side 512 pixels where it is longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attn_plugins.data.convert.labels import present, require, stored
from attn_plugins.data.convert.plan import Converter, Link, Options, Plan, Write, as_jpeg, as_png
from attn_plugins.data.images import ImageError, read_image
from attn_plugins.data.layouts.ade20k import FOLDERS
from attn_plugins.files import read_lines

__all__ = ["CHALLENGE", "FULL"]

_CHALLENGE = "ADEChallengeData2016"
_CLASSES = 150
_MAP = "mapFromADE.txt"
_SHORTEST = 512


def _challenge(source: Path) -> Path | None:
    places = (source, source / _CHALLENGE)
    return next((place for place in places if (place / "annotations" / FOLDERS["val"]).is_dir()), None)


def _plan_challenge(source: Path, options: Options) -> Plan:
    root = _challenge(source)
    assert root is not None, "it was recognised"
    items, masks = list[Link](), []
    for folder in FOLDERS.values():
        images = present(root / "images" / folder, "*.jpg")
        if not images:
            raise ValueError(f"{root / 'images' / folder} holds no .jpg images: unpack {_CHALLENGE}.zip again")
        for image in images:
            masks.append(root / "annotations" / folder / f"{image.stem}.png")
            items.append(Link(f"images/{folder}/{image.name}", str(image)))
            items.append(Link(f"annotations/{folder}/{image.stem}.png", str(masks[-1])))
    require(masks, "masks")
    return Plan(items, len(items))


def _full(source: Path) -> Path | None:
    """The folder that holds ``training`` and ``validation`` with scenes below them."""
    places = [below / part for below in (source, *sorted(source.glob("ADE20K_*"))) for part in ("images/ADE", "images")]
    return next((place for place in places if any(place.glob(f"{FOLDERS['val']}/**/*_seg.png"))), None)


def _table(path: Path) -> NDArray[np.uint8]:
    """[65536]: the challenge's class of each index of the full data set, 0 for all that are none of the 150."""
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: the full data set has thousands of classes, and nothing in it says which are the "
            f"150 of the benchmark. Use {_CHALLENGE}.zip, on which the published figures are; or put the authors' "
            f"{_MAP} there (CSAILVision/sceneparsing, convertFromADE/)"
        )
    table = np.zeros(1 << 16, np.uint8)
    for number, line in enumerate(read_lines(path), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not all(word.isdecimal() for word in words):
            raise ValueError(f"{path}:{number}: expected 'CLASS INDEX', got {line!r}: use {_MAP} of CSAILVision")
        name, index = int(words[0]), int(words[1])
        if not (1 <= name <= _CLASSES and 1 <= index < len(table)) or table[index]:
            raise ValueError(
                f"{path}:{number}: {line!r} is no class 1 to {_CLASSES} of an index that no line had before"
            )
        table[index] = name
    missing = sorted(set(range(1, _CLASSES + 1)) - set(table.tolist()))
    if missing:
        raise ValueError(f"{path} has no index for the classes {missing[:5]}: use {_MAP} of CSAILVision/sceneparsing")
    return table


def _size(height: int, width: int) -> tuple[int, int]:
    """(H, W) as ``convertFromADE.m`` has it: squares stay."""
    if _SHORTEST < height < width:
        return _SHORTEST, int(width / height * _SHORTEST + 0.5)
    if _SHORTEST < width < height:
        return int(height / width * _SHORTEST + 0.5), _SHORTEST
    return height, width


def _mask(path: Path, table: NDArray[np.uint8]) -> bytes:
    values = stored(path)
    if values.ndim != 3:
        raise ValueError(f"{path} is not in colours, as R / 10 * 256 + G of the full data set is: unpack it again")
    classes = Image.fromarray(table[values[..., 0].astype(np.uint16) // 10 * 256 + values[..., 1]])
    height, width = _size(*values.shape[:2])
    return as_png(np.asarray(classes.resize((width, height), Image.Resampling.NEAREST)))


def _image(path: Path) -> bytes:
    """The file itself where it has its size already."""
    try:
        picture = Image.fromarray(read_image(path, exif=False))
    except ImageError as error:
        raise ValueError(f"{error}; unpack it again, the same command goes on") from error
    height, width = _size(picture.height, picture.width)
    if (height, width) == (picture.height, picture.width):
        return path.read_bytes()
    return as_jpeg(np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)))


def _items(images: dict[str, list[Path]], table: NDArray[np.uint8]) -> Iterator[Link | Write]:
    for folder, paths in images.items():
        for path in paths:
            yield Write(f"images/{folder}/{path.name}", partial(_image, path))
            mask = path.with_name(f"{path.stem}_seg.png")
            yield Write(f"annotations/{folder}/{path.stem}.png", partial(_mask, mask, table))


def _plan_full(source: Path, options: Options) -> Plan:
    root = _full(source)
    assert root is not None, "it was recognised"
    mapping = source / _MAP
    table = _table(mapping)
    images = {folder: present(root / folder, "**/*.jpg") for folder in FOLDERS.values()}
    for folder, paths in images.items():
        if not paths:
            raise ValueError(f"{root / folder} holds no SCENE/NAME.jpg: unpack the archive again")
        if len({path.name for path in paths}) < len(paths):
            raise ValueError(f"{root / folder} has images of the same name: unpack one release into an empty folder")
    every = [path for paths in images.values() for path in paths]
    require([path.with_name(f"{path.stem}_seg.png") for path in every], "masks (NAME_seg.png)")
    note = (
        f"{len(images[FOLDERS['train']]):,} and {len(images[FOLDERS['val']]):,} images of the full data set, where the "
        f"benchmark has 20,210 and 2,000; images over {_SHORTEST} pixels were made smaller by us, not by its authors: "
        f"figures that are compared with published ones should be of {_CHALLENGE}.zip"
    )
    return Plan(_items(images, table), 2 * len(every), {}, (mapping,), (note,))


CHALLENGE = Converter(
    "ade20k-challenge",
    f"{_CHALLENGE}/ as its archive unzips",
    lambda source: _challenge(source) is not None,
    _plan_challenge,
    as_is=True,
)
FULL = Converter(
    "ade20k-full",
    f"the full data set (ADE20K_2016_07_26 or ADE20K_2021_17_01, NAME_seg.png) with {_MAP}",
    lambda source: _full(source) is not None,
    _plan_full,
)
