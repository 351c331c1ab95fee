"""``patch``, ``unpatch``, ``patched``: plugins on a model, in place and all-or-nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import nn

from .. import swap
from ..codebases.answer import NORMALIZER
from ..codebases.base import head_dim
from ..codebases.fused import answer_functions
from ..codebases.proof import ANSWERED
from ..errors import UnsupportedModelError
from ..functional.normalizer import build, keep_scales
from ..mechanisms import as_in_place, plan_mechanisms
from ..record import RECORD
from ..spec import Plugin, Spec, parse, settled
from ..swap import PREFIX
from ..torch_names import tell_if_newer
from .description import describe
from .record import forget_record, stamp, write_records
from .scales import Scales
from .sites import Layers, Site, Survey, named_reasons, select_layers, survey

__all__ = ["patch", "patched", "unpatch"]

logger = logging.getLogger("attn_plugins")

M = TypeVar("M", bound=nn.Module)

COLLECTING = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "PeftModel"}
WRAPPERS = {*COLLECTING, "DataParallel", "OptimizedModule", "BaseTuner"}  # the last is in every PeftModel


def patch(
    model: M,
    spec: str | Spec | Callable[..., Any],
    layers: Layers = None,
    *,
    scales: str | os.PathLike[str] | Scales | None = None,
    other_backbone: bool = False,
) -> M:
    """Replace the attention normalizer of a model, and add token mechanisms, in place.

    Parameters, buffers, hooks and attributes stay; modules only change their class to a subclass of it.
    Everything is checked before the first module is changed, and if a change fails, those before it are undone.
    Patching again replaces what an earlier patch did to the chosen layers, and patching twice with the same
    spec changes nothing.

    Args:
        model: any module with attention that an adapter knows, e.g. a ViT of DINOv1/v2/v3, timm, transformers
            or torchvision; it may be wrapped (DDP) or be a single attention module.
        spec: e.g. ``"entmax15"``, ``"entmax_alpha:init=1.2"``, ``"entmax15+registers:num=4"``; or
            ``Spec.of("entmax", alpha=1.3)``; or a normalizer itself: a function ``(scores, dim=-1) -> weights``, or a
            ``nn.Module`` class, called as ``cls(num_heads=H)`` for each layer; with parameters as a
            ``functools.partial`` with keywords, with mechanisms as ``Spec.of(mine) + Spec.of("registers")``. One that
            is not registered is recorded as ``unregistered:MODULE.QUALNAME``, a label: two functions of one name
            cannot be told apart, and a file with it is refused until the function is registered. A spec that names
            layers itself, ``"entmax15@6-11"``, says it of the whole model: the others get their own attention back.
        layers: which attention layers get the normalizer, in the order of ``describe``: an index, a slice, an
            iterable of indices or names, the name of a module (itself or one that contains the attention,
            ``"blocks.3"``), or a predicate ``(name, module) -> bool``. None means all, except pooling heads:
            they are patched only by a name or a predicate. Token mechanisms are those of the last spec, for the
            whole ViT, whatever ``layers`` says. Not for a spec that says something for each layer.
        scales: factors on the scores of every head that were fitted to this backbone (``attn_plugins.calibrate``):
            a file, or the name of one that comes with the package, ``"dinov2_vits14"``. The spec gets
            ``scale=per_head``.
        other_backbone: take ``scales`` even where they were fitted on another one.

    Returns:
        ``model``.

    Raises:
        UnknownPluginError: the spec has a name that is not registered.
        UnsupportedModelError: the model has no attention that can be patched, or an option of it is not supported.
        ValueError: a bad spec, a callable that returns no weights, a parameter out of range, layers that do not
            exist, scales of another normalizer or backbone, or learnable parameters for a model that DDP, FSDP or peft
            holds already.

    Warns:
        UserWarning: some attention of the model is not reached by any adapter; the warning names it.
    """
    tell_if_newer()
    parsed = settled(parse(spec), new=True)
    fitted = None if scales is None else Scales.read(scales)
    if fitted is not None:
        parsed = fitted.spec_for(parsed)
    found = survey(model)
    parsed = as_in_place(parsed, model)
    chosen = select_layers(found, _layers_of(parsed, layers, found))
    plugins = _plugins(parsed, chosen, found)
    freed = [site for site in found.layers if parsed.names_layers and site not in chosen]
    _check_nested(chosen, found, freed)
    for site in chosen:
        _check_class(site.path, site.module)
        _check_not_hidden(site.path, site.module, swap.layered(swap.bare(site.module), site.layer))
        site.adapter.check(site.module)
    again = fitted is None  # patching again with the same spec keeps what was learned
    normalizers = [_build_normalizer(plugin, site, again) for plugin, site in zip(plugins, chosen, strict=True)]
    if fitted is not None:
        fitted.check(found.layers, chosen, other_backbone)
        for site, normalizer in zip(chosen, normalizers, strict=True):
            fitted.put(found.layers.index(site), normalizer)
    plan = plan_mechanisms(model, parsed.mechanisms)
    added = [n for n, site in zip(normalizers, chosen, strict=True) if n is not getattr(site.module, NORMALIZER, None)]
    if plan.adds_parameters or any(isinstance(normalizer, nn.Module) for normalizer in added):
        _check_not_collected(model, parsed)

    with swap.all_or_nothing(model):
        for site in freed:
            _free(site)
        for site, normalizer in zip(chosen, normalizers, strict=True):
            _apply(site, normalizer)
        plan.apply()
        for module in model.modules():
            own = callable(getattr(type(module), "init_weights", None)) and "init_weights" not in vars(module)
            if own and _has_plugin_parameters(module):
                vars(module)["init_weights"] = swap.Starts(module)
        write_records(model, parsed)
        root = _innermost(model)
        prefix = _path_of(model, root)
        stamp(root, parsed, {site.path.removeprefix(prefix): _spec_now(site) for site in found.layers})
    answer_functions()
    if logger.isEnabledFor(logging.INFO):
        backends = ", ".join(sorted({line.backend for line in describe(model) if line.backend}))
        logger.info(
            "patched %d of %d attention layers with %s, backend %s", len(chosen), len(found.layers), parsed, backends
        )
    if found.unreached:
        _warn(found, parsed)
    return model


def unpatch(model: M) -> M:
    """Undo ``patch``: the original classes again, plugin parameters removed, outputs as before bit for bit.

    Args:
        model: the module that was patched, or one that contains it; one that is not patched stays as it is.

    Returns:
        The same model.

    Raises:
        ValueError: another library has made a subclass of a patched class since (``fully_shard`` on the
            attention itself), or set a method on a patched module; nothing is changed.
    """
    modules = dict(model.named_modules())
    for path, module in modules.items():
        _check_class(path, module)
        if swap.is_patched(module):
            _check_not_hidden(path, module, type(module))
    with swap.all_or_nothing(model):
        for module in modules.values():
            swap.remove(module)
    return model


@contextlib.contextmanager
def patched(model: M, spec: str | Spec | Callable[..., Any], layers: Layers = None, **options: Any) -> Iterator[M]:
    """Context in which ``model`` is patched; what it was before, patched or not, comes back at the end.

    Args:
        model, spec, layers: as ``patch`` takes them.
        options: ``scales`` and ``other_backbone``, as ``patch`` takes them.

    Raises:
        UnknownPluginError, UnsupportedModelError, ValueError: as ``patch``; nothing is changed.
    """
    before = swap.snapshot(model)
    try:
        yield patch(model, spec, layers, **options)
    finally:
        swap.restore(model, before)


def _layers_of(spec: Spec, layers: Layers, found: Survey) -> Layers:
    """What ``layers`` is to ``select_layers``, where the spec may name them instead.

    Raises:
        ValueError: layers are given although the spec tells them apart, or it names one that there is not.
    """
    if spec.by_layer and layers is not None:
        raise ValueError(
            f"{str(spec)!r} says something for each layer and layers={layers!r} is given too; name the layers in the "
            "spec: name@6-11"
        )
    if not spec.names_layers:
        return layers
    return [index for index, plugin in enumerate(spec.for_layers(len(found.layers))) if plugin is not None]


def _plugins(spec: Spec, chosen: list[Site], found: Survey) -> list[Plugin]:
    """The normalizer of each chosen layer."""
    told = spec.for_layers(len(found.layers) if spec.names_layers else len(chosen))
    return [plugin for plugin in told if plugin is not None]


def _free(site: Site) -> None:
    """Give a layer its own attention back; mechanisms are put on again afterwards, by their plan."""
    for module, _ in [*site.containers, (site.module, site.layer)]:
        module.__class__ = swap.bare(module)
    vars(site.module).pop(NORMALIZER, None)
    vars(site.module).pop(ANSWERED, None)
    site.module._modules.pop(NORMALIZER, None)
    forget_record(site.module)


def _apply(site: Site, normalizer: Any) -> None:
    for module, layer in [*site.containers, (site.module, site.layer)]:
        module.__class__ = swap.bare(module)
        swap.add_layer(module, layer)
    # A normalizer with parameters is a submodule, a plain one an attribute: neither can be assigned over the other.
    vars(site.module).pop(NORMALIZER, None)
    site.module._modules.pop(NORMALIZER, None)
    setattr(site.module, NORMALIZER, normalizer)


def _has_plugin_parameters(module: nn.Module) -> bool:
    tensors = (*module.named_parameters(), *module.named_buffers())
    return any(PREFIX in name and not name.endswith(RECORD) for name, _ in tensors)


def _build_normalizer(plugin: Plugin, site: Site, again: bool) -> Any:
    current = getattr(site.module, NORMALIZER, None)
    if again and isinstance(current, nn.Module) and current.plugin == plugin:
        return current
    normalizer = build(plugin, site.adapter.num_heads(site.module), head_dim(site.module))
    keep_scales(current, normalizer)
    if isinstance(normalizer, nn.Module):
        weight = next((p for p in site.module.parameters() if p.is_floating_point()), None)
        if weight is not None:
            normalizer.to(weight.device, weight.dtype)
        normalizer.train(site.module.training)
    return normalizer


def _spec_now(site: Site) -> str | None:
    normalizer = getattr(site.module, NORMALIZER, None)
    return None if normalizer is None else str(normalizer.plugin)


def _check_class(path: str, module: nn.Module) -> None:
    cls = type(module)
    if swap.bare(module) is cls and swap.is_patched(module):
        raise ValueError(
            f"{path or 'the model'} was patched and then given the class {cls.__module__}.{cls.__qualname__} by "
            "another library (fully_shard?); patch and unpatch before that"
        )


def _check_not_hidden(path: str, module: nn.Module, cls: type) -> None:
    hidden = swap.hidden_methods(module, cls)
    if hidden:
        raise UnsupportedModelError(
            f"{path or 'the model'} has a {' and a '.join(hidden)} of its own, set on the module (as accelerate's "
            "hooks do), which hides that of its class; patch and unpatch while that is not set"
        )


def _check_nested(chosen: list[Site], found: Survey, freed: list[Site]) -> None:
    """Refuse attention that is chosen apart from attention around or inside it, which may compute it itself."""
    paths = {site.path for site in chosen}
    for other in (*found.layers, *found.pooling):
        if other.path in paths or (swap.is_patched(other.module) and other not in freed):
            continue
        for site in chosen:
            outer, inner = sorted((site.path, other.path), key=len)
            if not outer or inner.startswith(outer + "."):
                raise UnsupportedModelError(
                    f"{site.path or 'the model itself'} is chosen and {other.path or 'the model itself'} is not, but "
                    f"{outer or 'the model'} ({swap.bare(site.module if site.path == outer else other.module).__name__}"
                    f") computes attention in a method of its own around {inner}, and may compute that of the "
                    f"layer itself. Choose both with layers=, or leave layers out"
                )


def _check_not_collected(model: nn.Module, spec: Spec) -> None:
    for path, module in model.named_modules():
        if COLLECTING & {cls.__name__ for cls in type(module).__mro__}:
            raise ValueError(
                f"{str(spec)!r} adds parameters and {path or 'the model'} is a {type(module).__name__} already, which "
                "would neither synchronize nor save them; patch first, then wrap"
            )


def _innermost(model: nn.Module) -> nn.Module:
    """The model inside wrappers that hold nothing but it."""
    while WRAPPERS & {cls.__name__ for cls in type(model).__mro__}:
        inside = (model._modules.get(name) for name in ("module", "_orig_mod", "base_model", "model"))
        inner = next((module for module in inside if module is not None), None)
        if inner is None:
            break
        model = inner
    return model


def _path_of(model: nn.Module, inner: nn.Module) -> str:
    path = next(path for path, module in model.named_modules() if module is inner)
    return path + "." if path else ""


def _warn(found: Survey, spec: Spec) -> None:
    warnings.warn(
        f"{spec} reaches {len(found.layers)} attention layers and not these{named_reasons(found.unreached)}. "
        "attn_plugins.describe(model) lists all; attn_plugins.register_adapter adds an adapter",
        stacklevel=3,
    )
