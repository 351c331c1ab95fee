"""Every ViT is noticed once, when it is complete, whenever and however its class came to be."""

import copy
from typing import Any

import pytest
from helpers import tiny_vit
from torch import nn

from attn_plugins.trainers.launch import patch_as_built
from attn_plugins.trainers.launch.construction import is_vit_class


@pytest.mark.parametrize("cls", [tiny_vit.TinyViT, tiny_vit.Deeper, tiny_vit.Renamed])
def test_an_existing_class_is_noticed_once_and_complete(cls: type[Any]) -> None:
    seen: list[tuple[nn.Module, set[str]]] = []
    with patch_as_built(lambda model: seen.append((model, set(dict(model.named_parameters()))))):
        model = cls()
    assert [found for found, _ in seen] == [model]
    assert seen[0][1] == set(dict(model.named_parameters()))


def test_a_class_defined_later_is_noticed_and_its_mixins_go_on_working() -> None:
    told = []

    class Mixin:
        def __init_subclass__(cls, **kwargs: Any) -> None:
            told.append((cls.__name__, kwargs))
            super().__init_subclass__()

    seen: list[nn.Module] = []
    with patch_as_built(seen.append):

        class Later(tiny_vit.TinyViT, Mixin, option=1):
            def __init__(self) -> None:
                super().__init__(dim=8)

        model = Later()
    assert seen == [model]
    assert told == [("Later", {"option": 1})]


def test_a_vit_inside_a_vit_is_noticed_too() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch_embed, self.blocks = nn.Identity(), nn.ModuleList()
            self.inner = tiny_vit.TinyViT()

    seen: list[nn.Module] = []
    with patch_as_built(seen.append):
        pair = Pair()
    assert seen == [pair.inner, pair]


def test_copies_and_other_modules_are_not_noticed_again() -> None:
    seen: list[nn.Module] = []
    with patch_as_built(seen.append):
        model = tiny_vit.TinyViT()
        copy.deepcopy(model)
        nn.Sequential(model, nn.Linear(2, 2))
    assert seen == [model]


def test_a_constructor_that_fails_is_not_noticed() -> None:
    seen: list[nn.Module] = []
    with patch_as_built(seen.append), pytest.raises(TypeError):
        tiny_vit.TinyViT(dim="wide")  # type: ignore[arg-type]
    assert seen == []


def test_afterwards_every_class_is_as_before() -> None:
    before = tiny_vit.TinyViT.__init__
    with patch_as_built(lambda model: None):
        assert tiny_vit.TinyViT.__init__ is not before
    assert tiny_vit.TinyViT.__init__ is before
    assert "__init_subclass__" not in vars(nn.Module)


def test_the_vits_of_timm_and_lightly_train_are_known() -> None:
    from lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer import DinoVisionTransformer as V2
    from lightly_train._models.dinov3.dinov3_src.models.vision_transformer import DinoVisionTransformer as V3
    from timm.models.eva import Eva
    from timm.models.resnet import ResNet
    from timm.models.vision_transformer import VisionTransformer

    assert all(is_vit_class(cls) for cls in (V2, V3, Eva, VisionTransformer))
    assert not any(is_vit_class(cls) for cls in (ResNet, nn.Linear, nn.TransformerEncoder))
