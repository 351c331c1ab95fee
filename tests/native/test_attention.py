"""The compiled kernel as a torch operator: compile, transforms, checkpointing, threads, memory."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attn_plugins import attention, native
from attn_plugins.attention import choose_backend, cpu
from attn_plugins.attention.call import AttentionCall
from attn_plugins.functional import EntmaxAlpha, bind

needs_kernel = pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernels: {native.unavailable()}")
pytestmark = needs_kernel


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def entmax15(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
    out: Tensor = attention(q, k, v, normalizer="entmax15", backend="cpu", **kwargs)
    return out


def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return entmax15(q, k, v).square().sum()


def inputs(*shape: int) -> list[torch.Tensor]:
    return [randn(i, *shape).requires_grad_() for i in range(3)]


def test_is_the_default_on_a_cpu() -> None:
    q = torch.zeros(1, 2, 5, 4)
    for name, backend in (
        ("entmax15", "cpu"),
        ("sparsemax", "cpu"),
        ("entmax:alpha=3", "reference"),
        ("softmax", "sdpa"),
    ):
        normalizer = bind(name)
        call = AttentionCall(q, q, q, normalizer, normalizer.alpha)
        assert backend == choose_backend(call).name
    assert "1.05 <= alpha <= 2" in str(cpu.unsupported(AttentionCall(q, q, q, torch.softmax)))


def test_compiles_without_graph_breaks() -> None:
    module = EntmaxAlpha(2)

    def both(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return loss(q, k, v) + attention(q, k, v, normalizer=module, backend="cpu").square().sum()

    x = inputs(2, 2, 9, 4)
    wrt = (*x, module.logit)
    found = torch.autograd.grad(torch.compile(both, fullgraph=True, backend="aot_eager")(*x), wrt)
    for a, b in zip(found, torch.autograd.grad(both(*x), wrt), strict=True):
        torch.testing.assert_close(a, b)


def test_operators_keep_torchs_rules() -> None:
    q, k, v = (t.detach() for t in inputs(2, 3, 9, 8))
    alpha, mask = torch.full((3,), 1.5), randn(3, 1, 1, 9, 9).expand(2, 3, 9, 9)
    ops = torch.ops.attn_plugins
    for extra in ((None, False), (None, True), (mask, False)):
        torch.library.opcheck(ops.cpu_attention.default, (q, k, v, alpha, *extra, 0.3))
        out, stats = ops.cpu_attention(q, k, v, alpha, *extra, 0.3)
        arguments = (out, q, k, v, alpha, extra[0], stats, extra[1], 0.3, True)
        torch.library.opcheck(ops.cpu_attention_backward.default, arguments)


def test_checkpointing_gives_the_same_gradients() -> None:
    x = inputs(2, 3, 20, 8)
    found = torch.autograd.grad(checkpoint(loss, *x, use_reentrant=False), x)
    assert all(torch.equal(a, b) for a, b in zip(found, torch.autograd.grad(loss(*x), x), strict=True))


def test_vmap_and_its_gradients() -> None:
    x = [t.detach() for t in inputs(4, 2, 3, 9, 8)]
    torch.testing.assert_close(torch.func.vmap(entmax15)(*x), entmax15(*x))
    shared = torch.func.vmap(entmax15, in_dims=(0, None, 1))(x[0], x[1][0], x[2].transpose(0, 1))
    torch.testing.assert_close(shared[2], entmax15(x[0][2], x[1][0], x[2][2]))
    found = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(*x)
    x = [t.requires_grad_() for t in x]
    for a, b in zip(found, torch.autograd.grad(loss(*x), x), strict=True):
        torch.testing.assert_close(a, b)


def test_a_second_derivative_is_refused_with_the_remedy() -> None:
    x = inputs(1, 1, 4, 4)
    (grad,) = torch.autograd.grad(loss(*x), x[0], create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        grad.sum().backward()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 1, 300, 16), (3, 2, 33, 16)])
def test_threads_do_not_change_the_result(threads: int, shape: tuple[int, int, int, int]) -> None:
    x = inputs(*shape)
    before = torch.get_num_threads()
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        results.append((entmax15(*x), *torch.autograd.grad(loss(*x), x)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_saves_two_numbers_per_query_not_the_weights() -> None:
    x = inputs(2, 3, 200, 8)
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        entmax15(*x)
    beyond = sum(saved.values()) - sum(t.numel() for t in x)
    assert 2 * 2 * 3 * 200 <= beyond <= 2 * 2 * 3 * 200 + 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_shares_torchs_openmp_threads() -> None:
    code = """
import os, torch
torch.set_num_threads(2)
torch.randn(500, 500) @ torch.randn(500, 500)
from attn_plugins import attention
q = torch.randn(2, 2, 50, 8)
before = len(os.listdir("/proc/self/task"))
attention(q, q, q, normalizer="entmax15", backend="cpu")
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0", "a second OpenMP runtime started threads of its own"
