"""What the tests of several trainers share."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """ImageNet's 1,281,167 entries, as DINOv2's index of it must have, all of eight images."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "train/n0").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(8):
        pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 96)).save(folder / f"train/n0/n0_{index}.JPEG")
    fields = [("actual_index", "<u4"), ("class_index", "<u4"), ("class_id", "U2"), ("class_name", "U1")]
    entries = np.zeros(1_281_167, dtype=fields)
    entries["actual_index"] = np.arange(len(entries)) % 8
    entries["class_id"] = "n0"
    np.save(folder / "entries-TRAIN.npy", entries)
    return f"ImageNet:split=TRAIN:root={folder}:extra={folder}"
