"""Queries, keys, values to output: the dispatcher and its backends."""

from .backend import Backend, register_backend
from .call import AttentionCall
from .dispatch import attention, choose_backend
from .reference import attention_weights

__all__ = ["AttentionCall", "Backend", "attention", "attention_weights", "choose_backend", "register_backend"]
