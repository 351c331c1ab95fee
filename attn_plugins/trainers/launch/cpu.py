"""Let a CUDA-only trainer run on the CPU: to see that it runs, on a laptop or in a test; never to train."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.overrides import TorchFunctionMode

from ...torch_names import load_dynamo
from ..messages import say
from . import xformers

__all__ = ["instead_of_cuda"]


@contextlib.contextmanager
def instead_of_cuda() -> Iterator[None]:
    """Within this context ``cuda`` means the CPU, NCCL means gloo, gradient scaling is off and torch.hub offline.

    The process must not have used CUDA yet. Without torchrun's environment, that of a single process is set.
    """
    say("=" * 100)
    say("--device cpu is for checking that a trainer runs, NOT for training: CUDA calls are answered by the CPU,")
    say("and mixed precision and gradient scaling are off.")
    say("=" * 100)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    _single_process_environment()
    load_dynamo()
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in (*_replacements(), *xformers.replacements()):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        stack.enter_context(_CudaIsCpu())
        yield


class _CudaIsCpu(TorchFunctionMode):
    """``device='cuda'``, ``.to('cuda')``, ``.cuda()``: the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: _to_cpu(value) if name == "device" else value for name, value in (kwargs or {}).items()}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.to:
            args = (args[0], *(_to_cpu(value) for value in args[1:]))
        return func(*args, **kwargs)


def _to_cpu(device: Any) -> Any:
    if isinstance(device, str) and device.startswith("cuda"):
        return "cpu"
    if isinstance(device, torch.device) and device.type == "cuda":
        return torch.device("cpu")
    return device


def _gloo_averages() -> bool:
    """Whether this torch's gloo knows ``ReduceOp.AVG``, which 2.7's does not; asked of a group of one."""
    options = dist.AllreduceOptions()
    options.reduceOp = dist.ReduceOp.AVG
    try:
        group: Any = dist.ProcessGroupGloo(dist.HashStore(), 0, 1)
        group.allreduce([torch.ones(1)], options).wait()
    except (RuntimeError, ValueError):
        return False
    return True


def _replacements() -> list[tuple[Any, str, Any]]:
    init_process_group, new_group, all_gather = dist.init_process_group, dist.new_group, dist.all_gather_into_tensor
    all_reduce, reduce_scatter = dist.all_reduce, dist.reduce_scatter_tensor
    mesh, ddp, fsdp = DeviceMesh.__init__, nn.parallel.DistributedDataParallel.__init__, FSDP.__init__

    def gloo(*args: Any, **kwargs: Any) -> Any:
        kwargs.update(backend="gloo")
        kwargs.pop("device_id", None)
        return init_process_group(*args[1:], **kwargs)

    def gloo_group(*args: Any, **kwargs: Any) -> Any:
        return new_group(*args, **{**kwargs, "backend": "gloo"})

    # Before torch 2.8, FSDP2 gives these two by torch's names.
    def gloo_gather(output_tensor: Tensor, input_tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        # gloo has none of a tensor without dims
        return all_gather(output_tensor, torch.atleast_1d(input_tensor), *args, **kwargs)

    # These two by torch's names as well.
    def gloo_reduce(tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False) -> Any:
        if op == dist.ReduceOp.AVG:
            tensor.detach().copy_(_share(tensor, group))
            op = dist.ReduceOp.SUM
        return all_reduce(tensor, op=op, group=group, async_op=async_op)

    def gloo_reduce_scatter(
        output: Tensor, input: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False
    ) -> Any:
        if op == dist.ReduceOp.AVG:
            input, op = _share(input, group), dist.ReduceOp.SUM
        return reduce_scatter(output, input, op=op, group=group, async_op=async_op)

    def cpu_mesh(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        mesh(self, "cpu", *args, **kwargs)

    def cpu_ddp(self: Any, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        ddp(self, module, **{**kwargs, "device_ids": None, "output_device": None})

    def cpu_fsdp(self: Any, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        if kwargs.pop("sync_module_states", False):  # which FSDP does for parameters on an accelerator only
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), src=0)
        fsdp(self, module, *args, **{**kwargs, "device_id": torch.device("cpu")})

    # Where gloo knows them they stay torch's own: torch.compile has a rule for those, and upstream compiles a loss.
    means = (
        []
        if _gloo_averages()
        else [(dist, "all_reduce", gloo_reduce), (dist, "reduce_scatter_tensor", gloo_reduce_scatter)]
    )
    return [
        *means,
        (dist, "init_process_group", gloo),
        (dist, "new_group", gloo_group),
        (dist, "all_gather_into_tensor", gloo_gather),
        (DeviceMesh, "__init__", cpu_mesh),
        (nn.parallel.DistributedDataParallel, "__init__", cpu_ddp),
        (FSDP, "__init__", cpu_fsdp),
        (nn.Module, "cuda", lambda module, device=None: module),
        *((torch.cuda, name, _do_nothing()) for name in ("set_device", "synchronize", "empty_cache")),
        (torch.hub, "list", lambda *args, **kwargs: []),
        (torch.hub, "load", _offline("torch.hub.load")),
        (torch.hub, "load_state_dict_from_url", _offline("torch.hub.load_state_dict_from_url")),
    ]


def _share(tensor: Tensor, group: Any) -> Tensor:
    """What each process adds to a sum that is the mean: gloo refuses ``ReduceOp.AVG`` in older releases of torch.

    Divided before, as NCCL does, so that the result needs no more work when a call returns before it is there.
    """
    return tensor.detach() / max(dist.get_world_size(group), 1)  # -1 outside of the group, which is left alone


def _do_nothing() -> Callable[..., None]:
    """A new function each time: torch.compile keeps one rule for each function of torch's."""
    return lambda *args, **kwargs: None


def _offline(name: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{name}{args}: --device cpu makes no network calls; give the script a local file")

    return refuse


def _single_process_environment() -> None:
    """What torchrun would set for one process, on a free port, unless it did."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update(ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
