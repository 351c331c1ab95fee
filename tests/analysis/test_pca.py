"""PCA pictures: components against scikit-learn, colours that compare across models."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from attn_plugins.analysis.pca import pca_rgb, principal_components


def features(n: int = 4, h: int = 6, w: int = 5, c: int = 24, seed: int = 0) -> Tensor:
    """Smooth features: three spatial patterns mixed into c channels, with noise."""
    g = torch.Generator().manual_seed(seed)
    patterns = torch.randn(n, h, w, 3, generator=g) ** 3 * torch.tensor([4.0, 2.0, 1.0])
    return patterns @ torch.randn(3, c, generator=g) + 0.05 * torch.randn(n, h, w, c, generator=g)


def test_components_are_those_of_scikit_learn() -> None:
    x = features().flatten(0, 2)
    mean, axes = principal_components(x)
    reference = PCA(3, svd_solver="full").fit(x.numpy().astype(np.float64))
    torch.testing.assert_close(mean.numpy(), reference.mean_)
    cosines = (axes.numpy() * reference.components_).sum(1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-9)


def test_signs_depend_on_the_data_alone() -> None:
    x = features().flatten(0, 2)
    _, axes = principal_components(x)
    rotation = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64))[0]
    _, rotated = principal_components(x.double() @ rotation)
    torch.testing.assert_close(rotated, axes @ rotation)


@pytest.mark.parametrize("basis", ["shared", "image"])
def test_the_same_content_has_the_same_colours_in_every_model(basis: str) -> None:
    x = features()
    mixing = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(3)))[0]
    first, other, negated = pca_rgb([x, 3 * x @ mixing + 1, -x], basis)
    torch.testing.assert_close(other, first, atol=1e-4, rtol=0)
    torch.testing.assert_close(negated, first, atol=1e-4, rtol=0)


def test_a_model_whose_components_come_in_another_order_is_brought_into_line() -> None:
    g = torch.Generator().manual_seed(1)
    patterns = torch.randn(4, 6, 6, 3, generator=g)
    one, two = pca_rgb([patterns * torch.tensor([3.0, 2.0, 1.0]), patterns * torch.tensor([1.0, 3.0, 2.0])])
    for channel in range(3):
        a, b = one[..., channel].flatten(), two[..., channel].flatten()
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.8


def test_shared_basis_gives_equal_images_equal_colours_and_image_basis_does_not_look_at_others() -> None:
    x = features()
    twice = torch.cat([x, x[:1]])
    shared = pca_rgb([twice])[0]
    torch.testing.assert_close(shared[0], shared[-1])
    alone = pca_rgb([x[:1]], "image")[0]
    torch.testing.assert_close(pca_rgb([x], "image")[0][:1], alone)


def test_foreground_is_what_stands_out_of_the_border() -> None:
    x = 0.01 * torch.randn(2, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    x[:, 2:6, 2:6] += torch.linspace(1, 2, 16)
    for sign in (1, -1):
        rgb = pca_rgb([sign * x], foreground=0.5)[0]
        black = (rgb == 0).all(-1)
        inside = torch.zeros(8, 8, dtype=torch.bool)
        inside[2:6, 2:6] = True
        assert black[:, ~inside].all()
        assert black[:, inside].double().mean() < 0.1


def test_models_may_differ_in_grid_and_channels_and_values_stay_in_range() -> None:
    a, b = pca_rgb([features(h=6, w=6), features(h=12, w=12, c=40)])
    assert a.shape == (4, 6, 6, 3) and b.shape == (4, 12, 12, 3)
    for rgb in (a, b):
        assert rgb.min() == 0 and rgb.max() == 1


@pytest.mark.parametrize(
    "arguments, says",
    [
        (([],), "features is a list"),
        (([torch.zeros(2, 3, 3, 4), torch.zeros(1, 3, 3, 4)],), "same N images"),
        (([features()], "joint"), "basis='joint'"),
        (([features()], "shared", 1.5), "foreground=1.5"),
        (([torch.zeros(1, 1, 1, 8)],), "at least 3 samples"),
    ],
)
def test_what_makes_no_picture_is_refused(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pca_rgb(*arguments)
