"""The stream of draws is the same for any number of processes and after a resume; batches keep their total."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from torch.utils.data import DataLoader

from attn_plugins.probes import protocol
from attn_plugins.probes.protocol import Draw, ProbeSampler, SeedDraw, split_batch


def draws(
    monkeypatch: pytest.MonkeyPatch, rank: int, world: int, count: int, skip: int = 0, group: int = 1
) -> list[Draw]:
    monkeypatch.setattr(protocol, "get_dist_info", lambda: (rank, world))
    sampler = ProbeSampler(range(7), seed=3, group=group)
    sampler.skip(skip)
    return list(itertools.islice(iter(sampler), count))


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_total_batch_is_the_same_on_any_number_of_processes(
    world: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = draws(monkeypatch, 0, 1, 48)
    for batch in range(6):
        expected = sorted((int(d), d.seed) for d in whole[8 * batch : 8 * batch + 8])
        share = 8 // world
        dealt = [
            draw
            for rank in range(world)
            for draw in draws(monkeypatch, rank, world, share, skip=batch * share, group=group)
        ]
        assert sorted((int(d), d.seed) for d in dealt) == expected


def test_grouped_draws_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [d.seed for d in draws(monkeypatch, 0, 1, 16)]
    second = [d.seed for d in draws(monkeypatch, 1, 2, 8, group=2)]
    assert second == [seed for i in range(2, 16, 4) for seed in whole[i : i + 2]]


def test_passes_are_shuffled_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = draws(monkeypatch, 0, 1, 21)
    passes = [stream[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(p) == list(range(7)) for p in passes)
    assert len({tuple(p) for p in passes}) == 3
    assert len({d.seed for d in stream}) == 21


def test_a_draw_survives_the_way_to_a_worker() -> None:
    copy = pickle.loads(pickle.dumps(Draw(5, 17)))
    assert copy == 5 and copy.seed == 17 and [10, 11, 12, 13, 14, 15][copy] == 15


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="list is empty"):
        ProbeSampler([])


class _Noise(BaseDataset):
    def load_data_list(self) -> list[dict[str, int]]:
        return [{"number": i} for i in range(7)]


def _noise(results: dict[str, int]) -> tuple[int, float, float]:
    return results["number"], float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_follows_the_draw_not_the_worker(workers: int) -> None:
    dataset = _Noise(pipeline=[SeedDraw(), _noise])

    def first(count: int, skip: int = 0) -> list[tuple[int, float, float]]:
        sampler = ProbeSampler(dataset, seed=3)
        sampler.skip(skip)
        loader: DataLoader[Any] = DataLoader(
            dataset, batch_size=2, sampler=sampler, num_workers=workers, collate_fn=list
        )
        return [sample for batch in itertools.islice(loader, count // 2) for sample in batch]

    whole = first(20)
    assert len({sample[1:] for sample in whole}) == 20
    assert first(8, skip=12) == whole[12:]
    sampler = ProbeSampler(dataset, seed=3)
    assert whole == [dataset[draw] for draw in itertools.islice(sampler, 20)]


@pytest.mark.parametrize(
    ("total", "processes", "most", "expected"),
    [
        (16, 1, 16, (16, 1)),
        (16, 2, 16, (8, 1)),
        (16, 8, 16, (2, 1)),
        (16, 1, 4, (16, 4)),
        (16, 2, 3, None),
        (1024, 1, 128, (1024, 8)),
    ],
)
def test_the_total_batch_is_dealt_out(total: int, processes: int, most: int, expected: tuple[int, int] | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="to one of 1, 2, 4, 8"):
            split_batch(total, processes, most)
    else:
        assert split_batch(total, processes, most) == expected


def test_processes_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"16 cannot be dealt to 3 processes evenly; use 1, 2, 4, 8, 16 processes"):
        split_batch(16, 3, 16)
