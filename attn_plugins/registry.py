"""One registry for normalizers, mechanisms and adapters: decorators for code, entry points for packages."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from .errors import PluginImportError, UnknownPluginError
from .plugin_modules import import_plugin_modules

__all__ = ["ADAPTERS", "MECHANISMS", "NORMALIZERS", "Registry", "register_mechanism", "register_normalizer"]

T = TypeVar("T")

BEFORE_LOOKING: list[Callable[[], object]] = []
"""Called before the first look-up: they import what registers the built-in plugins."""

UNREGISTERED = "unregistered"
"""What precedes the name of a callable that was used without being registered: ``unregistered:MODULE.QUALNAME``."""


class Registry(Generic[T]):
    """Named objects of one kind.

    Names come from ``register``, or from the modules of ``ATTN_PLUGINS_IMPORT`` and the entry points of installed
    packages, which are loaded the first time that a name is asked for. A name is looked up here and never imported or
    evaluated. Upper and lower case are the same; the lower case is the name.

    Attributes:
        caches: called when names are taken away, to forget what was made of them.

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
        self._loaded = False
        self.caches: list[Callable[[], object]] = []

    def register(self, name: str, entry: T) -> T:
        """Add ``entry`` under ``name``.

        Raises:
            ValueError: the name is taken, in whatever case, or has a character that spec strings use (``+ : , = @``).
        """
        name, given = name.lower(), name
        if not name or set(name) & set("+:,=@ ") or name == UNREGISTERED:
            raise ValueError(
                f"{given!r} cannot name a {self.kind}: spec strings use '+', ':', ',', '=', '@', spaces and "
                f"{UNREGISTERED!r}"
            )
        if name in self._entries:
            case = f" ({given!r} differs in case only)" if given != name else ""
            raise ValueError(f"a {self.kind} named {name!r} is registered already{case}; choose another name")
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> T:
        """The entry called ``name``.

        Raises:
            UnknownPluginError: no such entry; the message lists near matches and all known names.
        """
        if name not in self:
            raise UnknownPluginError(self.unknown(name))
        return self._entries[name.lower()]

    def unknown(self, name: str) -> str:
        """The message for a name that is not registered."""
        near = difflib.get_close_matches(name.lower(), self._entries, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        return f"unknown {self.kind} {name!r}.{hint} Registered: {', '.join(sorted(self._entries)) or 'none'}."

    def __contains__(self, name: str) -> bool:
        self.load()
        return name.lower() in self._entries

    def __iter__(self) -> Iterator[str]:
        self.load()
        return iter(self._entries)

    def values(self) -> list[T]:
        """All entries, in the order of registration."""
        self.load()
        return list(self._entries.values())

    @contextlib.contextmanager
    def temporarily(self) -> Iterator[None]:
        """Within this context names can be added freely; at its end they are forgotten. For tests and notebooks.

        Example:
            >>> with NORMALIZERS.temporarily():
            ...     attn_plugins.register_normalizer("mine")(mine)
        """
        self.load()  # first: what is loaded inside would be forgotten and never come again
        before = dict(self._entries)
        try:
            yield
        finally:
            self._entries.clear()
            self._entries.update(before)
            for forget in self.caches:
                forget()

    def load(self) -> None:
        """Import the built-in plugins, the modules that the environment names, and what installed packages add; once.

        Raises:
            PluginImportError: one of them does not import.
        """
        if self._loaded:
            return
        self._loaded = True  # first: what is loaded may ask for names itself
        try:
            for register_built_in in BEFORE_LOOKING:
                register_built_in()
            import_plugin_modules()
            for point in entry_points(group=self.group):
                self._add(point)
        except BaseException:
            self._loaded = False
            raise

    def _add(self, point: EntryPoint) -> None:
        try:
            entry = self._wrap(point.load())
        except (ImportError, AttributeError) as error:
            raise PluginImportError(
                f"the {self.kind} {point.name!r} of {point.dist.name if point.dist else 'a package'} ({point.value}) "
                f"does not load: {error}; repair or uninstall that package"
            ) from error
        # A package may register by decorator when it is imported, and name the same thing as an entry point.
        if self._entries.get(point.name.lower()) != entry:
            self.register(point.name, entry)


@dataclass(frozen=True)
class NormalizerEntry:
    """A registered normalizer: a function of scores, or an ``nn.Module`` class built per attention layer.

    Attributes:
        factory: ``f(scores, dim=-1, **params)``, whatever its first argument is called, or a class called as
            ``cls(num_heads=H, **params)``.
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

    A function takes ``(scores, dim=-1, **params)``, whatever its first argument is called, and returns weights of the
    same shape. A class is built once per attention layer as ``cls(num_heads=H, **params)``; its
    ``forward(scores, dim=-1)`` takes scores ``[..., H, N, S]``, and its parameters join the model's.
    ``attn_plugins.testing.check_normalizer(name)`` says whether it does what attention needs.

    Args:
        name: the name in spec strings, in any case; the lower case is the canonical one.
        alpha: for members of the entmax family, the exponent or the name of the parameter that holds it;
            it lets ``attn_plugins.attention`` use fused kernels. Leave it out for anything else.

    Raises:
        ValueError: the name is taken or not a valid name, or what is registered cannot be called so.

    Example:
        >>> @attn_plugins.register_normalizer("relu")
        ... def relu_attention(scores, dim=-1):
        ...     return scores.relu() / scores.shape[dim]
    """

    def decorate(factory: F) -> F:
        _check_callable(name, factory)
        NORMALIZERS.register(name, NormalizerEntry(factory, alpha))
        return factory

    return decorate


def _check_callable(name: str, factory: Any) -> None:
    wanted = "cls(num_heads=H)" if isinstance(factory, type) else "f(scores, dim=-1)"
    try:
        signature = inspect.signature(factory)
    except TypeError as error:
        raise ValueError(f"the normalizer {name!r} is called as {wanted}; this is no callable: {factory!r}") from error
    except ValueError:
        return  # builtins such as torch.softmax have no signature
    try:
        _ = signature.bind_partial(num_heads=1) if isinstance(factory, type) else signature.bind_partial(None, dim=-1)
    except TypeError as error:
        raise ValueError(f"the normalizer {name!r} is called as {wanted}: {error} in {signature}") from error


def register_mechanism(name: str) -> Callable[[T], T]:
    """Decorator: register a token mechanism class (see ``attn_plugins.mechanisms``).

    Args:
        name: the name in spec strings, in any case; the lower case is the canonical one.

    Raises:
        ValueError: the name is taken or not a valid name.
    """

    def decorate(cls: T) -> T:
        MECHANISMS.register(name, cls)
        return cls

    return decorate
