"""What is said to a head that meets another backbone; that it is refused is tested where heads are loaded."""

from __future__ import annotations

from typing import Any

import pytest

from attn_plugins.probes.ownership import require_same_backbone

OWN = {"sha256": "aa", "digest": "11", "plugins": "softmax", "layers": [11], "norm": True, "cls_token": "none"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"digest": "22"}, r"digest: trained with '22', now '11'\. Its file is this one.*DINOV2_ROOT"),
        ({"digest": "22", "sha256": "bb"}, r"Its file was vit\.pth; give that as model\.backbone\.checkpoint"),
        ({"plugins": "entmax15"}, r"plugins: trained with 'entmax15', now 'softmax'\. Its file was vit\.pth"),
        ({"digest": "22", "layers": [5]}, r"layers: trained with \[5\].*Its file was vit\.pth"),
    ],
)
def test_the_remedy_is_that_of_what_differs(changes: dict[str, Any], told: str) -> None:
    require_same_backbone({**OWN, "checkpoint": "elsewhere.pth"}, OWN)
    with pytest.raises(ValueError, match=told):
        require_same_backbone({**OWN, "checkpoint": "vit.pth", **changes}, OWN)
