"""Where a checkpoint tells its plugin spec, and whether all the places agree."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..patching.record import METADATA_KEY, same_model
from ..record import records_in
from ..spec import computed, parse, settled
from ..swap import PREFIX
from .errors import CheckpointError
from .layout import flat_key, is_record

__all__ = ["Told", "agree", "canonical", "config_of_run", "plugin_keys", "repeats", "told"]

State = Mapping[str, Any]


@dataclass
class Told:
    """What the places of one checkpoint say.

    Attributes:
        spec: the canonical plugin spec; where layers differ, that of the last patch; None if nothing is said.
        source: the place that is believed.
        layers: {attention layer, as ``blocks.3.attn``: its spec}, as the layers' own records say; empty without them.
        order: of files before there were such records, where layers differ: the normalizer of each attention layer,
            None for one that is not patched; otherwise empty.
    """

    spec: str | None = None
    source: str | None = None
    layers: dict[str, str] = field(default_factory=dict)
    order: tuple[str | None, ...] = ()


def told(
    checkpoint: Any, states: Iterable[tuple[str, State]], where: str, config: Mapping[str, Any] | None = None
) -> Told:
    """Collect what a loaded checkpoint says of its spec: in tensors, metadata, arguments, our entry, ``config.json``.

    Args:
        checkpoint: its contents.
        states: (prefix of the backbone, state dict that holds it).
        where: the file, for messages.
        config: ``config.json`` beside it.

    Raises:
        CheckpointError: a record is damaged, or two places contradict each other.
    """
    result = Told()
    places: dict[str, str] = {}
    wholes: dict[str, None] = {}  # of each layer, what the model was patched with; in order
    for prefix, state in states:
        found = _records(state, prefix, where)
        result.layers |= {layer: entry["spec"] for layer, entry in found.items()}
        wholes |= dict.fromkeys(entry.get("whole", entry["spec"]) for entry in found.values())
        record = _metadata(state, prefix, where)
        if record is not None:
            places["state dict metadata"] = _spec_in(record, f"the _metadata of {where}")
            result.order = _order(record.get("layers", []), where)
    if isinstance(checkpoint, Mapping):
        places |= _top_level(checkpoint, where)
    if config and METADATA_KEY in config:
        places["config.json"] = _spec_in(config[METADATA_KEY], f"config.json of {where}")
    recorded = list(dict.fromkeys(canonical(spec, where) for spec in wholes))
    others = {place: canonical(spec, where) for place, spec in places.items()}
    contradicting = recorded and any(not any(same_model(spec, own) for own in recorded) for spec in others.values())
    if contradicting or len(set(map(_meant, others.values()))) > 1 or len(set(map(_mechanisms, recorded))) > 1:
        said = {"the layers' records": " and ".join(recorded)} if recorded else {}
        raise CheckpointError(
            f"{where} tells more than one spec: {said | places}. It was put together from different runs."
        )
    result.layers = {layer: canonical(spec, where) for layer, spec in result.layers.items()}
    if recorded:
        result.order = ()
        exact = [spec for spec in others.values() if spec in recorded]
        result.spec, result.source = next(iter(exact), recorded[-1]), "the layers' records"
    elif others:
        result.source, result.spec = next(iter(others.items()))
    return result


def config_of_run(path: Path, inside: str | None) -> tuple[str, str] | None:
    """(spec, config) of DINOv2's and DINOv3's OUTPUT/config.yaml, the file being in OUTPUT or OUTPUT/eval/ITERATION.

    A run that was refused may have written the config anew since: what the file itself says is believed, and the
    difference is warned of.

    Raises:
        CheckpointError: the config cannot be read.
    """
    folder = path.absolute().parent
    output = folder.parents[1] if len(folder.parents) > 1 and folder.parent.name == "eval" else folder
    for config in (folder / "config.yaml", output / "config.yaml"):
        if config.is_file():
            spec = _spec_in_yaml(config, path)
            if spec is not None and inside is not None and not same_model(canonical(spec, str(config)), inside):
                warnings.warn(
                    f"{path} itself tells {inside!r}, which is used, and {config} {spec!r}: the config is of another "
                    "run, or was written anew since",
                    stacklevel=2,
                )
            if spec is not None:
                return canonical(spec, str(config)), str(config)
    return None


def agree(recorded: str | None, requested: str | None, where: str) -> str | None:
    """The spec to use with a checkpoint: its own; a request may repeat it but not contradict it.

    Args:
        recorded: what the file says, None if it is silent.
        requested: what the caller asks for, None for "whatever the file says".
        where: the file, for the message.

    Returns:
        The canonical spec; None if neither says anything.

    Raises:
        CheckpointError: the two differ.
    """
    if recorded is None or requested is None:
        wanted = str(settled(parse(requested), new=True)) if requested else None
        return canonical(recorded, where) if recorded else wanted
    if _unregistered(canonical(recorded, where)):
        return str(parse(requested))  # a callable without a name, which only the caller can know
    if not repeats(requested, canonical(recorded, where)):
        raise CheckpointError(
            f"{where} was trained with {canonical(recorded, where)!r} and {str(parse(requested))!r} was asked for: the "
            "weights mean something only with their own attention. Ask for the file's own, or for none."
        )
    return canonical(recorded, where)


def repeats(requested: str, recorded: str) -> bool:
    """Whether a spec that is asked for is the recorded one, in canonical form; what it leaves unsaid may be either."""
    return any(same_model(str(settled(parse(requested), new=new)), recorded) for new in (False, True))


def canonical(spec: str, where: str) -> str:
    """A spec that a file tells, in canonical form; that of a callable without a name stays as it is.

    Raises:
        CheckpointError: nothing of that name is registered, or it is no spec.
    """
    try:
        return str(settled(parse(spec), new=False))  # of a callable that was registered since, its name
    except ValueError as error:
        if _unregistered(spec):
            return spec
        raise CheckpointError(
            f"{where} tells the spec {spec!r}, which is unknown here: {error} Import what registers it first"
        ) from error


def plugin_keys(keys: Iterable[Any]) -> list[str]:
    """The keys that are parameters of plugins, records left out."""
    return [key for key in keys if isinstance(key, str) and PREFIX in key and not is_record(key)]


def _unregistered(spec: str) -> bool:
    return "unregistered:" in spec


def _meant(spec: str) -> str:
    return spec if _unregistered(spec) else str(computed(parse(spec)))


def _mechanisms(spec: str) -> tuple[str, ...]:
    return () if _unregistered(spec) else tuple(map(str, computed(parse(spec)).mechanisms))


def _records(state: State, prefix: str, where: str) -> dict[str, dict[str, Any]]:
    try:
        found = records_in({key: value for key, value in state.items() if is_record(key) and key.startswith(prefix)})
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
    gone = sorted(layer for layer, entry in found.items() if entry.get("lost"))
    if gone:
        raise CheckpointError(_lost(where, gone))
    for layer, entry in found.items():
        if not isinstance(entry.get("whole", ""), str):
            raise CheckpointError(f"{where}: the record of {layer} tells no spec: {entry!r:.80}")
    return {flat_key(layer[len(prefix) :] + ".").removesuffix("."): entry for layer, entry in found.items()}


def _metadata(state: State, prefix: str, where: str) -> Mapping[str, Any] | None:
    """The record in ``_metadata``, which torch keeps beside a state dict's tensors."""
    modules = getattr(state, "_metadata", {})
    if not isinstance(modules, Mapping):
        raise CheckpointError(f"the _metadata of a state dict in {where} is {type(modules).__name__}, no mapping")
    for module, metadata in modules.items():
        if not isinstance(module, str) or not isinstance(metadata, Mapping) or METADATA_KEY not in metadata:
            continue
        place = f"{module}." if module else ""
        if place.startswith(prefix) or prefix.startswith(place):
            record: Mapping[str, Any] = metadata[METADATA_KEY]
            _spec_in(record, f"the _metadata of {where}")
            if record.get("lost") is not None:
                raise CheckpointError(_lost(where, record["lost"]))
            return record
    return None


