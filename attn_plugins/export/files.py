"""Write a graph as ONNX or as a program of torch.export, once it was run and found to compute what the model does."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import UnsupportedModelError
from ..files import require_plain, written
from ..torch_names import needs
from .context import exportable
from .graphs import PIXELS, Graph

__all__ = ["TOLERANCE", "require_free", "write_graph"]

_LOG = logging.getLogger("attn_plugins")

TOLERANCE = 1e-3
"""Of an output, as a share of its largest magnitude, or of 1 where that is smaller."""

# protobuf's limit of a message, less what a graph takes beside its weights.
_MOST_BYTES = 2**31 - 2**25
# Pixels of a side where it is free.
_LEAST, _MOST = 32, 8192
_Run = Callable[[Tensor], Sequence[NDArray[np.float32]]]


def require_free(paths: Sequence[Path | None], force: bool) -> None:
    """Refuse to write over files.

    Raises:
        FileExistsError: one is there and ``force`` is false, or is no regular file.
        FileNotFoundError: the folder of one is missing.
    """
    for path in filter(None, paths):
        require_plain(path)
        if path.exists() and not force:
            raise FileExistsError(f"{path} is there: give another name, or --force to replace it")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")


def write_graph(
    graph: Graph,
    onnx: Path | None = None,
    program: Path | None = None,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    tolerance: float = TOLERANCE,
    progress: Callable[[str], None] = print,
) -> None:
    """Record a graph, write it beside its name, run what was written, and give it its name if it computes the same.

    The batch is free in what is written. So are height and width without ``size``.

    Args:
        graph: of ``graph_of``.
        onnx: file to write for onnxruntime and others.
        program: file to write for ``torch.export.load``.
        size: height and width, to fix them.
        opset: of ONNX; default torch's.
        tolerance: see ``TOLERANCE``.
        progress: takes a line for each run that was compared.

    Raises:
        UnsupportedModelError: it cannot be recorded, or what was written computes something else; what may do is
            named, and nothing is written.
        ValueError: weights that an ONNX file cannot hold, or a torch that is too old.
    """
    needs((2, 9), "attn-plugins export")
    weights = sum(t.numel() * t.element_size() for t in graph.module.state_dict().values() if isinstance(t, Tensor))
    if onnx is not None and weights > _MOST_BYTES:
        raise ValueError(f"{weights / 2**30:.1f} GiB of weights, and an ONNX file holds 2: write --program FILE.pt2")
    remedy = "another --opset may do"
    if size is None:
        remedy = f"images of one size may do: --size {graph.size[0]} {graph.size[1]}"
    recorded, multiple = _any_size(graph, remedy) if size is None else (_fixed(graph, size, remedy), 1)
    sizes = f"{size[0]}x{size[1]}" if size else f"from {_LEAST} to {_MOST} pixels"
    if multiple > 1:
        sizes += f", multiples of {multiple}"
    told = {**graph.told, "sizes": sizes, "outputs": json.dumps(list(graph.outputs))}
    expected = [(images, _computed(graph.module, images)) for images in _cases(graph, size, multiple)]
    with ExitStack() as stack:
        if onnx is not None:
            partial = stack.enter_context(written(onnx))
            with _refusing(f"torch cannot write this model as ONNX for sizes {sizes}", remedy):
                _save_onnx(recorded, partial, graph.outputs, opset, told)
            _compare("onnxruntime", _onnx_run(partial), expected, graph.outputs, tolerance, remedy, progress)
        if program is not None:
            partial = stack.enter_context(written(program))
            with partial.open("wb") as file:
                torch.export.save(recorded, file, extra_files={"attn_plugins.json": json.dumps(told)})
            run = _program_run(partial)
            _compare("torch.export.load", run, expected, graph.outputs, tolerance, remedy, progress)


def _cases(graph: Graph, size: tuple[int, int] | None, multiple: int) -> list[Tensor]:
    """Images to compare on: other batches and sizes than those that are recorded, squares and none."""
    height, width = size or graph.size
    shapes = [(1, height, width), (3, height, width)]
    if size is None:
        # As small as fits, since large ones take long.
        shapes[1:] = [(3, *_rounded((101, 75), multiple)), (2, *_rounded((64, 142), multiple))]
    generator = torch.Generator().manual_seed(0)
    cases = [torch.rand(batch, 3, h, w, generator=generator) for batch, h, w in shapes]
    return [images * 255 if graph.told["input"] == PIXELS else (images - 0.5) * 4 for images in cases]


@torch.no_grad()
def _computed(module: nn.Module, images: Tensor) -> list[NDArray[np.float32]]:
    return [output.numpy() for output in module(images)]


def _fixed(graph: Graph, size: tuple[int, int], remedy: str) -> ExportedProgram:
    with _refusing(f"torch cannot record this model for images of {size[0]}x{size[1]}", remedy):
        return _recorded(graph, size, {})


def _any_size(graph: Graph, remedy: str) -> tuple[ExportedProgram, int]:
    """The program, and what sides are multiples of: 1, or the patch size where torch cannot follow the padding."""
    # Neither a square nor what positions were trained for, nor a multiple of a patch: models treat these apart.
    height, width = graph.size[0] + 37, graph.size[1] + 75
    free = {2: Dim("height", min=_LEAST, max=_MOST), 3: Dim("width", min=_LEAST, max=_MOST)}
    patch = graph.patch_size
    try:
        return _recorded(graph, (height, width), free), 1
    except Exception as error:  # exporters raise whatever their many parts do
        _LOG.info("not for sizes that are no multiple of a patch: %s", error)
    with _refusing("torch cannot record this model for images of any size", remedy):
        dims = (Dim(name, min=-(-_LEAST // patch), max=_MOST // patch) for name in ("rows", "columns"))
        free = {2 + axis: patch * dim for axis, dim in enumerate(dims)}
        return _recorded(graph, _rounded((height, width), patch), free), patch


def _rounded(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


def _recorded(graph: Graph, size: tuple[int, int], free: Mapping[int, Any]) -> ExportedProgram:
    with exportable(graph.vit), torch.no_grad():
        # What cannot be shown of every size is checked when the program runs.
        return torch.export.export(
            graph.module,
            (torch.zeros(2, 3, *size),),
            dynamic_shapes=({0: Dim("batch", max=2**16), **free},),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def _save_onnx(
    recorded: ExportedProgram, path: Path, outputs: Sequence[str], opset: int | None, told: Mapping[str, str]
) -> None:
    made: Any = torch.onnx.export(
        recorded,
        dynamo=True,
        input_names=["images"],
        output_names=list(outputs),
        opset_version=opset,
        verbose=False,
    )
    made.model.metadata_props.update(told)
    made.save(str(path), external_data=False)


def _onnx_run(path: Path) -> _Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


def _program_run(path: Path) -> _Run:
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda images: _computed(module, images)


def _compare(
    where: str,
    run: _Run,
    expected: Sequence[tuple[Tensor, Sequence[NDArray[np.float32]]]],
    names: Sequence[str],
    tolerance: float,
    remedy: str,
    progress: Callable[[str], None],
) -> None:
    """Run every case and tell the errors.

    Raises:
        UnsupportedModelError: one is above the tolerance, or the run fails.
    """
    for images, outputs in expected:
        case = f"{where}, {'x'.join(map(str, images.shape))}"
        with _refusing(f"{case}: it does not run", remedy):
            found = run(images)
        for name, theirs, ours in zip(names, found, outputs, strict=True):
            if theirs.shape != ours.shape:
                raise UnsupportedModelError(f"{case}: {name} is {theirs.shape}, the model's {ours.shape}: {remedy}")
            error = float(np.abs(theirs - ours).max()) / max(1.0, float(np.abs(ours).max()))
            progress(f"{case}: {name} differs by at most {error:.1e} of its largest value")
            if not error <= tolerance:
                raise UnsupportedModelError(
                    f"{case}: {name} differs by {error:.1e} of its largest value, more than --tolerance {tolerance:g}; "
                    f"nothing was written; {remedy}"
                )


@contextmanager
def _refusing(what: str, remedy: str) -> Iterator[None]:
    """Tell what torch or onnxruntime refuses, with the first line of why, and what would do."""
    try:
        yield
    except (ModuleNotFoundError, UnsupportedModelError):
        raise
    except Exception as error:  # exporters raise whatever their many parts do; it stays the cause
        why = next((line for line in str(error).splitlines() if line.strip()), "")
        raise UnsupportedModelError(f"{what}: {type(error).__name__} {why:.300}; {remedy}") from error
