"""Aligned tables."""

import pytest

from attn_plugins.text import columns


def test_words_stand_left_and_numbers_right() -> None:
    rows = [("", "ms", "×"), ("softmax", "26.1", "1.00"), ("a", "5", "0.5")]
    assert columns(rows) == ["         ms    ×", "softmax  26.1  1.00", "a        5     0.5"]
    assert columns(rows, numbers=True) == ["           ms     ×", "softmax  26.1  1.00", "a           5   0.5"]


def test_no_rows_and_rows_of_unequal_length() -> None:
    assert columns([]) == []
    with pytest.raises(ValueError):
        columns([("a", "b"), ("c",)])
