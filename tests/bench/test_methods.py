"""``attn-plugins bench methods``: the four methods of Table 1, timed in one table."""

import json
from pathlib import Path

import pytest

from attn_plugins.cli import main


def test_all_four_methods_are_timed_beside_the_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "methods.json"
    assert main(["bench", "methods", "--arch", "test_vit", "--quick", "--json", str(out)]) == 0
    told = capsys.readouterr().out
    peers = json.loads(out.read_text())["peers"]
    assert list(peers) == [
        "CLS baseline (softmax)",
        "Register-4 (registers:num=4)",
        "Specialization (specialization)",
        "Entmax-1.5 (entmax15)",
    ]
    assert peers["CLS baseline (softmax)"]["ratio"] == 1
    assert all(peer["median_ms"] > 0 for peer in peers.values())
    assert all(name in told for name in peers)
