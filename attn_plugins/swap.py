"""How a module gets another class, and whatever else a patch leaves on a model: put on, taken off, copied, pickled.

A patched module is of a subclass of its class, made at run time: isinstance, state_dict, attributes, hooks and the
class's name stay as they were (FSDP's wrapping policies and transformers go by the name). The overrides of several
plugins lie over each other as layers. What else a patch leaves are attributes, submodules and buffers, whose names
begin with ``PREFIX``, and hooks, which are the functions marked by ``hook``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from torch import nn

from .torch_names import register_hook

__all__ = [
    "COPIED",
    "PREFIX",
    "Overrides",
    "Starts",
    "add_hook",
    "add_layer",
    "all_or_nothing",
    "bare",
    "base_class",
    "has_layer",
    "hidden_methods",
    "hook",
    "is_patched",
    "layers_of",
    "remove",
    "remove_hooks",
    "remove_layers",
    "restore",
    "snapshot",
    "start_plugins",
    "starts",
]

Overrides = Callable[[type], dict[str, Any]]
"""From a class to the methods of its subclass; hashable, and pickled by its name or its fields."""

PREFIX = "attn_plugins_"
"""Of every attribute, submodule and buffer that a patch adds to a module."""

_LAYER = "_attn_plugins_layer"
_BASE = "_attn_plugins_base"
_MADE_BY = "_attn_plugins_made_by"
_STORES = ("_modules", "_buffers", "_parameters")
_HOOKS = {
    "_state_dict_hooks": (),
    "_load_state_dict_pre_hooks": (),
}


# --- classes


def add_layer(module: nn.Module, overrides: Overrides) -> None:
    """Swap the class of ``module`` for a subclass with ``overrides(class)``."""
    module.__class__ = layered(type(module), overrides)


def layered(base: type, overrides: Overrides) -> type:
    """The subclass of ``base`` with ``overrides(base)``; the same one at every call.

    Overrides that look up by a name what they do tell what has it as ``made_by``: where that is another thing than it
    was, the subclass is made anew.
    """
    made_by = getattr(overrides, "made_by", None)
    # Found among the subclasses and not in a cache, which would keep classes alive for ever.
    subclasses: list[type] = type.__subclasses__(base)
    for cls in subclasses:
        if vars(cls).get(_LAYER) == overrides and vars(cls)[_MADE_BY] is made_by:
            return cls
    namespace = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce_ex,
        "__prepare_scriptable__": _refuse_script,
        _BASE: base_class(base),
        _LAYER: overrides,
        _MADE_BY: made_by,
        **_container(base),
        **overrides(base),
    }
    metaclass: Any = type(base)
    made: type = metaclass(base.__name__, (base,), namespace)
    return made


def _container(base: Any) -> dict[str, Any]:
    """For a ``Sequential`` or ``ModuleList``, which run what they hold: what a patch adds is none of it."""
    if not issubclass(base, nn.Sequential | nn.ModuleList) or _LAYER in vars(base):
        return {}

    def its_own(self: Any) -> list[nn.Module]:
        return [module for name, module in self._modules.items() if not name.startswith(PREFIX)]

    return {"__iter__": lambda self: iter(its_own(self)), "__len__": lambda self: len(its_own(self))}


def remove_layers(module: nn.Module, keep: Callable[[Overrides], bool] = lambda overrides: False) -> None:
    """Take the layers of ``module`` off, down to the first from above that is to be kept."""
    cls: Any = type(module)
    while _LAYER in vars(cls) and not keep(vars(cls)[_LAYER]):
        cls = cls.__base__
    if cls is not type(module):
        module.__class__ = cls


def base_class(cls: type) -> type:
    """The class that ``cls`` was made from by layers, or ``cls`` itself."""
    base: type = vars(cls).get(_BASE, cls)
    return base


def bare(module: nn.Module) -> type:
    """The class of ``module`` without its layers."""
    return base_class(type(module))


def layers_of(module: nn.Module) -> list[Overrides]:
    """The layers that run, from the lowest: also those below a class that another library made since."""
    return [vars(cls)[_LAYER] for cls in reversed(type(module).__mro__) if _LAYER in vars(cls)]


def has_layer(module: nn.Module, overrides: Overrides) -> bool:
    """Whether ``overrides`` are among the layers of ``module`` that run."""
    return overrides in layers_of(module)


def is_patched(module: nn.Module) -> bool:
    """Whether a layer is on ``module`` or below its class."""
    return any(_LAYER in vars(cls) for cls in type(module).__mro__)


def hidden_methods(module: nn.Module, cls: type) -> list[str]:
    """Methods of ``cls`` that attributes of the instance hide (accelerate's hooks set ``forward`` there)."""
    return [name for name, value in vars(cls).items() if isinstance(value, FunctionType) and name in vars(module)]


def _refuse_script(self: nn.Module) -> nn.Module:
    from .errors import UnsupportedModelError

    raise UnsupportedModelError(
        f"torch.jit.script compiles the source of {type(self).__qualname__}, which computes softmax, and not what it "
        "is patched with; trace or export it inside `with attn_plugins.exportable(model):` instead"
    )


def _reduce_ex(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    # Layers are made at run time, so pickle and deepcopy go by what they are made from.
    layers: list[Overrides] = []
    cls: Any = type(self)
    while _LAYER in vars(cls):
        layers.append(vars(cls)[_LAYER])
        cls = cls.__base__
    return _rebuild, (cls, *reversed(layers)), self.__getstate__()


def _rebuild(base: type, *layers: Overrides) -> nn.Module:
    cls: Any = base
    for overrides in layers:
        cls = layered(cls, overrides)
    module: nn.Module = cls.__new__(cls)
    return module


class Starts:
    """``init_weights`` of a model, set on the instance, that also starts what plugins have added to the model.

    Trainers that build on the meta device (DINOv3) give all parameters their values there, and find the model by its
    class, which therefore stays.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = type(self.module).init_weights(self.module, *args, **kwargs)
        start_plugins(self.module)
        return result


def start_plugins(model: nn.Module) -> None:
    """Give the parameters that plugins have added to ``model`` the values that they start with."""
    for module in model.modules():
        held: dict[str, Any] = dict(module._modules)
        for name, added in held.items():
            if added is None or not name.startswith(PREFIX):
                continue
            if hasattr(added, COPIED):
                own = dict(module.named_parameters(recurse=False))
                for key, parameter in added.named_parameters():
                    parameter.data.copy_(own[key])
            elif hasattr(added, "reset_parameters"):
                added.reset_parameters()


def starts(base: Any) -> dict[str, Any]:
    """The same as a class layer, which pickles of release 0.1 have."""

    def init_weights(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = base.init_weights(self, *args, **kwargs)
        start_plugins(self)
        return result

    return {"init_weights": init_weights}


COPIED = PREFIX + "copied"
"""Attribute of a module whose parameters start as those of the module that holds it, and not by reset_parameters."""


# --- hooks, attributes, submodules, buffers


def hook(function: Any) -> Any:
    """Mark a module-level function as one that ``add_hook`` may leave on a module; it is pickled by its name."""
    function._attn_plugins_hook = True
    return function


def add_hook(module: nn.Module, kind: str, function: Callable[..., Any]) -> None:
    """Register ``function`` by ``module.register_<kind>``, once."""
    if not any(given is function or getattr(given, "hook", None) is function for given in _hooks(module)):
        register_hook(module, kind, function)


def remove_hooks(module: nn.Module, *functions: Callable[..., Any]) -> None:
    """Take these off ``module``, whatever they were registered for."""
    for store in _HOOKS:
        held: dict[Any, Any] = vars(module).get(store, {})
        for key in [key for key, given in held.items() if getattr(given, "hook", given) in functions]:
            del held[key]


def _hooks(module: nn.Module) -> list[Any]:
    return [given for store in _HOOKS for given in vars(module).get(store, {}).values()]


def _is_ours(given: Any) -> bool:
    # torch wraps load_state_dict pre-hooks in an object that holds the function.
    return hasattr(given, "_attn_plugins_hook") or hasattr(getattr(given, "hook", None), "_attn_plugins_hook")


def remove(module: nn.Module) -> None:
    """Take off ``module`` what a patch has left there: class layers, hooks, and what ``PREFIX`` names."""
    _write(module, base_class(type(module)), {}, {store: {} for store in _STORES}, {store: {} for store in _HOOKS})


# --- all or nothing

State = list[tuple[nn.Module, tuple[Any, ...]]]


def snapshot(model: nn.Module) -> State:
    """What patches have left on ``model``, to be given to ``restore``."""
    return [(module, _read(module)) for module in model.modules()]


def restore(model: nn.Module, state: State) -> None:
    """Make what patches have left on ``model`` what it was; modules that are new since are cleaned."""
    known = {id(module) for module, _ in state}
    for module in list(model.modules()):
        if id(module) not in known and is_patched(module):
            remove(module)
    for module, left in state:
        _write(module, *left)


@contextlib.contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Whatever is raised inside, Ctrl-C included, leaves ``model`` as it was before."""
    state = snapshot(model)
    try:
        yield
    except BaseException:
        restore(model, state)
        raise


def _ours(store: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in store.items() if name.startswith(PREFIX) or isinstance(value, Starts)}


def _read(module: nn.Module) -> tuple[Any, ...]:
    own = vars(module)
    hooks = {store: {key: h for key, h in own.get(store, {}).items() if _is_ours(h)} for store in _HOOKS}
    return type(module), _ours(own), {store: _ours(own[store]) for store in _STORES}, hooks


def _write(
    module: nn.Module,
    cls: type,
    attributes: dict[str, Any],
    stores: dict[str, dict[str, Any]],
    hooks: dict[str, dict[Any, Any]],
) -> None:
    # Straight into the dicts: what nn.Module does when attributes are set may itself fail half way.
    own = vars(module)
    for held, wanted in [(own, attributes), *((own[store], stores[store]) for store in _STORES)]:
        for name in _ours(held):
            del held[name]
        held.update(wanted)
    for store, wanted_hooks in hooks.items():
        held_hooks = own.get(store, {})
        for key in [key for key, given in held_hooks.items() if _is_ours(given) and key not in wanted_hooks]:
            del held_hooks[key]
        held_hooks.update(wanted_hooks)
    if type(module) is not cls:
        module.__class__ = cls