def _lost(where: str, layers: Any) -> str:
    return (
        f"{where} was saved after its patch was lost in the layers {layers!r:.200}: another library had exchanged or "
        "replaced them, and nobody knows what they were trained with since"
    )


def _order(layers: Any, where: str) -> tuple[str | None, ...]:
    if not isinstance(layers, list | tuple) or not all(layer is None or isinstance(layer, str) for layer in layers):
        raise CheckpointError(f"the _metadata of {where}: layers={layers!r:.80} is no list of normalizers")
    return tuple(layer if layer is None else canonical(layer, where) for layer in layers)


def _top_level(checkpoint: State, where: str) -> dict[str, str]:
    places = {}
    args = checkpoint.get("args")
    if isinstance(args, Namespace | Mapping):
        arguments = args if isinstance(args, Mapping) else vars(args)
        spec = arguments.get(METADATA_KEY)
        if spec is not None and not (isinstance(spec, str) and not spec):
            places["args"] = _text(spec, f"args of {where}")
    ours = checkpoint.get(METADATA_KEY)
    if isinstance(ours, Mapping) and "spec" in ours:
        places[METADATA_KEY] = _spec_in(ours, f"{METADATA_KEY!r} of {where}")
    elif ours is not None and not isinstance(ours, Mapping):
        raise CheckpointError(f"{METADATA_KEY!r} of {where} is {type(ours).__name__}, no mapping with a spec")
    return places


def _spec_in(record: Any, where: str) -> str:
    if not isinstance(record, Mapping) or "spec" not in record:
        raise CheckpointError(f"{where}: a record without a spec: {record!r:.80}")
    return _text(record["spec"], where)


def _text(spec: Any, where: str) -> str:
    if not isinstance(spec, str):
        raise CheckpointError(f"{where}: a spec is a string such as 'entmax15', not {type(spec).__name__}")
    return spec


def _spec_in_yaml(config: Path, path: Path) -> str | None:
    import yaml

    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{config}, which should tell the spec of {path}, is no YAML: {error}") from error
    student = settings.get("student") if isinstance(settings, dict) else None
    spec = student.get(METADATA_KEY) if isinstance(student, dict) else None
    return _text(spec, str(config)) if spec else None
