"""Queries, keys, values to output: the dispatcher and its backends."""

from .dispatch import attention, choose_backend
from .reference import attention_weights

__all__ = ["attention", "attention_weights", "choose_backend"]
