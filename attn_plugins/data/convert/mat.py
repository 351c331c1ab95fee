"""MATLAB's files, of version 5 by SciPy and of version 7.3, which is HDF5, by h5py. Neither runs what is in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["hdf5", "loaded", "text"]


def loaded(path: Path) -> dict[str, Any]:
    """Variables of a version 5 file.

    Raises:
        ValueError: it is none, or damaged; or SciPy is missing.
    """
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise ValueError(_needs(path, "scipy")) from error
    try:
        return dict(loadmat(path))
    except Exception as error:  # a damaged file meets SciPy in a dozen ways
        raise ValueError(f"{path} is no readable MATLAB file: {type(error).__name__}: {error}") from error


@contextmanager
def hdf5(path: Path) -> Iterator[Any]:
    """A version 7.3 file, opened for reading: axes are in the reverse order of MATLAB's.

    Raises:
        ValueError: it is none, or damaged; or h5py is missing.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ValueError(_needs(path, "h5py")) from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is no readable MATLAB 7.3 (HDF5) file: {error}; download it again") from error
    with file:
        yield file


def text(file: Any, reference: Any) -> str:
    """The characters that a cell of a version 7.3 file refers to."""
    return "".join(chr(int(code)) for code in np.asarray(file[reference]).ravel())


def _needs(path: Path, module: str) -> str:
    return f"{path} is read by {module}, which is missing: pip install 'attn_plugins[convert]'"
