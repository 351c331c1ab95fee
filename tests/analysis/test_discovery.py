"""LOST against scipy's components, attention masks and patch classes that are known, mIoU against scikit-learn."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from scipy import ndimage
from sklearn.metrics import jaccard_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from attn_plugins.analysis.attention import cls_attention
from attn_plugins.analysis.dense import DenseWatcher, kmeans, knn, mean_iou, patch_labels
from attn_plugins.analysis.discovery import JaccardWatcher, LostWatcher, iou, kept_mass, lost
from attn_plugins.analysis.images import Batch
from attn_plugins.analysis.watch import watch


def planted(grid: tuple[int, int], rows: slice, columns: slice, seed: int = 0, noise: float = 0.3) -> Tensor:
    """Keys of an object (positive with itself, negative with the rest, which is alike)."""
    g = torch.Generator().manual_seed(seed)
    keys = torch.zeros(*grid, 8)
    keys[..., 0] = 1
    keys[rows, columns] = torch.tensor([-0.6, 1.0] + [0.0] * 6)
    return (keys + noise * torch.randn(*grid, 8, generator=g) * torch.tensor([0.0, 0.0] + [1.0] * 6)).flatten(0, 1)


def test_lost_finds_an_object_that_is_there() -> None:
    assert lost(planted((10, 12), slice(2, 5), slice(6, 11)), (10, 12)) == (6, 2, 11, 5)


def test_lost_is_what_numpy_and_scipy_make_of_its_definition() -> None:
    for seed in range(20):
        keys = planted((9, 9), slice(1, 5), slice(2, 6), seed, noise=0.8).numpy().astype(np.float64)
        similar = keys @ keys.T
        apart = similar - np.diag(np.diag(similar))
        order = np.argsort((apart > 0).sum(1), kind="stable")
        joined = [patch for patch in order[:20] if similar[order[0], patch] > 0]
        labelled, _ = ndimage.label((similar[joined].sum(0) > 0).reshape(9, 9))
        rows, columns = np.nonzero(labelled == labelled.ravel()[order[0]])
        expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert lost(torch.from_numpy(keys), (9, 9), seeds=20) == expected


def test_boxes_and_masses_that_are_known() -> None:
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1 and iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    weights = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]])
    assert kept_mass(weights, 0.6).sum(-1).tolist() == [2, 1]
    assert kept_mass(weights, 0.6)[:, 0].all()


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=32, num_heads=2, depth=2, num_classes=0
    ).eval()


def test_corloc_is_over_the_last_layers_keys(model: Any) -> None:
    pixels = torch.randn(3, 3, 64, 64)
    keys = []
    handle = model.blocks[1].attn.qkv.register_forward_hook(lambda module, args, out: keys.append(out[:, 1:, 32:64]))
    watcher = LostWatcher()
    watch(model, [Batch(pixels, [[(0.0, 0.0, 64.0, 64.0)], [], [(1.0, 1.0, 5.0, 5.0)]])], [watcher])
    handle.remove()
    edges = [lost(one, (4, 4)) for one in keys[0]]
    boxes = [(16.0 * left, 16.0 * top, 16.0 * right, 16.0 * bottom) for left, top, right, bottom in edges]
    (score,) = watcher.found()
    assert score.values is not None
    assert score.values[0] == (iou(boxes[0], (0.0, 0.0, 64.0, 64.0)) >= 0.5) and score.images == 2
    assert score.chance == 0.5, "the whole picture is the first image's box and not the third's"
    assert np.isnan(score.values[1]) and score.values[2] == (iou(boxes[2], (1.0, 1.0, 5.0, 5.0)) >= 0.5)
    assert not model.blocks[1].attn.qkv._forward_hooks


def test_models_whose_keys_are_not_known_say_so() -> None:
    torchvision = pytest.importorskip("torchvision.models.vision_transformer")
    vit = torchvision.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=2).eval()
    watcher = LostWatcher()
    watch(vit, [Batch(torch.randn(1, 3, 32, 32), [[(0.0, 0.0, 9.0, 9.0)]])], [watcher])
    assert watcher.found() == [] and "no ViT that token mechanisms know" in str(watcher.missing)


def test_the_jaccard_index_is_of_the_best_head(model: Any) -> None:
    pixels, masks = torch.randn(3, 3, 64, 64), torch.zeros(3, 64, 64, dtype=torch.int64)
    masks[:, 10:40, 20:50] = 3
    masks[0, 10:12] = 255
    masks[2] = 0
    watcher = JaccardWatcher(1)
    watch(model, [Batch(pixels, [[]] * 3, masks=masks)], [watcher])
    (score,) = watcher.found()
    assert score.values is not None and score.images == 2 and np.isnan(score.values[2])
    areas = [float((masks[n] == 3).sum() / (masks[n] != 255).sum()) for n in range(2)]
    assert score.chance == pytest.approx(np.mean(areas))
    for image in range(2):
        values = []
        for head in cls_attention(model, pixels, 1)[image]:
            order = np.sort(head.numpy().ravel())[::-1]
            count = int(np.searchsorted(np.cumsum(order) / order.sum(), 0.6)) + 1
            kept = np.kron(head.numpy() >= order[count - 1], np.ones((16, 16))).astype(bool)
            valid = masks[image].numpy() != 255
            values.append(jaccard_score((masks[image].numpy() == 3)[valid], kept[valid]))
        assert score.values[image] == pytest.approx(max(values))


def test_a_patch_has_the_class_of_most_of_its_pixels() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.int64)
    masks[0, :2, :2] = torch.tensor([[5, 5], [5, 0]])
    masks[0, :2, 2:] = torch.tensor([[255, 255], [255, 7]])
    masks[0, 2:, :2] = torch.tensor([[9, 9], [2, 2]])
    assert patch_labels(masks, (2, 2)).tolist() == [[5, -1, 2, 0]]
    assert patch_labels(masks, (2, 2), (255, 5)).tolist() == [[-1, -1, 2, 0]]
    assert patch_labels(masks * 0 + 255, (2, 2)).tolist() == [[-1] * 4]


def test_miou_is_scikit_learns() -> None:
    g = np.random.default_rng(0)
    truth, told = g.integers(0, 4, 500), g.integers(0, 4, 500)
    told[:300] = truth[:300]
    confusion = np.array([[((truth == a) & (told == b)).sum() for b in range(5)] for a in range(5)], float)
    assert mean_iou(confusion) == pytest.approx(jaccard_score(truth, told, average="macro"))


def clustered(noise: float, classes: int = 3, images: int = 6, patches: int = 30) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (images, patches), generator=g)
    centres = torch.linalg.qr(torch.randn(16, 16, generator=g))[0][:classes]
    x = centres[labels] + noise * torch.randn(images, patches, 16, generator=g)
    return torch.nn.functional.normalize(x, dim=-1), labels


def test_nearest_patches_vote_as_scikit_learns_do() -> None:
    patches, labels = clustered(0.5)
    labels[0, :5] = -1
    found = knn(patches, labels, 3)
    for half in (0, 1):
        known = labels[1 - half :: 2].flatten()
        bank = patches[1 - half :: 2].flatten(0, 1)[known >= 0].numpy()
        votes = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine", algorithm="brute")
        expected = votes.fit(bank, known[known >= 0].numpy()).predict(patches[half::2].flatten(0, 1).numpy())
        assert (found[half::2].flatten().numpy() == expected).mean() > 0.995


def test_clusters_are_matched_to_classes_one_to_one() -> None:
    patches, labels = clustered(0.02)
    assert torch.equal(kmeans(patches, labels, 3), labels)


def test_scores_of_a_model(model: Any) -> None:
    pixels, masks = torch.randn(4, 3, 64, 64), torch.zeros(4, 64, 64, dtype=torch.int64)
    masks[:, :32] = 7
    pixels[:, :, :32] += 6
    pixels[:, :, 32:] -= 6
    batches = [Batch(pixels[part], [[]] * 2, masks=masks[part]) for part in (slice(2), slice(2, 4))]
    watcher = DenseWatcher(1)
    watch(model, batches, [watcher])
    scores = {score.definition.name: score for score in watcher.found()}
    assert scores.keys() == {"knn_miou", "kmeans_miou"}
    for score in scores.values():
        assert score.value == pytest.approx(1) and score.images == 4 and score.low <= score.value <= score.high
    assert DenseWatcher(1).found() == []
