"""``Monitor``: what attention looks like while it is trained."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.counting import unwatch, watch
from ..codebases.vit import find_vits
from ..errors import UnsupportedModelError
from ..mechanisms import applied_mechanisms
from ..patching import NORMALIZER, spec_of
from ..registry import MECHANISMS
from .rows import LayerRows, Observation, alpha_of, rows_of_call, rows_of_weights, summarise
from .sinks import Sink, sink_of

__all__ = ["Monitor"]


class Monitor:
    """Exact zeros, entropy, support, [CLS] mass and alpha of every layer and head, every few steps of a training run.

    In a step that is looked at, the weights of a few queries of a few images are computed again beside the kernel,
    from the same q and k; the step itself runs as ever, and random numbers, gradients and collective operations are
    left alone. Other steps cost nothing. Of several calls of a layer in a step the first is taken (DINO's global
    crops; in a packed batch, the first sequences); in a distributed run, what rank 0 sees.

        >>> monitor = attn_plugins.Monitor(model, "run.jsonl")
        >>> for images in loader:
        ...     loss(model(images)).backward(); optimizer.step(); monitor.step()

    Args:
        model: a patched model, wrapped or not; ``patch(model, "softmax")`` computes what it did and can be watched.
        sinks: one or several of: a path that ends in ``.jsonl``, ``"tensorboard:FOLDER"``, ``"wandb"`` (the run that
            is active), a ``SummaryWriter``, a W&B run, or any function of an ``Observation``.
        every: steps from one observation to the next; the first step is the first that is looked at.
        images: of a step, at most.
        rows: queries of an image, at most: [CLS] and others, evenly spaced.
        evaluation: whether layers in eval mode are looked at too; otherwise validation is not mistaken for training.
        compiled: whether what is trained is a compiled function around ``model``; that ``model`` itself or a part of it
            is compiled is seen.

    Attributes:
        steps: how many were made.
        last: the last observation, or None.

    Raises:
        ValueError: the model is not patched, a number is less than 1, or a sink is none of these.

    Compiled code tells nobody what it computes, so a step that is looked at runs without the compiler.
    """

    def __init__(
        self,
        model: nn.Module,
        sinks: Any = (),
        *,
        every: int = 100,
        images: int = 2,
        rows: int = 32,
        evaluation: bool = False,
        compiled: bool = False,
    ) -> None:
        for name, value in (("every", every), ("images", images), ("rows", rows)):
            if value < 1:
                raise ValueError(f"Monitor: {name} is 1 or more, not {value}")
        spec = spec_of(model)
        self._paths: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        for path, module in model.named_modules():
            if NORMALIZER in (*vars(module), *module._modules):
                self._paths[module] = path
        if spec is None or not self._paths:
            raise ValueError(
                f"Monitor: {type(model).__qualname__} is not patched; attn_plugins.patch(model, 'softmax') leaves what "
                "it computes as it is, and lets it be watched"
            )
        self.spec, self.every, self.images, self.rows, self.evaluation = spec, every, images, rows, evaluation
        self.compiled, self._model = compiled, weakref.ref(model)
        several = isinstance(sinks, Sequence) and not isinstance(sinks, str)
        self.sinks: list[Sink] = [sink_of(sink) for sink in (sinks if several else [sinks])]
        self.steps = 0
        self.last: Observation | None = None
        self._prefix = _prefix(model)
        self._name = type(model).__qualname__
        self._seen: dict[nn.Module, tuple[int, Tensor, Tensor | None]] = {}
        self._told_of_nothing = False
        # Neither keeps this object alive, and both end with it.
        self._watcher = functools.partial(_tell, weakref.ref(self))
        self._armed = contextlib.ExitStack()
        weakref.finalize(self, self._armed.close)
        self._arm()

    def step(self) -> Observation | None:
        """To be called once after each optimizer step.

        Returns:
            What was seen in the step, if it was one to look at.

        Warns:
            UserWarning: it was, and no attention of the model ran (once).
        """
        observation = self._collect()
        self.steps += 1
        self._arm()
        return observation

    def state_dict(self) -> dict[str, int]:
        """For a trainer's checkpoint."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting where the run stopped."""
        self._disarm()
        self.steps = state["steps"]
        self._arm()

    def close(self) -> None:
        """Look at no further step, and close the sinks."""
        self._disarm()
        for sink in self.sinks:
            close: Callable[[], None] | None = getattr(sink, "close", None)
            if close is not None:
                close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _arm(self) -> None:
        if self.steps % self.every or _rank():
            return
        self._seen = {}
        watch(self._watcher)
        self._armed.callback(unwatch, self._watcher)
        model = self._model()
        if self.compiled or (model is not None and _is_compiled(model)):
            self._armed.enter_context(torch.compiler.set_stance("force_eager"))

    def _disarm(self) -> bool:
        """Whether the step that ends was one to look at."""
        self._armed.close()
        return not self.steps % self.every and not _rank()

    def _watch(self, layer: Any, **told: Any) -> None:
        if layer is None or layer not in self._paths or layer in self._seen:
            return
        if not (layer.training or self.evaluation):
            return
        with torch.no_grad():
            if "call" in told:
                weights, alpha = rows_of_call(told["call"], self.images, self.rows), told["call"].alpha
            else:
                weights = rows_of_weights(told["weights"], told["heads"], self.images, self.rows)
                alpha = getattr(getattr(layer, NORMALIZER), "alpha", None)
            alphas = alpha_of(alpha, weights.shape[1])
            alphas = alphas if alphas is None else alphas.clone()  # of this step, not of when it is read
            self._seen[layer] = weights.shape[-1], summarise(weights, self._prefix), alphas

    def _collect(self) -> Observation | None:
        if not self._disarm():
            return None
        if not self._seen:
            self._warn()
            return None
        layers = []
        for layer, (keys, values, alphas) in self._seen.items():
            zero_share, entropy, support, cls_mass = (tuple(row) for row in values.tolist())
            told = None if alphas is None else tuple(alphas.tolist())
            layers.append(LayerRows(self._paths[layer], keys, zero_share, entropy, support, cls_mass, told))
        self.last = Observation(self.steps, self.spec, tuple(layers))
        for sink in self.sinks:
            sink(self.last)
        self._seen = {}
        return self.last

    def _warn(self) -> None:
        if not self._told_of_nothing:
            self._told_of_nothing = True
            warnings.warn(
                f"Monitor: in step {self.steps} none of the {len(self._paths)} patched layers of "
                f"{self._name} ran in training mode. evaluation=True watches frozen models too, and compiled=True what "
                "a compiled function runs",
                stacklevel=4,
            )


def _tell(monitor: weakref.ref[Monitor], layer: Any, **told: Any) -> None:
    alive = monitor()
    if alive is not None:
        alive._watch(layer, **told)


def _is_compiled(model: nn.Module) -> bool:
    return any(
        vars(module).get("_compiled_call_impl") is not None or type(module).__name__ == "OptimizedModule"
        for module in model.modules()
    )


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def _prefix(model: nn.Module) -> int:
    """Tokens before the patches: [CLS], the model's registers and those of the spec; 1 where nothing is known."""
    added = 0
    for plugin in applied_mechanisms(model):
        made = MECHANISMS.get(plugin.name)(**plugin.kwargs)
        added += int(getattr(made, "extra_tokens", 0))
    try:
        return find_vits(model)[0].prefix + added
    except UnsupportedModelError:
        return 1 + added
