"""Where the configs are: in the repository, or inside the installed package."""

from __future__ import annotations

from pathlib import Path

from ...shipped import shipped

__all__ = ["config_file", "configs_dir"]


def configs_dir() -> Path:
    """The folder ``mmseg_configs``.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    return shipped("mmseg_configs", "_base_")


def config_file(name: str) -> Path:
    """The config of a probe: ``voc2012``, ``voc2012_linear`` or a path.

    Raises:
        ValueError: no such config; the message lists them.
    """
    if Path(name).suffix == ".py":
        return Path(name)
    known = {path.stem: path for path in sorted(configs_dir().glob("*.py"))}
    matching = [path for stem, path in known.items() if stem in (name, f"{name}_linear", f"{name}_linear4_depth")]
    if len(matching) != 1:
        raise ValueError(f"no probe {name!r}; there are {', '.join(known)}")
    return matching[0]
