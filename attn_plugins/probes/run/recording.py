"""The hook that keeps ``probe.json``, and what it says about a run: its data, and how it differs from the config."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop
from mmseg.registry import HOOKS

from ...results import FILE_NAME, DataSplit, Evaluation, ProbeResult, read_result, write_images, write_result
from ..fast import make_fast
from ..ownership import probe_model
from ..told import META_KEY, record_of_run
from ..tuning import make_finetune
from .folder import OWN
from .paths import configs_dir

__all__ = ["ProbeResultHook", "data_splits", "overrides"]

# Data loader processes outlive a killed run by a few seconds, and its lock with them.
_PATIENCE = 10.0
# Options that change no result, or that the record tells otherwise: the data root, the backbone's identity.
_NOT_COMPARED = (
    "work_dir", "load_from", "resume", "launcher", "log_level", "log_processor", "experiment_name", "visualizer",
    "vis_backends", "env_cfg", "custom_imports", "probe", "default_hooks.logger", "default_hooks.visualization",
    "default_hooks.checkpoint.interval", "default_hooks.checkpoint.max_keep_ckpts", "filename", "model_wrapper_cfg",
    "model.backbone.checkpoint", "model.backbone.arch", "model.backbone.plugins", "model.backbone.repo",
    "model.backbone.random_init", "test_pipeline", "train_pipeline", "tta_pipeline", "fast",
    "finetune",
    *(
        f"{loader}_dataloader.{option}" for loader in ("train", "val", "test")
        for option in (
            "batch_size", "num_workers", "persistent_workers", "pin_memory", "dataset.data_root",
            "dataset.dataset.data_root", "dataset.store",
        )
    ),
)  # fmt: skip


@HOOKS.register_module()
class ProbeResultHook(Hook):
    """Keeps ``WORK_DIR/probe.json``, which ``attn-plugins table`` reads, and the work dir to one run at a time."""

    def before_run(self, runner: Any) -> None:
        """Take the work dir.

        Raises:
            ValueError: another run is at work in it; or it holds the result of another backbone, of other data or of
                other settings, all of which are named; or its ``probe.json`` is damaged.
        """
        folder = Path(runner.work_dir)
        if is_main_process():
            # The same lock for the runs of one process: one that an exception ended would keep it.
            self.lock = FileLock(str(folder.resolve() / ".probe.lock"), is_singleton=True)
            try:
                self.lock.acquire(timeout=_PATIENCE)
            except Timeout:
                raise ValueError(
                    f"another run is at work in {folder}: wait for it, or give another --work-dir"
                ) from None
        self.result = _this_run(runner)
        if not (folder / FILE_NAME).is_file():
            return
        before = read_result(folder / FILE_NAME)
        try:
            self.result = before.continued_by(self.result)
        except ValueError as error:
            raise ValueError(
                f"{folder} holds the result of another run: {error}. Give another --work-dir, or delete "
                f"{folder / FILE_NAME} if it is not wanted"
            ) from None

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add to its ``meta`` what predicting needs; see ``attn_plugins.probes.load``."""
        record = record_of_run(runner)
        if record is not None:
            checkpoint["meta"][META_KEY] = record.text()

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Add a validation; those that a resumed run repeats are replaced."""
        self._add(runner, "val", runner.iter, metrics)
        self._add_images(runner, runner.val_evaluator, runner.iter)

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Add a test."""
        self._add(runner, "test", 0, metrics)
        self._add_images(runner, runner.test_evaluator, 0)

    def after_run(self, runner: Any) -> None:
        """Leave the work dir to others."""
        if is_main_process():
            self.lock.release()

    def _add(self, runner: Any, split: str, iteration: int, metrics: dict[str, float] | None) -> None:
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        self.result = self.result.with_evaluation(Evaluation(split, iteration, numbers))
        if is_main_process():
            write_result(Path(runner.work_dir), self.result)

    @staticmethod
    def _add_images(runner: Any, evaluator: Any, iteration: int) -> None:
        """Keep what each image contributed to the last evaluation, where a metric has it."""
        images = {path: value for metric in evaluator.metrics for path, value in getattr(metric, "images", {}).items()}
        if images and is_main_process():
            write_images(Path(runner.work_dir), iteration, images)


def _this_run(runner: Any) -> ProbeResult:
    return ProbeResult(
        probe=runner.cfg.get("probe"),
        max_iters=runner.cfg.train_cfg.max_iters,
        backbone=probe_model(runner).backbone.identity,
        data=data_splits(runner),
        overrides=overrides(runner.cfg),
    )


def data_splits(runner: Any) -> dict[str, DataSplit]:
    """{``train``, ``val``, ``test``: split} of the loops that the runner has built."""
    loops = {role: getattr(runner, f"_{role}_loop") for role in ("train", "val", "test")}
    return {role: _split(loop.dataloader.dataset) for role, loop in loops.items() if isinstance(loop, BaseLoop)}


def _split(dataset: Any) -> DataSplit:
    while hasattr(dataset, "dataset"):  # the images that a wrapper gives, and how many there are of them
        dataset = dataset.dataset
    root = getattr(dataset, "data_root", None) or ""
    listed = getattr(dataset, "ann_file", "") or getattr(dataset, "data_prefix", {}).get("img_path", "")
    split = os.path.relpath(listed, root) if root and listed else listed
    return DataSplit(type(dataset).__name__, os.path.abspath(root) if root else "", split, len(dataset))


def overrides(config: Config) -> dict[str, Any]:
    """{option: value} where a config differs from the shipped one of the same probe, ``None`` for what it lacks.

    A config of no shipped probe is compared with its own file.
    """
    line = f'\nprobe = "{config.get("probe")}"'
    shipped = [file for file in sorted(configs_dir().glob("*.py")) if line in file.read_text()]
    base = Config.fromfile(shipped[0] if shipped else config.filename)
    told = {}
    if "fast" in config:
        told["fast"] = f"{config.fast.views} fixed view(s), features computed once: not the published protocol"
        if "fast" not in base:
            make_fast(base, **config.fast)
    if "finetune" in config:
        told["finetune"] = f"the backbone is trained too, {dict(config.finetune)}: not the published protocol"
        make_finetune(base, **config.finetune)
    ours, theirs = dict(_flat(config._cfg_dict.to_dict())), dict(_flat(base._cfg_dict.to_dict()))
    if str(config.get("probe")).startswith(OWN):
        return told | _own_settings(ours)
    return told | {
        key: ours.get(key)
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key) and not key.startswith(_NOT_COMPARED)
    }


def _own_settings(flat: Mapping[str, Any]) -> dict[str, Any]:
    """What runs on a user's own data have to share to be compared: no shipped config tells it."""
    kept = {
        key: value
        for key, value in flat.items()
        if not key.startswith(_NOT_COMPARED) and ".data_prefix." not in key and ".lists" not in key
    }
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]
    shown = ("train_cfg.max_iters", "train_cfg.total_batch_size", "randomness.seed", "optim_wrapper.optimizer.lr")
    return {**{key: kept[key] for key in shown if key in kept}, "settings": digest}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(``train_cfg.max_iters``, 40000), …; lists of numbers and texts whole, as JSON has them."""
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, inner in items:
        place = f"{name}.{key}" if name else str(key)
        if isinstance(inner, Mapping) or (
            isinstance(inner, list | tuple) and any(isinstance(part, Mapping | list | tuple) for part in inner)
        ):
            yield from _flat(inner, place)
        else:
            yield place, _plain(inner)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
