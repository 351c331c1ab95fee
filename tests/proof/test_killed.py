"""Long commands, killed again and again at any moment and started again: they end as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.kills import killed
from PIL import Image

from attn_plugins import checkpoints
from attn_plugins.results.record import read_result

pytestmark = pytest.mark.nightly
Say = Callable[[str], None]
ROOT = Path(__file__).parents[2]

DEMO = """
import sys
from pathlib import Path
from attn_plugins.demo import Recipe, Settings, run
recipe = Recipe(steps=6, batch_size=4, embed_dim=32, depth=4, num_heads=2, global_size=32, local_size=16)
run(Path(sys.argv[1]), Settings(("softmax", "entmax15"), recipe, 8, 4, (64, 96), 4, 2))
"""


def whole_files(folder: Path) -> Counter[str]:
    """Every file below a folder under its own name can be read to its end; how many of each kind."""
    found: Counter[str] = Counter()
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.name.startswith(".") or ".partial" in str(file):
            continue
        if file.suffix == ".pth" and not file.name.startswith(("iter_", "best_")):  # mmengine's: resuming tells
            checkpoints.read(file)
        elif file.suffix in (".png", ".jpg"):
            Image.open(file).load()
        elif file.name == "probe.json":
            read_result(file)
        elif file.suffix == ".json" and "vis_data" not in file.parts:
            json.loads(file.read_text())
        elif file.suffix == ".csv":
            assert len({len(row) for row in csv.reader(file.open())}) == 1
        elif file.suffix == ".html":
            assert file.read_text().endswith("</html>\n")
        found[file.suffix] += 1
    return found


def until_it_ends(command: list[str], kills: int, within: float, look: Callable[[], object]) -> Counter[str]:
    """Start a command, kill its whole process group, look at what is left; at last let it come to its end."""
    draw, counts = random.Random(0), Counter[str]()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for _ in range(kills):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        time.sleep(draw.random() * within)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            counts["killed"] += 1
        output, _ = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), output[-2000:]
        look()
        if process.returncode == 0:
            break
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return counts


@pytest.mark.timeout(3600)
def test_demo(tmp_path: Path, say: Say) -> None:
    pytest.importorskip("lightly")
    pytest.importorskip("mim")
    out, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-c", DEMO]
    subprocess.run([*command, str(whole)], check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    counts = until_it_ends([*command, str(out)], 12, 90.0, lambda: whole_files(out))
    rows, wanted = (json.loads((folder / "table.json").read_text())["rows"] for folder in (out, whole))
    assert [row["method"] for row in rows] == [row["method"] for row in wanted]
    for row, other in zip(rows, wanted, strict=True):
        measured = {key for key in other if key != "method" and not key.startswith("step_")}
        assert measured and {key: row[key] for key in measured} == pytest.approx(
            {key: other[key] for key in measured}, rel=0.02, abs=0.02
        )
    say(f"demo: {dict(counts)}, 0 half done, and it ended as an uninterrupted one; {dict(whole_files(out))}")


@pytest.mark.timeout(3600)
def test_probe_training_and_resume(tmp_path: Path, say: Say) -> None:
    pytest.importorskip("mim")
    from probes.conftest import ARCH, OPTIONS, tiny_vit
    from probes.running import options, weights

    from attn_plugins.data.layouts import LAYOUTS
    from attn_plugins.probes.run.command import mim_command
    from attn_plugins.probes.run.runner import build_runner

    backbone = checkpoints.save(tmp_path / "tiny.pth", tiny_vit("entmax15"), arch=ARCH, arch_options=OPTIONS)
    roots = {"voc2012": LAYOUTS["voc2012"](tmp_path / "voc", 4, 2, seed=0, size=(96, 128))}
    more = {"default_hooks.checkpoint.interval": 2, "train_cfg.val_interval": 6}
    settings = options("voc2012_linear", backbone, roots, 12, **more)
    work_dir = tmp_path / "killed"
    command = mim_command("train", "voc2012", settings, "--resume", work_dir=work_dir)

    def look() -> None:
        for result in work_dir.glob("probe.json"):
            read_result(result)

    counts = until_it_ends(command, 12, 40.0, look)
    build_runner("voc2012", settings, tmp_path / "whole").train()
    heads = [weights(folder, 12) for folder in (work_dir, tmp_path / "whole")]
    torch.testing.assert_close(heads[0], heads[1], rtol=1e-4, atol=1e-6)
    results = [read_result(folder / "probe.json") for folder in (work_dir, tmp_path / "whole")]
    assert [e.iteration for e in results[0].evaluations] == [e.iteration for e in results[1].evaluations]
    say(f"probe training: {dict(counts)}, resumed each time, and the head is an uninterrupted run's")


@pytest.mark.timeout(3600)
def test_report(tmp_path: Path, say: Say) -> None:
    pytest.importorskip("matplotlib")
    from checkpoints.models import patched as of_spec

    from attn_plugins.analysis.findings import Settings
    from attn_plugins.analysis.images import find_images
    from attn_plugins.analysis.report import write_report
    from attn_plugins.analysis.subjects import Subject
    from attn_plugins.data.layouts.voc import write_voc

    images = find_images(write_voc(tmp_path / "voc", 1, 4, 0, (48, 64)))
    subjects = [Subject.of(of_spec("entmax15")), Subject.of(of_spec("softmax"))]
    out = tmp_path / "out" / "report.html"
    out.parent.mkdir()

    def write() -> None:
        write_report(out, subjects, images, Settings(size=32, pictures=2))

    begun = time.monotonic()
    write()
    took, draw, counts = time.monotonic() - begun, random.Random(0), Counter[str]()
    for _ in range(40):
        counts["killed"] += killed(write, 1.3 * took, draw)
        assert whole_files(out.parent)[".html"] == 1
    write()
    say(f"report: {dict(counts)} of 40, 0 half done; {dict(whole_files(out.parent))}")
    assert counts["killed"] >= 10
