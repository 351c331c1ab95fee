"""One registry for normalizers, mechanisms and adapters: decorators for code, entry points for packages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from .errors import UnknownPluginError

__all__ = ["ADAPTERS", "MECHANISMS", "NORMALIZERS", "Registry", "register_mechanism", "register_normalizer"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Named objects of one kind.

    Names come from :meth:`register` or from the entry points of installed packages, which are loaded
    the first time that a name is asked for. A name is looked up here and never imported or evaluated.

    Args:
        kind: what the entries are, for error messages ("normalizer").
        group: entry-point group that other packages add to (``attn_plugins.normalizers``).
        wrap: makes an entry of what an entry point names; by default that is the entry itself.
    """

    def __init__(self, kind: str, group: str, wrap: Callable[[Any], T] = lambda loaded: loaded) -> None:
        self.kind = kind
        self.group = group
        self._wrap = wrap
        self._entries: dict[str, T] = {}
        self._entry_points_loaded = False

    def register(self, name: str, entry: T) -> T:
        """Add ``entry`` under ``name``.

        Raises:
            ValueError: the name is taken, or has a character that spec strings use (``+ : , =``).
        """
        if not name or set(name) & set("+:,= "):
            raise ValueError(f"{name!r} cannot name a {self.kind}: spec strings use '+', ':', ',', '=' and spaces")
        if name in self._entries:
            raise ValueError(f"a {self.kind} named {name!r} is registered already; choose another name")
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> T:
        """The entry called ``name``.

        Raises:
            UnknownPluginError: no such entry; the message lists near matches and all known names.
        """
        self._load_entry_points()
        if name not in self._entries:
            raise UnknownPluginError(self.unknown(name))
        return self._entries[name]

    def unknown(self, name: str) -> str:
        """The message for a name that is not registered."""
        near = difflib.get_close_matches(name, self._entries, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        return f"unknown {self.kind} {name!r}.{hint} Registered: {', '.join(sorted(self._entries)) or 'none'}."

    def __contains__(self, name: str) -> bool:
        self._load_entry_points()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load_entry_points()
        return iter(self._entries)

    def values(self) -> list[T]:
        """All entries, in the order of registration."""
        self._load_entry_points()
        return list(self._entries.values())

    def _load_entry_points(self) -> None:
        if self._entry_points_loaded:
            return
        self._entry_points_loaded = True  # first: what is loaded may ask for names itself
        try:
            for point in entry_points(group=self.group):
                self._add(point)
        except BaseException:
            self._entry_points_loaded = False
            raise

    def _add(self, point: EntryPoint) -> None:
        try:
            entry = self._wrap(point.load())
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"the {self.kind} {point.name!r} of {point.dist.name if point.dist else 'a package'} ({point.value}) "
                f"does not load: {error}; repair or uninstall that package"
            ) from error
        # A package may register by decorator when it is imported, and name the same thing as an entry point.
        if self._entries.get(point.name) != entry:
            self.register(point.name, entry)


@dataclass(frozen=True)
class NormalizerEntry:
    """A registered normalizer: a function of scores, or an ``nn.Module`` class built per attention layer.

    Attributes:
        factory: ``f(scores, dim=-1, **params)``, or a class called as ``cls(num_heads=H, **params)``.
        alpha: the entmax exponent that a fused kernel may use instead of calling the function: a number,
            the name of the parameter that holds it, or None where the function is all that is known.
    """

    factory: Callable[..., Any]
    alpha: float | str | None = field(default=None, compare=False)


def _normalizer_entry(loaded: Any) -> NormalizerEntry:
    return loaded if isinstance(loaded, NormalizerEntry) else NormalizerEntry(loaded)


NORMALIZERS: Registry[NormalizerEntry] = Registry("normalizer", "attn_plugins.normalizers", _normalizer_entry)
MECHANISMS: Registry[Any] = Registry("mechanism", "attn_plugins.mechanisms")
ADAPTERS: Registry[Any] = Registry("adapter", "attn_plugins.adapters")

F = TypeVar("F", bound=Callable[..., Any])


def register_normalizer(name: str, *, alpha: float | str | None = None) -> Callable[[F], F]:
    """Decorator: make a function or ``nn.Module`` class usable wherever a normalizer's name is.

    A function takes ``(scores, dim=-1, **params)`` and returns weights of the same shape. A class is built
    once per attention layer as ``cls(num_heads=H, **params)``; its ``forward(scores, dim=-1)`` takes scores
    ``[..., H, N, S]``, and its parameters join the model's.

    Args:
        name: the name in spec strings.
        alpha: for members of the entmax family, the exponent or the name of the parameter that holds it;
            it lets ``attn_plugins.attention`` use fused kernels. Leave it out for anything else.

    Raises:
        ValueError: the name is taken or not a valid name.

    Example:
        >>> @attn_plugins.register_normalizer("relu")
        ... def relu_attention(scores, dim=-1):
        ...     return scores.relu() / scores.shape[dim]
    """

    def decorate(factory: F) -> F:
        NORMALIZERS.register(name, NormalizerEntry(factory, alpha))
        return factory

    return decorate


def register_mechanism(name: str) -> Callable[[T], T]:
    """Decorator: register a token mechanism class (see :mod:`attn_plugins.mechanisms`)."""

    def decorate(cls: T) -> T:
        MECHANISMS.register(name, cls)
        return cls

    return decorate
