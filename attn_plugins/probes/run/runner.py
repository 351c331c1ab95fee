"""A probe in this process: what ``mim train`` and ``mim test`` build, without starting another interpreter."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from .paths import config_file

__all__ = ["build_runner", "parsed_options"]

_number = itertools.count()


def build_runner(
    probe: str,
    options: Mapping[str, Any],
    work_dir: str | Path,
    resume: bool = False,
    change: Callable[[Config], None] | None = None,
) -> Runner:
    """The runner of a probe's config, not started: call its ``train()`` or ``test()``.

    Args:
        probe: name or path of the config.
        options: as ``--cfg-options`` takes them; texts are read as there.
        work_dir: where logs and checkpoints go.
        resume: go on from the last checkpoint there.
        change: edits of the config that no option can make.
    """
    # mmengine has yapf lay a config's text out at the start and at every checkpoint: a second and a half of each run.
    config = Config.fromfile(config_file(probe), format_python_code=False)
    config.merge_from_dict(parsed_options(options))
    config.work_dir, config.resume, config.log_level = str(work_dir), resume, "ERROR"
    if change is not None:
        change(config)
    # Runners of one process share mmengine's message hub if they share a name, and so its visualizer.
    config.experiment_name = f"probe_{next(_number)}"
    config.visualizer.name = config.experiment_name
    return Runner.from_cfg(config)


def parsed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with texts read as ``--cfg-options`` reads them."""
    return {key: _parsed(value) for key, value in options.items()}


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        return DictAction._parse_iterable(value)
    return str(value) if isinstance(value, Path) else value
