"""Tests mirror the package: ``tests/ROOM/test_MODULE.py`` tests ``attn_plugins/ROOM/MODULE.py``; what does not says so.

A file in a room's folder is named after a module of that room, after the room itself or a room inside, or stands in
``ACROSS`` with what it is about. A module has a file of its name, or its room has one, or ``ELSEWHERE`` names the file
that proves it, for a module or for what else there is in a room.
"""

from __future__ import annotations

from pathlib import Path

import attn_plugins

PACKAGE = Path(attn_plugins.__file__).parent
TESTS = Path(__file__).parent
MODULES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix()
    for path in PACKAGE.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
}
ROOMS = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")} - {"."}
FILES = {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}

FOLDERS = {
    "codebases/zoo": "attention as people write it, and what must not be taken for it",
    "compat": "other environments",
    "golden": "files of the last release",
    "integration": "other people's trainers, and the scripts of integration/",
    "proof": "drawn cases, faults, kills and mutated files, for all of the package",
}
ACROSS = {
    "adapt/test_processes.py": "several processes, and kills",
    "attention/test_devices.py": "devices that no kernel is written for",
    "attention/triton/test_kernels.py": "forward and backward, whatever kernels they take",
    "attention/triton/test_masks.py": "masks and packed batches, whatever kernels they take",
    "checkpoints/test_fuzz.py": "whatever stands in a file",
    "cli/test_extras.py": "the extras that every command names",
    "codebases/test_attn_implementation.py": "the name that a patch registers in transformers",
    "codebases/test_dino.py": "DINO, DINOv2, DINOv3 and lightly-train by the same checks",
    "codebases/test_mha.py": "torch.nn.MultiheadAttention, in torch's own models too",
    "mechanisms/test_bare_scales.py": "LayerScale that is a bare parameter of its block",
    "mechanisms/test_containers.py": "blocks that run what they hold",
    "mechanisms/test_in_training.py": "what trainers do with new parameters",
    "mechanisms/test_last_vit_cb_gated.py": "three mechanisms against their equations",
    "mechanisms/test_options.py": "options against their formulas",
    "mechanisms/test_scale_everywhere.py": "a factor for each head on every codebase",
    "native/test_pack.py": "pack.h, on every instruction set",
    "native/test_processors.py": "other compilers and processors",
    "native/test_sparse.py": "sparse.h, on every instruction set",
    "patching/test_callables.py": "what patch takes beside names",
    "patching/test_copies.py": "copies, pickles and state dicts",
    "patching/test_distributed.py": "DDP and FSDP",
    "patching/test_faults.py": "faults in the middle of a patch",
    "patching/test_parallel.py": "mixed precision and split heads on two processes",
    "patching/test_peft.py": "patches around and inside of peft",
    "patching/test_training.py": "seeds, autocast, checkpointing, torch.compile",
    "probes/test_architectures.py": "timm's architectures against the official code",
    "probes/test_fast_others.py": "the fast probes of depth and of classes",
    "probes/test_features.py": "features against those of the models' authors",
    "probes/test_heads.py": "heads against DINOv2's",
    "probes/test_inference_api.py": "mmseg's own inference API",
    "probes/test_learning.py": "that a probe learns",
    "probes/test_sampling.py": "the stream of draws, for any number of processes",
    "test_arrows.py": "imports between the rooms",
    "test_compat_table.py": "the table of environments",
    "test_docstrings.py": "what docstrings say",
    "test_import.py": "what an import costs",
    "test_mirror.py": "the tests' own order",
    "test_notebooks.py": "the notebooks of docs/",
    "test_other_systems.py": "systems without what Linux has",
    "test_readmes.py": "the code blocks of every page",
    "trainers/test_interrupted.py": "apply and revert, interrupted",
    "trainers/test_upstream.py": "the patches on real checkouts",
    "training/test_callbacks.py": "the callbacks of Lightning and of transformers",
    "training/test_checkpoints.py": "the checkpoint of a run that is annealed",
    "training/test_distributed.py": "Anneal and Monitor under DDP and FSDP",
}
ELSEWHERE = {
    "_public": "test_import.py",
    "adapt": "adapt/test_distilling.py",
    "adapters": "golden/test_last_release.py",
    "analysis": "analysis/test_report.py",
    "attention": "attention/test_backend.py",
    "attention/counting": "patching/test_verify.py",
    "attention/cpu": "native/test_attention.py",
    "attention/proxies": "codebases/test_symbolic.py",
    "attention/scaling": "functional/test_scale.py",
    "bench": "bench/test_attention.py",
    "codebases": "codebases/zoo/test_zoo.py",
    "codebases/checkout": "checkpoints/test_building.py",
    "codebases/dinov1": "codebases/test_dino.py",
    "codebases/dinov2": "codebases/test_dino.py",
    "codebases/dinov3": "codebases/test_dino.py",
    "codebases/features": "probes/test_features.py",
    "codebases/registers": "mechanisms/test_registers.py",
    "codebases/torchvision": "codebases/test_mha.py",
    "codebases/vit": "mechanisms/test_mechanisms.py",
    "data": "data/test_scenes.py",
    "data/convert": "data/convert/test_toolbox.py",
    "demo": "demo/test_run.py",
    "errors": "test_registry.py",
    "functional": "functional/test_entmax.py",
    "machine": "cli/test_env.py",
    "native/rows": "functional/test_entmax.py",
    "params": "test_spec.py",
    "patching/description": "patching/test_inplace.py",
    "probes": "probes/run/test_runner.py",
    "probes/depth": "probes/test_heads.py",
    "probes/run/paths": "probes/run/test_command.py",
    "record": "patching/test_record.py",
    "results": "results/test_table.py",
    "stamp": "golden/test_last_release.py",
    "swap": "patching/test_faults.py",
    "testing": "testing/test_models.py",
    "trainers": "trainers/test_networks.py",
    "trainers/launch/xformers": "trainers/launch/test_cpu.py",
    "training": "training/test_monitor.py",
}


