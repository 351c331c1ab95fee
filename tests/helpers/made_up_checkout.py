"""Files of an upstream that is made up, and a patch for them."""

import hashlib

from attn_plugins.trainers.insertions import Patch

__all__ = ["INSERTIONS", "UPSTREAM", "made_up"]

UPSTREAM = {f"folder{n}/file.py": b"".join(b"line %d\n" % line for line in range(20 * n)) for n in (1, 2, 3, 4)}
INSERTIONS = {file: [(3, [b"ours a\n"]), (9, [b"ours b\n", b"ours c\n"])] for file in UPSTREAM}


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def made_up(count: int) -> Patch:
    """A patch of the first `count` files."""
    before = {file: blob(content) for file, content in list(UPSTREAM.items())[:count]}
    patch = Patch("made-up", "https://example.org/repo", ("0" * 40,), before, {}, INSERTIONS)
    after = {file: blob(patch.insert(file, UPSTREAM[file])) for file in before}
    return Patch("made-up", "https://example.org/repo", ("0" * 40,), before, after, INSERTIONS)
