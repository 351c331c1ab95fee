"""What is exported inside ``exportable`` runs where this package is not, and computes what the model computes."""

from __future__ import annotations

import functools
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attn_plugins

from .models import CASES, build

pytest.importorskip("timm", reason="timm (the probes extra) is not installed")

# In the ordinary tier every spec in one kind of model, and one spec in the others.
every_case = pytest.mark.parametrize(
    ("name", "spec"),
    [
        pytest.param(*case, marks=() if case[0] == "timm" or case[1] == "entmax15" else pytest.mark.nightly)
        for case in CASES
    ],
    ids=[f"{name}-{spec}" for name, spec in CASES],
)
PROGRAMS = ("trace", "export")

ELSEWHERE = """
import json, sys
sys.modules["attn_plugins"] = None  # an import of it raises
import torch
found = {}
for path in sys.argv[1:]:
    x, y = torch.load(path + ".data")
    with torch.no_grad():
        found[path + ".trace"] = (torch.jit.load(path + ".trace")(x) - y).abs().max().item()
        found[path + ".export"] = (torch.export.load(path + ".export").module()(x) - y).abs().max().item()
print(json.dumps(found))
"""


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(x)
        return out


@functools.cache
def exported(name: str, spec: str) -> torch.export.ExportedProgram:
    """What several tests ask for; it takes seconds."""
    model, x = build(name, spec)
    with attn_plugins.exportable(model), torch.no_grad():
        return torch.export.export(model, (x,))


@pytest.fixture(scope="module")
def differences(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Of every saved program, loaded where attn_plugins cannot be imported, to its model; by case and program.

    Of the cases that are asked for: one process loads them all.
    """
    folder = tmp_path_factory.mktemp("programs")
    items: list[Any] = [item for item in request.session.items if "differences" in getattr(item, "fixturenames", ())]
    cases = list(dict.fromkeys((item.callspec.params["name"], item.callspec.params["spec"]) for item in items))
    for number, (name, spec) in enumerate(cases):
        model, x = build(name, spec)
        path = str(folder / str(number))
        torch.save((x, output(model, x)), path + ".data")
        with attn_plugins.exportable(model), torch.no_grad():
            torch.jit.trace(model, (x,)).save(path + ".trace")
        torch.export.save(exported(name, spec), path + ".export")
    paths = [str(folder / str(number)) for number in range(len(cases))]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *paths], capture_output=True, text=True, timeout=600, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return {f"{cases[int(Path(p).stem)]}{Path(p).suffix}": found for p, found in json.loads(done.stdout).items()}


@pytest.mark.slow
@every_case
@pytest.mark.parametrize("program", PROGRAMS)
def test_runs_without_this_package(name: str, spec: str, program: str, differences: dict[str, float]) -> None:
    assert differences[f"{(name, spec)}.{program}"] <= 1e-5


@every_case
def test_is_made_of_torchs_operators(name: str, spec: str) -> None:
    called = [node.target for node in exported(name, spec).graph.nodes if node.op == "call_function"]
    assert called
    assert not [target for target in called if getattr(target, "namespace", "aten") != "aten"]


# torch's exporter takes seconds for each: one of each kind of model here, the others every night.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "spec"),
    [pytest.param(*case, marks=() if case[1] == "entmax15" else pytest.mark.nightly) for case in CASES],
    ids=[f"{name}-{spec}" for name, spec in CASES],
)
def test_onnx(name: str, spec: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript (the test extra) is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime (the test extra) is not installed")
    model, x = build(name, spec)
    with attn_plugins.exportable(model), torch.no_grad():
        torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert (torch.from_numpy(found) - output(model, x)).abs().max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("name", "spec"), [("timm", "entmax15"), ("softmax", "sparsemax"), ("timm", "entmax_alpha")])
def test_any_batch(name: str, spec: str) -> None:
    model, x = build(name, spec)
    with attn_plugins.exportable(model), torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
        traced = torch.jit.trace(model, (x,))
    more = torch.randn(5, *x.shape[1:])
    for found in (program.module()(more), traced(more)):
        assert (found - output(model, more)).abs().max() <= 1e-5


def test_differs_from_softmax() -> None:
    """The programs above could not equal their models by all computing the same."""
    outputs = [output(*build("timm", spec)) for spec in ("softmax", "entmax15", "sparsemax")]
    assert min((a - b).abs().max() for a, b in itertools.pairwise(outputs)) > 1e-2


# --- without exportable


@pytest.mark.parametrize("name", ["timm", "mha", "softmax"])
def test_trace_outside_needs_nothing_else(name: str, tmp_path: Path) -> None:
    model, x = build(name, "entmax15")
    with torch.no_grad():
        torch.jit.trace(model, (x,)).save(tmp_path / "model.pt")
    assert (torch.jit.load(tmp_path / "model.pt")(x) - output(model, x)).abs().max() <= 1e-5


@pytest.mark.slow
def test_onnx_outside_needs_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript (the test extra) is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime (the test extra) is not installed")
    model, x = build("timm", "entmax15")
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert (torch.from_numpy(found) - output(model, x)).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["timm", "softmax"])
def test_export_outside_computes_the_same_with_our_operators(name: str, tmp_path: Path) -> None:
    model, x = build(name, "entmax15")
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert (output(loaded, x) - output(model, x)).abs().max() <= 1e-5


class Around(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


@pytest.mark.parametrize("name", ["timm", "mha", "softmax"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_script_is_refused(name: str, inside: bool) -> None:
    model, _ = build(name, "entmax15")
    layer = next(module for module in model.modules() if hasattr(module, "attn_plugins_normalizer"))

    def script() -> None:
        for what in (model, layer, Around(model)):
            with pytest.raises(attn_plugins.UnsupportedModelError, match="exportable"):
                torch.jit.script(what)

    if inside:
        with attn_plugins.exportable(model):
            script()
    else:
        script()
