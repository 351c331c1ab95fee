"""Interrupt a function at every place where it could be interrupted, one after another."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

__all__ = ["every_fault"]

CALLS = ("open", "close", "read", "write", "stat", "lstat", "chmod", "replace", "rename", "unlink", "mkdir", "readlink")


def every_fault(start: Callable[[], object], action: Callable[[], object], *modules: ModuleType) -> Iterator[str]:
    """Run `start(); action()` again and again, each time with Ctrl-C one place later.

    The places are before and after every call of the operating system that Python code makes, and every line of
    `modules`. After each run its place is yielded, for the caller to look at what is left.
    """
    for places in (_calls, *((lambda stop, module=module: _lines(stop, module)) for module in modules)):
        at = 0
        while True:
            start()
            with places(at) as where:
                try:
                    action()
                except KeyboardInterrupt:
                    yield where[0]
                else:
                    break
            at += 1


@contextmanager
def _calls(stop: int) -> Iterator[list[str]]:
    where: list[str] = []
    count = 0

    def place(name: str) -> None:
        nonlocal count
        if count == stop:
            where.append(f"{name}, number {count}")
        count += 1
        if where and count == stop + 1:
            raise KeyboardInterrupt(where[0])

    def failing(name: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            place(f"before {name}")
            result = original(*args, **kwargs)
            if not hasattr(result, "close"):  # of an open file nobody but the caller can know
                place(f"after {name}")
            return result

        return call

    with ExitStack() as stack:
        for owner, name in (*((os, name) for name in CALLS), (io, "open")):
            stack.enter_context(mock.patch.object(owner, name, failing(name, getattr(owner, name))))
        yield where


@contextmanager
def _lines(stop: int, module: ModuleType) -> Iterator[list[str]]:
    where: list[str] = []
    count = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != module.__file__:
            return None
        if event == "line":
            count += 1
            if count == stop + 1:
                where.append(f"{module.__name__}, line {frame.f_lineno}")
                raise KeyboardInterrupt(where[0])
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield where
    finally:
        sys.settrace(before)
