"""`attn-plugins env`: what a bug report should say."""

import platform

import pytest
import torch

from attn_plugins.cli import main
from attn_plugins.machine import machine, versions


def test_it_names_versions_machine_and_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if "CPU kernels" not in line)
    assert lines["Python"] == platform.python_version() and lines["torch"] == versions()["torch"]
    assert f"{torch.get_num_threads()} threads" in lines["cpu"]


def test_packages_that_are_not_there_are_left_out() -> None:
    assert list(versions(["no-such-package", "torch"])) == ["Python", "torch"]


def test_machine_of_the_cpu() -> None:
    told = machine()
    assert told["device"] == "cpu" and told["threads"] == torch.get_num_threads() and told["name"]