def below(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


def own(module: str) -> str:
    """The file that is named after a module."""
    path = Path(module)
    return below(path.parent.as_posix(), f"test_{path.name.lstrip('_')}.py")


def of_room(room: str) -> set[str]:
    """The files that are named after a room: in its folder, or beside it."""
    path = Path(room)
    return {f"{room}/test_{path.name}.py", below(path.parent.as_posix(), f"test_{path.name}.py")}


NAMED = {own(module) for module in MODULES} | {file for room in ROOMS for file in of_room(room)}


def test_a_file_is_named_after_what_it_tests() -> None:
    loose = {file for file in FILES if not any(Path(file).is_relative_to(folder) for folder in FOLDERS)}
    stray = loose - NAMED - ACROSS.keys()
    assert not stray, "name them after modules, or say in ACROSS what they are about"


def test_a_module_is_tested_somewhere() -> None:
    untested = {
        module
        for module in MODULES - ELSEWHERE.keys()
        if own(module) not in FILES and (room := Path(module).parent.as_posix()) not in ELSEWHERE
        if not of_room(room) & FILES
    }
    assert not untested, "write a file of their names, or say in ELSEWHERE what proves them"


def test_the_tables_hold_nothing_that_is_not_so() -> None:
    assert ACROSS.keys() <= FILES - NAMED and set(ELSEWHERE.values()) <= FILES
    assert all((TESTS / folder).is_dir() for folder in FOLDERS)
    assert ELSEWHERE.keys() <= MODULES | ROOMS and not {name for name in ELSEWHERE if own(name) in FILES}
    alone = {module for module in MODULES if own(module) not in FILES and module not in ELSEWHERE}
    needed = {Path(module).parent.as_posix() for module in alone}
    assert ELSEWHERE.keys() & ROOMS <= needed, "every module there has a file of its own"
