"""What every converter is tested with: its files, the data check, one item through the probe's own pipeline."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image

from attn_plugins.data.check import check
from attn_plugins.data.convert import run
from attn_plugins.files import written
from attn_plugins.probes import CheckLabels
from attn_plugins.shipped import shipped

__all__ = ["assert_accepted", "first_items", "killed_in_write", "picture", "save", "tree"]


def tree(folder: Path) -> dict[str, bytes]:
    """{path below `folder`: contents}, the conversion's own record left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".converted.json"
    }


def assert_accepted(dataset: str, root: Path) -> None:
    """The data check finds nothing but counts: a test's few files have not those of the release."""
    problems = [problem for problem in check(dataset, root) if problem.kind != "count"]
    assert not problems, [str(problem) for problem in problems]


def first_items(config: str, root: Path, changes: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The first training and the first validation item of a root, by the probe's config as it is shipped.

    `changes` are what a user gives as `--cfg-options`.
    """
    init_default_scope("mmseg")
    file = f"{config}.py"
    cfg = Config.fromfile(str(shipped("mmseg_configs", file) / file))
    cfg.merge_from_dict(changes or {})
    items = []
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = str(root)
        dataset = DATASETS.build(loader.dataset)
        for transform in dataset.pipeline.transforms:
            if isinstance(transform, CheckLabels):
                transform.classes = len(dataset.metainfo["classes"])  # as ClassCountHook does when a run begins
        items.append(dataset[0])
    return items


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """[H, W, 3] of smooth colours, of which JPEG changes little."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (9 + seed + c)) + np.cos(columns / (11 + 2 * seed + c)) for c in range(3)]
    return (127.5 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    """Write a picture, its folders too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def killed_in_write(action: Callable[[], object], number: int) -> None:
    """Run `action`, a conversion, in a forked process that is killed in the middle of the `number`th file it writes."""
    child = os.fork()
    if child == 0:
        left = number

        def write(path: Path, content: bytes) -> None:
            nonlocal left
            left -= 1
            with written(path) as partial:
                partial.write_bytes(content[: len(content) // 2])
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                partial.write_bytes(content)

        run.__dict__["write_bytes"] = write
        try:
            action()
        finally:
            os._exit(1)  # not back into pytest
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "it came to an end by itself"
