"""alpha's schedule, and that every alpha on the way is computed as the entmax package computes it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from attn_plugins import attention
from attn_plugins.functional import EntmaxAnneal, bind
from attn_plugins.functional.normalizer import build
from attn_plugins.spec import parse


def made(heads: int = 2, **options: Any) -> EntmaxAnneal:
    return EntmaxAnneal(heads, **({"steps": 10} | options))


def alphas(layer: EntmaxAnneal, upto: int) -> list[float]:
    return [layer.at(step) for step in range(upto + 1)]


def test_linear_and_cosine() -> None:
    assert alphas(made(steps=5), 7) == pytest.approx([1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.5, 1.5])
    assert alphas(made(steps=4, shape="cosine", alpha=2), 4) == pytest.approx([1, 1.146447, 1.5, 1.853553, 2])
    assert alphas(made(steps=2, warmup=3, start=1.2), 6) == pytest.approx([1.2] * 4 + [1.35, 1.5, 1.5])


def test_layer_by_layer() -> None:
    deep, shallow = made(order="deep_first"), made(order="shallow_first")
    for layer in (deep, shallow):
        layer.set_place(0, 2)
    assert alphas(shallow, 10) == pytest.approx([1, 1.1, 1.2, 1.3, 1.4] + [1.5] * 6)
    assert alphas(deep, 10) == pytest.approx([1] * 6 + [1.1, 1.2, 1.3, 1.4, 1.5])


def test_between_softmax_and_the_smallest_alpha_it_jumps() -> None:
    values = alphas(made(steps=1000), 1000)
    assert values[:20] == [1.0] * 20 and values[20] == pytest.approx(1.01)
    assert not any(1 < value < 1.01 for value in values)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_alpha_is_computed_as_in_float64(backend: str) -> None:
    entmax = pytest.importorskip("entmax", reason="compares with the entmax package: pip install entmax")
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 40, 16) * 2 for _ in range(3))
    layer = made(steps=1000)
    for step in (0, 20, 21, 60, 500, 999, 1000):
        layer.set_step(step)
        if backend == "cpu" and layer.value == 1:
            continue  # softmax is the business of torch's kernel
        if layer.value == 1:
            weights = torch.softmax((q.double() @ k.double().mT) / 4, -1)
        else:
            alpha = torch.full((2, 1, 1), layer.value, dtype=torch.float64)
            scores = q.double() @ k.double().mT / 4
            weights = entmax.entmax_bisect(scores, alpha.expand(2, 2, 1, 1), dim=-1, n_iter=60)
        out = attention(q, k, v, normalizer=layer, backend=backend)
        torch.testing.assert_close(out.double(), weights @ v.double(), atol=2e-5, rtol=1e-4)


def test_kernels_are_chosen_by_where_it_stands() -> None:
    layer, q = made(steps=2), torch.randn(1, 2, 5, 8)
    for step, same in ((0, "softmax"), (2, "entmax15")):
        layer.set_step(step)
        assert layer.alpha == bind(same).alpha
        assert torch.equal(attention(q, q, q, normalizer=layer), attention(q, q, q, normalizer=same))
    layer.set_step(1)
    assert isinstance(layer.alpha, torch.Tensor) and layer.alpha.tolist() == pytest.approx([1.25, 1.25])
    torch.testing.assert_close(layer(q @ q.mT), bind("entmax:alpha=1.25")(q @ q.mT))
    with pytest.raises(ValueError, match="scores are"):
        layer(torch.randn(5, 5))


@pytest.mark.parametrize("step", [0, 3, 10])
def test_half_precision_copies_and_pickles_keep_alpha(step: int) -> None:
    layer = made()
    layer.set_place(1, 3)
    layer.set_step(step)
    for other in (copy.deepcopy(layer).half().bfloat16().float(), pickle.loads(pickle.dumps(layer))):
        assert (other.step, other.value, other.place, other.layers) == (step, layer.value, 1, 3)
        assert torch.as_tensor(other.alpha).tolist() == torch.as_tensor(layer.alpha).tolist()


def test_the_state_dict_tells_where_it_stands_through_casts() -> None:
    layer, fresh = made(order="deep_first"), made(order="deep_first")
    layer.set_place(1, 3)
    layer.set_step(2)
    state = {name: value.bfloat16() for name, value in layer.state_dict().items()}
    fresh.load_state_dict(state)
    assert (fresh.step, fresh.value, fresh.place, fresh.layers) == (2, layer.value, 1, 3) and fresh.value == 1.0
    fresh.set_step(9)
    assert [len(tensor) for tensor in fresh.state_dict().values()] == [len(tensor) for tensor in state.values()]


def test_a_state_of_another_schedule_is_refused_and_changes_nothing() -> None:
    layer, other = made(steps=10), made(steps=20)
    layer.set_step(5)
    other.set_step(1)
    with pytest.raises(ValueError, match=r"had alpha 1\.250000 at step 5, and this schedule gives 1\.125"):
        other.load_state_dict(layer.state_dict())
    assert other.step == 1


def test_memory_that_was_emptied_is_written_anew() -> None:
    layer = made().to("meta")
    layer.set_step(5)
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert torch.as_tensor(layer.alpha).tolist() == pytest.approx([1.25, 1.25])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("entmax_anneal", "needs steps="),
        ("entmax_anneal:steps=0", "steps is a whole number of 1 or more, got 0"),
        ("entmax_anneal:steps=1.5", "steps is a whole number"),
        ("entmax_anneal:steps=5,warmup=-1", "warmup is a whole number of 0 or more"),
        ("entmax_anneal:steps=5,alpha=1.001", "alpha=1.001 is not in"),
        ("entmax_anneal:steps=5,alpha=3", "alpha=3 is not in"),
        ("entmax_anneal:steps=5,start=1.001", "start=1.001"),
        ("entmax_anneal:steps=5,shape=square", "'square' is none of linear, cosine"),
        ("entmax_anneal:steps=5,order=random", "deep_first"),
    ],
)
def test_bad_specs_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(parse(spec).normalizer, 2)


@pytest.mark.slow
def test_a_compiled_layer_follows_the_schedule_with_three_graphs() -> None:
    torch._dynamo.reset()
    layer, graphs = made(steps=8), []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    q = torch.randn(1, 2, 6, 8)
    run = torch.compile(lambda q: attention(q, q, q, normalizer=layer), backend=backend, fullgraph=True)
    for step in range(11):
        layer.set_step(step)
        torch.testing.assert_close(run(q), attention(q, q, q, normalizer=layer))
    assert len(graphs) == 3
