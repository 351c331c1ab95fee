"""The diffs hold our lines alone, and git reads them as we do."""

import re
import subprocess
from pathlib import Path

import pytest

from attn_plugins.trainers.insertions import PATCHES, available, load

HEADER = re.compile(rb"diff --git a/\S+ b/\S+|index [0-9a-f]{40}\.\.[0-9a-f]{40} 100644|--- a/\S+|\+\+\+ b/\S+")
HUNK = re.compile(rb"@@ -\d+,0 \+\d+(,\d+)? @@")


@pytest.mark.parametrize("name", available())
def test_no_line_of_upstreams_is_in_a_patch(name: str) -> None:
    for line in (PATCHES / f"{name}.patch").read_bytes().splitlines():
        inserted = line.startswith(b"+") and not line.startswith(b"+++ ")
        # A hunk's heading would quote the upstream function that it is in: HUNK ends with the second @@.
        assert inserted or HEADER.fullmatch(line) or HUNK.fullmatch(line), line


def test_the_patches_in_the_folder_are_those_of_the_manifest() -> None:
    assert sorted(path.stem for path in PATCHES.glob("*.patch")) == available()


@pytest.mark.parametrize("name", available())
def test_the_manifest_names_the_blobs_that_the_diff_names(name: str) -> None:
    patch = load(name)
    text = (PATCHES / f"{name}.patch").read_text()
    for file, before in patch.before.items():
        assert f"+++ b/{file}\n" in text
        assert f"index {before}..{patch.after[file]} 100644\n" in text


@pytest.mark.parametrize("name", available())
def test_git_inserts_the_same_lines_at_the_same_places(tmp_path: Path, name: str) -> None:
    patch = load(name)
    ours = {}
    for file in patch.before:
        upstream = b"".join(b"upstream line %d\n" % n for n in range(1, 400))
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(upstream)
        ours[file] = patch.insert(file, upstream)
        assert patch.remove(file, ours[file]) == upstream
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "apply", "--unidiff-zero", str(PATCHES / f"{name}.patch")], cwd=tmp_path, check=True)
    assert {file: (tmp_path / file).read_bytes() for file in ours} == ours
